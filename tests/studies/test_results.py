"""Numbers from run folders, made up here."""

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
  assert (
    found.machine() == "2 CPU cores, devices cpu:0, Python 3.12.1, jax 0.11"
  )


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
