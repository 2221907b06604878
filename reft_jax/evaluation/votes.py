"""Choosing one answer of several samples, pass@k and confidence intervals.

Host code on numbers and texts; no model runs.
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
  """The most frequent answer; None if no sample has an answer.

  Ties go to the answer seen first. `official` is the released code's vote:
  exact floats are counted, and texts only if they are one letter. Deviation,
  `strict`: numbers within a relative 1e-6 or an absolute 1e-12 (rounding error
  around 0) are one answer; nan and infinity are no answers.
  """
  seen: list[Value] = []
  votes: list[int] = []
  for value in values:
    if value is None or not _is_answer(value, mode):
      continue
    alike = (i for i, other in enumerate(seen) if same(other, value, mode))
    index = next(alike, len(seen))
    if index == len(seen):
      seen.append(value)
      votes.append(0)
    votes[index] += 1
  return seen[votes.index(max(votes))] if votes else None


def same(a: Value | None, b: Value | None, mode: Mode = "strict") -> bool:
  """Whether two answers are the same in a vote."""
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
  """The index of the answer that a reward model rates highest.

  Samples without an answer (as defined in `majority`) and nan probabilities are
  skipped; None if no sample is left. Ties go to the sample seen first.

  Args:
    values: a question's answers, None for samples without one.
    probabilities: each answer's probability of being correct.
    mode: as in `majority`.

  Raises:
    ValueError: the numbers of values and probabilities differ.
  """
  candidates = [
    (probability, index)
    for index, (value, probability) in enumerate(
      zip(values, probabilities, strict=True)
    )
    if _is_answer(value, mode) and not math.isnan(probability)
  ]
  _, index = max(candidates, key=lambda pair: pair[0], default=(None, None))
  return index


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """Estimates pass@k from n samples, c of them correct: 1 - C(n-c,k)/C(n,k).

  The probability that k samples drawn without replacement include a correct
  one: an unbiased estimate (Chen et al. 2021, "Evaluating Large Language Models
  Trained on Code", equation 1), computed in whole numbers.

  Raises:
    ValueError: unless 1 <= k <= n and 0 <= c <= n.
  """
  if not (1 <= k <= samples and 0 <= correct <= samples):
    raise ValueError(f"no {k} of {samples} samples, {correct} of them correct")
  return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def blocks(samples: int, k: int) -> list[slice]:
  """Splits n samples into floor(n / k) disjoint blocks of k, in order.

  A vote at k < n is the mean over blocks: they are independent, and each is the
  vote of an evaluation with k samples.
  """
  return [slice(start, start + k) for start in range(0, samples - k + 1, k)]


def bootstrap(
  scores_Q: Sequence[float], resamples: int, seed: int
) -> tuple[float, float]:
  """The 95 % percentile interval of a mean over questions; nan without any.

  Questions are drawn with replacement (Efron and Tibshirani 1993, chapter 13).
  A seed fixes the questions drawn, so intervals over the same questions differ
  by their scores alone.
  """
  array_Q = np.asarray(scores_Q, np.float64)
  if not array_Q.size:
    return math.nan, math.nan
  rng = np.random.default_rng(seed)
  means = [
    array_Q[rng.integers(array_Q.size, size=array_Q.size)].mean()
    for _ in range(resamples)
  ]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def _is_answer(value: Value | None, mode: Mode) -> bool:
  """Whether a sample's value counts in a vote."""
  if mode == "official" and isinstance(value, str):
    return len(value) == 1
  if mode == "strict" and isinstance(value, float):
    return math.isfinite(value)
  return value is not None
