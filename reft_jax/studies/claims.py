"""Which claims the numbers of a suite bear out: spreads and verdicts."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import scipy.stats

from reft_jax.studies import suites

Verdict = Literal[
  "reproduced", "unclear", "did not reproduce", "could not be measured"
]
# A metric of a stage by seed.
BySeed = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean and standard deviation over seeds, and a 95 % interval of the mean.

  All but the mean are nan with one seed.
  """

  seeds: int
  mean: float
  deviation: float
  low: float
  high: float


def spread(values: Sequence[float]) -> Spread:
  """Summarises the values of one seed or more."""
  count, mean = len(values), statistics.mean(values)
  if count == 1:
    return Spread(1, mean, math.nan, math.nan, math.nan)
  deviation = statistics.stdev(values)
  quantile = float(scipy.stats.t.ppf(0.975, count - 1))
  reach = quantile * deviation / math.sqrt(count)
  return Spread(count, mean, deviation, mean - reach, mean + reach)


@dataclasses.dataclass(frozen=True)
class Finding:
  """What the results say of a claim.

  Attributes:
    claim: the claim.
    seeds: the number of seeds.
    differences: between the claim's sides, on the seeds that have both.
    spread: of the differences; None without differences.
    held: the number of seeds on which the claim holds.
    verdict: what follows; see `judge`.
  """

  claim: suites.Claim
  seeds: int
  differences: BySeed
  spread: Spread | None
  held: int
  verdict: Verdict


def judge(
  claim: suites.Claim, one: BySeed, other: BySeed, *, seeds: int
) -> Finding:
  """Judges a claim by its two sides' numbers on `seeds` seeds.

  A claim is not reproduced without the number of a seed: a run that diverged
  could have shown anything.
  """
  both = [seed for seed in one if seed in other]
  if not both:
    return Finding(claim, seeds, {}, None, 0, "could not be measured")
  differences = {seed: one[seed] - other[seed] for seed in both}
  found = spread(list(differences.values()))
  held = sum(map(claim.holds, differences.values()))
  verdict: Verdict = "unclear"
  if not claim.holds(found.mean):
    verdict = "did not reproduce"
  elif held == seeds and claim.holds(found.low) and claim.holds(found.high):
    verdict = "reproduced"
  return Finding(claim, seeds, differences, found, held, verdict)


def to_json(finding: Finding) -> dict[str, Any]:
  """A finding as JSON."""
  found = finding.spread
  return {
    "claim": finding.claim.text,
    "verdict": finding.verdict,
    "seeds": finding.seeds,
    "held": finding.held,
    "differences": {str(k): v for k, v in finding.differences.items()},
    "mean": found and found.mean,
    "interval": [found.low, found.high] if found and found.seeds > 1 else None,
  }
