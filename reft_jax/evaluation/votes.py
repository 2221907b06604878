"""Choosing one answer among several samples, and how sure a share is.

On the host, with nothing but numbers and texts: no model is asked again.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Value = float | str
Mode = Literal["strict", "official"]


def majority(
  values: Sequence[Value | None], mode: Mode = "strict"
) -> Value | None:
  """The answer given most often; None where no sample holds an answer.

  Ties go to the answer seen first. `official` is the released code's vote:
  exact floats are counted, and texts only if they are one letter. Deviation,
  `strict`: numbers within a relative 1e-6 count as one answer, and so do 0 and
  what rounding leaves of it (1e-12); nan and infinity count as none.
  """
  seen: list[Value] = []
  votes: list[int] = []
  for value in values:
    if not _stands(value, mode):
      continue
    alike = (i for i, other in enumerate(seen) if same(other, value, mode))
    index = next(alike, len(seen))
    if index == len(seen):
      seen.append(value)
      votes.append(0)
    votes[index] += 1
  return seen[votes.index(max(votes))] if votes else None


def same(a: Value | None, b: Value | None, mode: Mode = "strict") -> bool:
  """Whether two answers count as one in a vote."""
  if a is None or b is None:
    return False
  if mode == "official" or isinstance(a, str) or isinstance(b, str):
    return a == b
  return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def rerank(
  values: Sequence[Value | None],
  probabilities: Sequence[float],
  mode: Mode = "strict",
) -> int | None:
  """The index of the answer that a reward model finds best.

  Samples without an answer do not stand for election, whatever their
  probability; what is none is told by `majority`. Ties go to the
  sample seen first; nan never wins. None where nobody stands.

  Args:
    values: a question's answers, None where there is none.
    probabilities: of being correct, one for each answer.
    mode: as in `majority`.

  Raises:
    ValueError: if there are more of one than of the other.
  """
  standing = [
    (probability, index)
    for index, (value, probability) in enumerate(
      zip(values, probabilities, strict=True)
    )
    if _stands(value, mode) and not math.isnan(probability)
  ]
  _, index = max(standing, key=lambda pair: pair[0], default=(None, None))
  return index


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """The chance that at least one of k samples is correct: 1 - C(n-c,k)/C(n,k).

  Of k drawn without replacement from n samples of which c are correct; an
  unbiased estimate of pass@k (Chen et al. 2021, Evaluating Large Language
  Models Trained on Code, equation 1), exact in whole numbers.

  Raises:
    ValueError: unless 1 <= k <= n and 0 <= c <= n.
  """
  if not (1 <= k <= samples and 0 <= correct <= samples):
    raise ValueError(f"no {k} of {samples} samples, {correct} of them correct")
  return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def blocks(samples: int, k: int) -> list[slice]:
  """The floor(n / k) blocks of k samples in their order; none overlaps another.

  A vote at k < n is averaged over these: every one is a vote of k samples
  that a smaller evaluation would have held, and they are independent.
  """
  return [slice(start, start + k) for start in range(0, samples - k + 1, k)]


def bootstrap(
  scores_Q: Sequence[float], resamples: int, seed: int
) -> tuple[float, float]:
  """The 95 % percentile interval of a mean over questions; nan without any.

  Questions are drawn with replacement (Efron and Tibshirani 1993, chapter 13).
  The same seed draws the same questions, so that two means over one set of
  questions differ by their scores alone.
  """
  scores_Q = np.asarray(scores_Q, np.float64)
  if not scores_Q.size:
    return math.nan, math.nan
  rng = np.random.default_rng(seed)
  means = [
    scores_Q[rng.integers(scores_Q.size, size=scores_Q.size)].mean()
    for _ in range(resamples)
  ]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def _stands(value: Value | None, mode: Mode) -> bool:
  """Whether an answer counts at all."""
  if mode == "official" and isinstance(value, str):
    return len(value) == 1
  if mode == "strict" and isinstance(value, float):
    return math.isfinite(value)
  return value is not None
