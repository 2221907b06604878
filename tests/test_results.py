"""Numbers from run folders, made up here."""

import fake_runs
import pytest

from reft_jax.studies import results, suites


@pytest.fixture
def found(tmp_path) -> results.Results:
  """Two seeds of three came to their end."""
  suite = suites.Suite(
    *("suite.yaml", "made up", "", "smoke", (1, 2, 3), {}),
    runs={"main": suites.Run("main", ("sft",), {}, None)},
    **dict.fromkeys(("evaluations", "tables", "figures", "claims"), ()),
  )
  fake_runs.make(tmp_path, 1)
  fake_runs.make(tmp_path, 2, test=0.75, curve=(0.3, 0.4, 0.5))
  return results.Results(suite, (1, 2, 3), tmp_path)


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
  stage = found.plain()["main"]["1"]["sft"]
  ours = {n for n, metric in suites.METRICS.items() if not metric.evaluated}
  assert ours <= stage.keys()


def test_runs_without_an_end_are_named(found):
  assert found.missing() == [("main", 3)]
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
def test_curves_of_the_rate_that_was_chosen(found, over, curve):
  reference = suites.Reference("main", "sft", "dev/accuracy")
  assert found.curve(reference, over) == curve


def test_means_at_the_end():
  rows = [{"kl": float(step)} for step in range(30)] + [{"loss": 1.0}]
  found = results.at_the_end(rows)
  assert found == {"kl": 28, "reward": None, "length": None}
