"""The numbers of a suite's runs, and what they say of its claims."""

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import scipy.stats

from reft_jax.config import loading
from reft_jax.evaluation import settings
from reft_jax.runtime import metrics
from reft_jax.studies import suites

Verdict = Literal[
  "reproduced", "unclear", "did not reproduce", "could not be measured"
]
# A metric of a stage by seed.
BySeed = Mapping[int, float]


class Results:
  """The numbers of a suite's finished runs and evaluations.

  Attributes:
    numbers: by run, seed, stage and metric.

  Args:
    suite: the suite.
    done: the names of the finished runs and evaluations, as
      `suites.run_name` and `suites.evaluation_name` give them. Others are not
      read: they may be unfinished, or have other settings.
  """

  def __init__(self, suite: suites.Suite, done: Collection[str]):
    self._suite = suite
    self.numbers: dict[str, dict[int, dict[str, Any]]] = {
      run: {
        seed: stages(suite.run_folder(run, seed))
        if suites.run_name(run, seed) in done
        else {}
        for seed in suite.seeds
      }
      for run in suite.runs
    }
    for evaluation, seed in itertools.product(suite.evaluations, suite.seeds):
      if suites.evaluation_name(evaluation, seed) in done:
        folder = suite.run_folder(evaluation.run, seed)
        found = self.numbers[evaluation.run][seed]
        for stage in found.keys() & set(evaluation.stages):
          text = evaluation_file(folder, stage).read_text()
          for name, figure in json.loads(text)["accuracy"].items():
            found[stage][name] = figure["value"]

  def of(self, side: suites.Side) -> BySeed:
    """A metric of a stage, without seeds that lack it; a number is as it is."""
    if isinstance(side, float):
      return dict.fromkeys(self._suite.seeds, side)
    values = {
      seed: found.get(side.stage, {}).get(side.metric)
      for seed, found in self.numbers[side.run].items()
    }
    return {seed: value for seed, value in values.items() if value is not None}

  def curve(
    self, reference: suites.Reference, over: str
  ) -> dict[float, list[float]]:
    """The values of all seeds along a stage, by place in ascending order.

    The reference's metric is one of metrics.jsonl; `over`, one of suites.OVER,
    says what a place is.
    """
    run, stage, metric = reference.run, reference.stage, reference.metric
    curve: dict[float, list[float]] = {}
    for seed, found in self.numbers[run].items():
      if stage not in found:
        continue
      folder = self._suite.run_folder(run, seed)
      rows = rows_of(folder, stage, found[stage]["learning_rate"])
      times, last = 1, 1
      if over == "share":
        # Divide last, so that equal shares are equal floats: 6/12 and 5/10.
        last = max((row["step"] for row in rows), default=1)
      elif over == "rows":
        config = loading.load([str(folder / "config.yaml")])
        times = getattr(config, stage).batch_size
      for row in rows:
        if math.isfinite(row.get(metric, math.nan)):
          place = row["step"] * times / last
          curve.setdefault(place, []).append(row[metric])
    return dict(sorted(curve.items()))

  def machine(self) -> str:
    """The machine of the first finished run, in a line."""
    for run, seed in itertools.product(self._suite.runs, self._suite.seeds):
      if self.numbers[run][seed]:
        folder = self._suite.run_folder(run, seed)
        facts = json.loads((folder / "environment.json").read_text())
        return (
          f"{facts['cpus']} CPU cores, devices {', '.join(facts['devices'])},"
          f" Python {facts['python']}, jax {facts['packages']['jax']}"
        )
    return "no run is finished"


def stages(folder: pathlib.Path) -> dict[str, dict[str, float | None]]:
  """The metrics of a finished run's stages."""
  summary = json.loads((folder / "summary.json").read_text())
  return {
    name: {key: facts.get(place) for key, place in _keys("summary").items()}
    | {key: facts["shares"].get(at) for key, at in _keys("shares").items()}
    | {"equations": equations(folder / "samples" / f"test-{name}.jsonl")}
    | at_the_end(rows_of(folder, name, facts["learning_rate"]))
    for name, facts in summary["stages"].items()
  }


def _keys(source: str) -> dict[str, str]:
  """The metrics of a source, and their keys there."""
  every = suites.METRICS.items()
  return {name: metric.key for name, metric in every if metric.source == source}


def equations(file: pathlib.Path) -> float | None:
  """The mean number of equals signs in a greedy test answer."""
  if not file.exists():
    return None
  rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
  return statistics.mean(row["completion"].count("=") for row in rows)


def rows_of(
  folder: pathlib.Path, stage: str, learning_rate: float
) -> list[dict]:
  """The rows logged in a stage; of a sweep, those at the chosen rate."""
  names = (stage, f"{stage}-lr{learning_rate:g}")
  return [row for row in metrics.read(folder) if row["stage"] in names]


def at_the_end(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
  """Means over the last tenth of the finite values."""
  found = {}
  for name, logged in _keys("log").items():
    values = [row.get(logged, math.nan) for row in rows]
    values = [value for value in values if math.isfinite(value)]
    last = values[-max(1, len(values) // 10) :]
    found[name] = statistics.mean(last) if last else None
  return found


def evaluation_file(folder: pathlib.Path, stage: str) -> pathlib.Path:
  """The file in which reft_jax.evaluate leaves a stage's accuracies."""
  return settings.folder(folder, stage, "test") / settings.FILE


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
