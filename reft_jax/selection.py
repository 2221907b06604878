"""Choosing one answer among several samples."""

import math
from collections.abc import Sequence

Value = float | str


def majority(values: Sequence[Value | None]) -> Value | None:
  """The answer given most often; None where no sample holds an answer.

  Numbers within a relative 1e-6 count as one answer. Ties go to the answer
  seen first, as in the released code. Deviation: that code counts exact
  floats.
  """
  counts: dict[Value, int] = {}
  for value in values:
    if value is None:
      continue
    vote = next((seen for seen in counts if same(seen, value)), value)
    counts[vote] = counts.get(vote, 0) + 1
  return max(counts, key=counts.__getitem__, default=None)


def same(a: Value | None, b: Value | None) -> bool:
  """Whether two answers count as one in a vote."""
  if a is None or b is None:
    return False
  if isinstance(a, str) or isinstance(b, str):
    return a == b
  return math.isclose(a, b, rel_tol=1e-6)
