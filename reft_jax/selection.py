"""Choosing one answer among several samples."""

import math
from collections.abc import Sequence
from typing import Literal

Value = float | str
Mode = Literal["strict", "official"]


def majority(
  values: Sequence[Value | None], mode: Mode = "strict"
) -> Value | None:
  """The answer given most often; None where no sample holds an answer.

  Ties go to the answer seen first. `official` is the released code's vote:
  exact floats are counted, and texts only if they are one letter. Deviation,
  `strict`: numbers within a relative 1e-6 count as one answer.
  """
  counts: dict[Value, int] = {}
  for value in values:
    if value is None:
      continue
    if mode == "official" and isinstance(value, str) and len(value) != 1:
      continue
    vote = next((seen for seen in counts if same(seen, value, mode)), value)
    counts[vote] = counts.get(vote, 0) + 1
  return max(counts, key=counts.__getitem__, default=None)


def same(a: Value | None, b: Value | None, mode: Mode = "strict") -> bool:
  """Whether two answers count as one in a vote."""
  if a is None or b is None:
    return False
  if mode == "official" or isinstance(a, str) or isinstance(b, str):
    return a == b
  return math.isclose(a, b, rel_tol=1e-6)
