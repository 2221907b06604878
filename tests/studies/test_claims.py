"""Spreads and verdicts, by hand."""

import math

import pytest

from reft_jax.studies import claims, suites


def seeds(*values) -> dict[int, float]:
  return dict(enumerate(values, start=1))


def above(by=0.0) -> suites.Above:
  return suites.Above(0.0, 0.0, "One is above the other", by)


def equal(within) -> suites.Equal:
  return suites.Equal((0.0, 0.0), "They are equal", within)


def test_spread_of_hand_worked_numbers():
  # Deviation 0.1, so 0.1 / sqrt(3) times the t quantile of 2 degrees, 4.3027.
  found = claims.spread([0.4, 0.5, 0.6])
  assert found.mean == pytest.approx(0.5)
  assert found.deviation == pytest.approx(0.1)
  assert found.high - 0.5 == pytest.approx(0.24841, rel=1e-4)
  assert 0.5 - found.low == pytest.approx(0.24841, rel=1e-4)


def test_one_seed_has_no_spread():
  found = claims.spread([0.4])
  assert (found.seeds, found.mean) == (1, 0.4)
  assert math.isnan(found.deviation)


@pytest.mark.parametrize(
  ("one", "other", "by", "held", "verdict"),
  [
    (seeds(0.90, 0.91, 0.89), seeds(0.2, 0.21, 0.19), 0.3, 3, "reproduced"),
    (seeds(0.90, 0.91, 0.89), seeds(0.2, 0.21, 0.19), 0.8, 0, "did not"),
    (seeds(0.5, 0.5, 0.5), seeds(0.5, 0.5, 0.5), 0.0, 0, "did not"),
    (seeds(0.4, 0.4, 0.4), seeds(0.5, 0.5, 0.5), 0.0, 0, "did not"),
    (seeds(0.9, 0.5, 0.5), seeds(0.5, 0.51, 0.51), 0.0, 1, "unclear"),
    # On every seed, but by amounts too different to be sure.
    (seeds(0.9, 0.51, 0.51), seeds(0.5, 0.5, 0.5), 0.0, 3, "unclear"),
    (seeds(0.9), seeds(0.2), 0.3, 1, "unclear"),
    # A seed diverged: that the claim holds on the others is not enough.
    (seeds(0.90, 0.91), seeds(0.2, 0.21, 0.19), 0.3, 2, "unclear"),
    (seeds(0.2, 0.21), seeds(0.90, 0.91, 0.89), 0.3, 0, "did not"),
    ({1: 0.9, 2: 0.91}, {2: 0.2, 3: 0.3}, 0.3, 1, "unclear"),
    (seeds(0.9), {2: 0.2}, 0.3, 0, "could not"),
    ({}, seeds(0.2), 0.3, 0, "could not"),
  ],
)
def test_verdicts_on_one_above_another(one, other, by, held, verdict):
  found = claims.judge(above(by), one, other, seeds=3)
  assert found.held == held
  assert found.verdict.startswith(verdict)


@pytest.mark.parametrize(
  ("one", "other", "verdict"),
  [
    (seeds(0.5, 0.5, 0.501), seeds(0.5, 0.501, 0.5), "reproduced"),
    (seeds(0.6, 0.6, 0.6), seeds(0.5, 0.5, 0.5), "did not"),
    # Equal on average alone.
    (seeds(0.6, 0.4, 0.5), seeds(0.5, 0.5, 0.5), "unclear"),
  ],
)
def test_verdicts_on_two_that_are_equal(one, other, verdict):
  for sides in ((one, other), (other, one)):
    found = claims.judge(equal(0.02), *sides, seeds=3)
    assert found.verdict.startswith(verdict)


@pytest.mark.parametrize(
  ("claim", "one", "other", "holds"),
  [
    (above(0.3), 0.7, 0.4, True),
    (above(0.30001), 0.7, 0.4, False),
    (equal(0.05), 0.55, 0.50, True),
    (equal(0.05), 0.50, 0.55, True),
    (equal(0.04999), 0.55, 0.50, False),
    (above(), 0.1 + 0.2, 0.3, False),
  ],
)
def test_rounding_decides_no_claim(claim, one, other, holds):
  assert claim.holds(one - other) == holds


def test_a_finding_as_json():
  found = claims.judge(above(), seeds(0.5), seeds(0.25), seeds=2)
  assert claims.to_json(found) == {
    "claim": "One is above the other",
    "verdict": "unclear",
    "seeds": 2,
    "held": 1,
    "differences": {"1": 0.25},
    "mean": 0.25,
    "interval": None,
  }
  found = claims.judge(above(), seeds(0.5, 0.6), seeds(0.25, 0.25), seeds=2)
  low, high = claims.to_json(found)["interval"]
  assert low < 0.3 < high
  nothing = claims.to_json(claims.judge(above(), {}, seeds(0.5), seeds=2))
  assert nothing["mean"] is nothing["interval"] is None
