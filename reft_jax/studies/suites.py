"""Suites: what a reproduction runs, and what it tables, draws and claims.

`reading` reads a suite file into these types. `checking` tells whether the
suite can run.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NewType

from reft_jax import errors
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
NO_MARGIN = Margin(0.0)


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of a stage's model.

  Attributes:
    title: the heading of its column.
    kind: `share` is shown in per cent; values of `rate` are listed, not
      averaged; `number` and `seconds` are shown as they are.
    evaluated: whether reft_jax.evaluate computes it, not the run.
  """

  title: str
  kind: Literal["share", "number", "rate", "seconds"] = "share"
  evaluated: bool = False


METRICS: Mapping[str, Metric] = {
  "test": Metric("test"),
  "vote": Metric("vote"),
  "dev": Metric("dev"),
  "wrong": Metric("wrong"),
  "none": Metric("no answer"),
  "partial": Metric("partial reward"),
  "unreached": Metric("unreached"),
  "equations": Metric("equations a solution", "number"),
  "reward": Metric("reward at the end", "number"),
  "kl": Metric("KL at the end, nats", "number"),
  "length": Metric("tokens at the end", "number"),
  "learning_rate": Metric("learning rate", "rate"),
  "best_step": Metric("best step", "number"),
  "seconds": Metric("seconds", "seconds"),
  "greedy": Metric("greedy", evaluated=True),
  "sampled": Metric("one sample", evaluated=True),
  "upper_bound": Metric("any sample", evaluated=True),
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
  by: Margin = NO_MARGIN
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
  """A suite file's content; `checking.check` tells whether it can run."""

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
  claims: tuple[Equal | Above, ...] = ()

  def origin(self, run: str, stage: str) -> str | None:
    """The run that trains a run's stage, itself or a source; None if none."""
    if stage in self.runs[run].stages:
      return run
    source = self.runs[run].source
    return self.origin(source, stage) if source else None

  def overrides(self, run: str, seed: int, folder: pathlib.Path) -> list[str]:
    """A run's settings as `key=value`s; `folder` holds the suite's runs."""
    place = {
      "name": f"{self.name}-{run}",
      "seed": seed,
      "output": str(run_folder(folder, run, seed)),
    }
    lent = self.lent_models(run, seed, folder)
    settings = (place, lent, self.settings, self.runs[run].settings)
    return [override for part in settings for override in written(part)]

  def lenders(self, run: str) -> set[str]:
    """The runs whose models a run starts from."""
    return {origin for _, origin in self._lent(run).values()}

  def config(
    self,
    run: str,
    seed: int,
    folder: pathlib.Path,
    overrides: Sequence[str] = (),
  ) -> schema.Config:
    """All settings of one run; the command line's `overrides` win.

    Raises:
      UserError: an unknown setting, or a value of the wrong type.
    """
    return self._load(
      f"run {run}", [*self.overrides(run, seed, folder), *overrides]
    )

  def evaluation_overrides(
    self, evaluation: Evaluation, seed: int, folder: pathlib.Path
  ) -> list[str]:
    """The `key=value`s that an evaluation lays over its run's settings."""
    judge = {}
    if evaluation.reward_model:
      path = model_folder(folder, evaluation.reward_model, seed, REWARD_MODEL)
      judge = {"evaluation": {"reward_model": str(path)}}
    return [*written(judge), *written(evaluation.settings)]

  def evaluation_config(
    self,
    evaluation: Evaluation,
    seed: int,
    folder: pathlib.Path,
    overrides: Sequence[str] = (),
  ) -> schema.Config:
    """All settings of an evaluation of a run's models; `overrides` win.

    Raises:
      UserError: an unknown setting, or a value of the wrong type.
    """
    run = evaluation.run
    config = self._load(
      f"evaluation of {run}",
      [
        *self.overrides(run, seed, folder),
        *self.evaluation_overrides(evaluation, seed, folder),
        *overrides,
      ],
    )
    return settings_lib.settings_of(
      config, str(model_folder(folder, run, seed, evaluation.stages[0]))
    )

  def lent_models(
    self, run: str, seed: int, folder: pathlib.Path
  ) -> dict[str, str]:
    """The settings that name another run's model, and that model's folder."""
    return {
      key: str(model_folder(folder, origin, seed, stage))
      for key, (stage, origin) in self._lent(run).items()
    }

  def _lent(self, run: str) -> dict[str, tuple[str, str]]:
    """The settings that name another run's model: that model's stage and run.

    Empty where a run has a base model of its own: no other model starts there.
    """
    settings, own = self.runs[run].settings, self.runs[run].stages
    if "base" in own or settings.get("model.path"):
      return {}
    origins = {
      key: (stage, self.origin(run, stage))
      for key, stage in (("model.path", "base"), ("model.warmup", "warmup"))
      if stage not in own
    }
    return {key: (stage, run) for key, (stage, run) in origins.items() if run}

  def _load(self, where: str, overrides: Sequence[str]) -> schema.Config:
    """The experiment's config with overrides; errors name the suite."""
    try:
      return loading.load([self.experiment], overrides)
    except errors.UserError as error:
      text = str(error).removeprefix("command line: ")
      raise errors.UserError(f"{self.file}: {where}: {text}") from error


def run_name(run: str, seed: int) -> str:
  """The name of a run with a seed, and of its folder."""
  return f"{run}-seed{seed}"


def evaluation_name(evaluation: Evaluation, seed: int) -> str:
  """The name of an evaluation with a seed."""
  return "-".join((run_name(evaluation.run, seed), *evaluation.stages))


def run_folder(folder: pathlib.Path, run: str, seed: int) -> pathlib.Path:
  """The folder of a run, in the folder of a suite's runs."""
  return folder / run_name(run, seed)


def model_folder(
  folder: pathlib.Path, run: str, seed: int, stage: str
) -> pathlib.Path:
  """The folder of the model of a run's stage."""
  return run_folder(folder, run, seed) / "models" / stage


def metric(name: str) -> Metric:
  """The metric of this name.

  Raises:
    KeyError: there is no such metric.
  """
  found = re.fullmatch(r"(\w+)@([1-9]\d*)", name)
  if found and found[1] in AT_K:
    return Metric(f"{AT_K[found[1]]}@{found[2]}", evaluated=True)
  return METRICS[name]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested settings by their dotted keys."""
  found: dict[str, Any] = {}
  for key, value in settings.items():
    if isinstance(value, Mapping):
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found


def written(settings: Mapping[str, Any]) -> list[str]:
  """Nested settings as the `key=value`s of a command line."""
  return [f"{key}={_spelled(value)}" for key, value in flat(settings).items()]


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
