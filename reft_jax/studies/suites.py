"""Suites: what a reproduction runs, and what it tables, draws and claims.

`reading` reads a suite file into these types. `checking` tells whether the
suite can run.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal, NewType

from reft_jax.config import loading, schema
from reft_jax.evaluation import settings as settings_lib

MAIN = "main"
REWARD_MODEL = "reward_model"
OVER = {
  "step": "step",
  "rows": "rollouts, or solutions imitated",
  "share": "share of the stage",
}
# What rounding may add to a difference, or take away.
_SLACK = 1e-9

# Settings by their dotted keys.
Settings = Mapping[str, Any]
# A number that is 0 or more.
Margin = NewType("Margin", float)


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of a stage's model.

  Attributes:
    title: the heading of its column.
    source: where it is found. `summary` and `shares` are a stage's parts of
      summary.json, `log` is metrics.jsonl, of which the last rows count,
      `answers` are the greedy test answers. `evaluation` is not the run's: it
      is what reft_jax.evaluate computes.
    key: its name there.
    kind: `share` is shown in per cent; values of `rate` are listed, not
      averaged; `number` and `seconds` are shown as they are.
  """

  title: str
  source: Literal["summary", "shares", "log", "answers", "evaluation"]
  key: str = ""
  kind: Literal["share", "number", "rate", "seconds"] = "share"


METRICS: Mapping[str, Metric] = {
  "test": Metric("test", "summary", "test_accuracy"),
  "vote": Metric("vote", "summary", "majority_accuracy"),
  "dev": Metric("dev", "summary", "dev_accuracy"),
  "wrong": Metric("wrong", "shares", "verdict/wrong"),
  "none": Metric("no answer", "shares", "verdict/none"),
  "partial": Metric("partial reward", "shares", "reward/partial"),
  "unreached": Metric("unreached", "shares", "choice/unreached"),
  "equations": Metric("equations a solution", "answers", kind="number"),
  "reward": Metric("reward at the end", "log", "reward/mean", "number"),
  "kl": Metric("KL at the end, nats", "log", "kl", "number"),
  "length": Metric("tokens at the end", "log", "response/length", "number"),
  "learning_rate": Metric("learning rate", "summary", "learning_rate", "rate"),
  "best_step": Metric("best step", "summary", "best_step", "number"),
  "seconds": Metric("seconds", "summary", "seconds", "seconds"),
  "greedy": Metric("greedy", "evaluation"),
  "sampled": Metric("one sample", "evaluation"),
  "upper_bound": Metric("any sample", "evaluation"),
}
# Of k samples, as in majority@16.
AT_K = {"majority": "vote", "pass": "pass", "rerank": "rerank"}


@dataclasses.dataclass(frozen=True)
class Reference:
  """One metric of one stage's model."""

  run: str
  stage: str
  metric: str

  def __str__(self) -> str:
    return f"{self.run}/{self.stage}:{self.metric}"


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, repeated with every seed; `source` lends it the stages it lacks."""

  name: str
  stages: tuple[str, ...]
  settings: Settings
  source: str | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Stages of a run to evaluate; `reward_model` is the run that reranks."""

  run: str
  stages: tuple[str, ...]
  reward_model: str = ""
  settings: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
  """One stage's model in a table, and the paper's figures by their setting."""

  label: str
  result: Reference
  paper: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
  """Models and their metrics."""

  title: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Curves:
  """A figure with a learning curve for each label."""

  curves: Mapping[str, Reference]
  title: str
  metric: str = "dev/accuracy"
  over: Literal["step", "rows", "share"] = "step"
  share: bool = True


@dataclasses.dataclass(frozen=True)
class Points:
  """A figure of results over a number in which runs differ."""

  points: Mapping[str, Mapping[float, Reference]]
  title: str
  x: str
  metric: str = "test"
  share: bool = True


Side = Reference | float


@dataclasses.dataclass(frozen=True)
class Equal:
  """The claim that two results differ by `within` at most."""

  equal: tuple[Side, Side]
  text: str
  within: Margin
  metric: str = "test"
  paper: str = ""

  @property
  def sides(self) -> tuple[Side, Side]:
    """The two results."""
    return self.equal

  def holds(self, difference: float) -> bool:
    """Whether the claim holds for a difference of its sides; nan never does."""
    return abs(difference) <= self.within + _SLACK


@dataclasses.dataclass(frozen=True)
class Above:
  """The claim that one result is above another, by at least `by`."""

  above: Side
  below: Side
  text: str
  by: Margin = Margin(0.0)
  metric: str = "test"
  paper: str = ""

  @property
  def sides(self) -> tuple[Side, Side]:
    """The two results."""
    return self.above, self.below

  def holds(self, difference: float) -> bool:
    """Whether the claim holds for a difference of its sides; nan never does."""
    return difference >= self.by - _SLACK and difference > _SLACK


Claim = Equal | Above


@dataclasses.dataclass(frozen=True)
class Suite:
  """A suite file's content, and what a command line says of it.

  `checking.check` tells whether it can run. Attributes that are not in the
  file:
    file: its name, for errors.
    output: the folder of all results.
    overrides: `key=value`s for every run and evaluation; they win.
  """

  file: str
  name: str
  about: str
  experiment: str
  seeds: tuple[int, ...]
  runs: Mapping[str, Run]
  settings: Settings = dataclasses.field(default_factory=dict)
  evaluations: tuple[Evaluation, ...] = ()
  tables: tuple[Table, ...] = ()
  figures: tuple[Curves | Points, ...] = ()
  claims: tuple[Claim, ...] = ()
  output: pathlib.Path = pathlib.Path()
  overrides: tuple[str, ...] = ()

  def run_folder(self, run: str, seed: int) -> pathlib.Path:
    """The folder of a run with a seed."""
    return self.output / "runs" / run_name(run, seed)

  def model_folder(self, run: str, seed: int, stage: str) -> pathlib.Path:
    """The folder of the model of a run's stage."""
    return self.run_folder(run, seed) / "models" / stage

  def lent(self, run: str) -> dict[str, tuple[str, str]]:
    """The settings that name another run's model: that run and its stage.

    Empty where a run has a base model of its own: no other model starts there.
    """
    models: dict[str, tuple[str, str]] = {}
    own = self.runs[run]
    if "base" in own.stages or own.settings.get("model.path"):
      return models
    for key, stage in (("model.path", "base"), ("model.warmup", "warmup")):
      lender: str | None = run
      while lender and stage not in self.runs[lender].stages:
        lender = self.runs[lender].source
      if lender and lender != run:
        models[key] = lender, stage
    return models

  def run_settings(self, run: str, seed: int) -> list[str]:
    """The `key=value`s of a run, over the experiment."""
    own = self.runs[run].settings
    place = {
      "name": f"{self.name}-{run}",
      "seed": seed,
      "output": str(self.run_folder(run, seed)),
    }
    lent = {
      key: str(self.model_folder(lender, seed, stage))
      for key, (lender, stage) in self.lent(run).items()
    }
    parts: tuple[Settings, ...] = (place, lent, self.settings, own)
    return [*itertools.chain(*map(written, parts)), *self.overrides]

  def evaluation_settings(self, evaluation: Evaluation, seed: int) -> list[str]:
    """The `key=value`s of an evaluation, over those of its run."""
    judge = {}
    if run := evaluation.reward_model:
      path = self.model_folder(run, seed, REWARD_MODEL)
      judge = {"evaluation.reward_model": str(path)}
    return [*written(judge), *written(evaluation.settings), *self.overrides]

  def config(self, run: str, seed: int) -> schema.Config:
    """All settings of a run.

    Raises:
      UserError: an unknown setting, or a value of the wrong type.
    """
    return loading.load([self.experiment], self.run_settings(run, seed))

  def evaluation_config(
    self, evaluation: Evaluation, seed: int
  ) -> schema.Config:
    """All settings of an evaluation; raises UserError as `config` does."""
    settings = self.run_settings(evaluation.run, seed)
    settings += self.evaluation_settings(evaluation, seed)
    config = loading.load([self.experiment], settings)
    model = self.model_folder(evaluation.run, seed, evaluation.stages[0])
    return settings_lib.settings_of(config, str(model))


def run_name(run: str, seed: int) -> str:
  """The name of a run with a seed, and of its folder."""
  return f"{run}-seed{seed}"


def evaluation_name(evaluation: Evaluation, seed: int) -> str:
  """The name of an evaluation with a seed."""
  return "-".join((run_name(evaluation.run, seed), *evaluation.stages))


def metric(name: str) -> Metric:
  """The metric of this name.

  Raises:
    KeyError: there is no such metric.
  """
  found = re.fullmatch(r"(\w+)@([1-9]\d*)", name)
  if found and found[1] in AT_K:
    return Metric(f"{AT_K[found[1]]}@{found[2]}", "evaluation")
  return METRICS[name]


def written(settings: Settings) -> list[str]:
  """Settings as the `key=value`s of a command line."""
  return [f"{key}={_spelled(value)}" for key, value in settings.items()]


def picture(title: str) -> str:
  """The file name of the figure with this title."""
  words = re.findall(r"\w+", title.lower()) or ["figure"]
  return f"{'-'.join(words)}.png"


def _spelled(value: Any) -> str:
  """A value as YAML reads it."""
  if isinstance(value, list):
    return f"[{','.join(map(_spelled, value))}]"
  plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
  return value if plain else json.dumps(value)
