"""Numbers from made-up run folders; spreads and verdicts, by hand."""

import dataclasses
import math

import fake_runs
import pytest

from reft_jax.studies import results, suites

SUITE = suites.Suite(
  *("suite.yaml", "made up", "", "smoke", (1, 2, 3)),
  runs={"main": suites.Run("main", ("sft",), {}, None)},
  evaluations=(suites.Evaluation("main", ("sft",)),),
)


def suite_in(output) -> suites.Suite:
  return dataclasses.replace(SUITE, output=output)


@pytest.fixture
def found(tmp_path) -> results.Results:
  """Two seeds of three came to their end."""
  fake_runs.make(tmp_path, 1)
  fake_runs.make(tmp_path, 2, test=0.75, curve=(0.3, 0.4, 0.5))
  done = [f"main-seed{seed}{what}" for seed in (1, 2) for what in ("", "-sft")]
  return results.Results(suite_in(tmp_path), done)


@pytest.mark.parametrize(
  ("metric", "values"),
  [
    ("test", {1: 0.5, 2: 0.75}),
    ("vote", {}),  # Nobody voted.
    ("none", {1: 0.125, 2: 0.125}),
    ("wrong", {}),
    ("equations", {1: 1, 2: 1}),
    ("learning_rate", {1: 1e-3, 2: 1e-3}),
    ("majority@4", {1: 0.75, 2: 0.75}),
    ("pass@4", {}),
    ("kl", {1: 2, 2: 3}),  # The last row of the rate that was chosen.
  ],
)
def test_metrics_by_seed(found, metric, values):
  assert found.of(suites.Reference("main", "sft", metric)) == values


def test_every_metric_is_read(found):
  stage = found.numbers["main"][1]["sft"]
  ours = {n for n, m in suites.METRICS.items() if m.source != "evaluation"}
  assert ours <= stage.keys()


def test_runs_that_are_not_done_are_not_read(tmp_path):
  for seed in (1, 2, 3):
    fake_runs.make(tmp_path, seed)
  done = {"main-seed1", "main-seed2", "main-seed2-sft", "main-seed3-sft"}
  found = results.Results(suite_in(tmp_path), done)

  def seeds(metric):
    return set(found.of(suites.Reference("main", "sft", metric)))

  assert seeds("test") == {1, 2}
  assert seeds("majority@4") == {2}


def test_the_machine(found):
  machine = "2 CPU cores, devices cpu:0, Python 3.12.1, jax 0.11"
  assert found.machine() == machine


@pytest.mark.parametrize(
  ("over", "curve"),
  [
    ("step", {2: [0.1, 0.3], 4: [0.2, 0.4], 6: [0.5]}),
    ("rows", {32: [0.1, 0.3], 64: [0.2, 0.4], 96: [0.5]}),
    ("share", {1 / 3: [0.3], 0.5: [0.1], 2 / 3: [0.4], 1: [0.2, 0.5]}),
  ],
)
def test_curves_are_of_the_chosen_learning_rate(found, over, curve):
  reference = suites.Reference("main", "sft", "dev/accuracy")
  assert found.curve(reference, over) == curve


def test_shares_of_stages_of_any_length_coincide(tmp_path):
  # 1/12 of each; 100 * (1 / 1200) and 110 * (1 / 1320) are different floats.
  for seed, last in ((1, 1200), (2, 1320), (3, 48)):
    fake_runs.make(tmp_path, seed, curve=(), steps={last // 12: 0.1, last: 0.2})
  done = {f"main-seed{seed}" for seed in (1, 2, 3)}
  found = results.Results(suite_in(tmp_path), done)
  curve = found.curve(suites.Reference("main", "sft", "dev/accuracy"), "share")
  assert curve == {1 / 12: [0.1] * 3, 1: [0.2] * 3}


def test_means_at_the_end():
  rows = [{"kl": float(step)} for step in range(30)] + [{"loss": 1.0}]
  found = results.at_the_end(rows)
  assert found == {"kl": 28, "reward": None, "length": None}
  rows += [{"kl": math.nan, "reward/mean": math.nan}]
  assert results.at_the_end(rows) == found


def seeds(*values) -> dict[int, float]:
  return dict(enumerate(values, start=1))


def above(by=0.0) -> suites.Above:
  return suites.Above(0.0, 0.0, "One is above the other", by)


def equal(within) -> suites.Equal:
  return suites.Equal((0.0, 0.0), "They are equal", within)


def test_spread_of_hand_worked_numbers():
  # Deviation 0.1, so 0.1 / sqrt(3) times the t quantile of 2 degrees, 4.3027.
  found = results.spread([0.4, 0.5, 0.6])
  assert found.mean == pytest.approx(0.5)
  assert found.deviation == pytest.approx(0.1)
  assert found.high - 0.5 == pytest.approx(0.24841, rel=1e-4)
  assert 0.5 - found.low == pytest.approx(0.24841, rel=1e-4)
  found = results.spread([0.4])
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
  found = results.judge(above(by), one, other, seeds=3)
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
    found = results.judge(equal(0.02), *sides, seeds=3)
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
  found = results.judge(above(), seeds(0.5), seeds(0.25), seeds=2)
  assert results.to_json(found) == {
    "claim": "One is above the other",
    "verdict": "unclear",
    "seeds": 2,
    "held": 1,
    "differences": {"1": 0.25},
    "mean": 0.25,
    "interval": None,
  }
  found = results.judge(above(), seeds(0.5, 0.6), seeds(0.25, 0.25), seeds=2)
  low, high = results.to_json(found)["interval"]
  assert low < 0.3 < high
  nothing = results.to_json(results.judge(above(), {}, seeds(0.5), seeds=2))
  assert nothing["mean"] is nothing["interval"] is None
