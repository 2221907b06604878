"""Suites: what a reproduction runs, and what it tables, draws and claims.

How a suite is written is told in `reading`, what makes it one that can be run
in `checking`.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Metric:
  """What is known of a stage's model.

  Attributes:
    title: its column's head.
    kind: `share`, shown in per cent; `number`; `rate`, which is listed, not
      averaged; or `seconds`.
    evaluated: whether reft_jax.evaluate works it out, not the run.
  """

  title: str
  kind: str = "share"
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
  """A run that every seed repeats; `source` lends it the stages it lacks.

  `settings` are by their dotted keys, as those of suites and evaluations are.
  """

  name: str
  stages: tuple[str, ...]
  settings: Mapping[str, Any]
  source: str | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Stages of a run to be evaluated, reranked by a run's reward model."""

  run: str
  stages: tuple[str, ...]
  reward_model: str | None
  settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
  """One stage's model in a table, and the paper's figures by their setting."""

  label: str
  run: str
  stage: str
  paper: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
  """Models and what is known of them."""

  title: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]
  note: str


@dataclasses.dataclass(frozen=True)
class Curves:
  """A learning curve for each label; `over` is one of OVER."""

  title: str
  over: str
  lines: Mapping[str, Reference]
  share: bool


@dataclasses.dataclass(frozen=True)
class Points:
  """Results over a number in which runs differ, a line for each label."""

  title: str
  x: str
  lines: Mapping[str, Mapping[float, Reference]]
  share: bool


@dataclasses.dataclass(frozen=True)
class Claim:
  """That one result is above another by some, or, with `within`, equals it."""

  text: str
  one: Reference | float
  other: Reference | float
  by: float
  within: float | None
  paper: str

  @property
  def sides(self) -> tuple[Reference | float, Reference | float]:
    """What is compared."""
    return self.one, self.other


@dataclasses.dataclass(frozen=True)
class Suite:
  """A suite that has been read; `checking.check` says if it can be run."""

  file: str
  name: str
  about: str
  experiment: str
  seeds: tuple[int, ...]
  settings: Mapping[str, Any]
  runs: Mapping[str, Run]
  evaluations: tuple[Evaluation, ...]
  tables: tuple[Table, ...]
  figures: tuple[Curves | Points, ...]
  claims: tuple[Claim, ...]

  def origin(self, run: str, stage: str) -> str | None:
    """The run whose stage a run has or starts from; None if there is none."""
    if stage in self.runs[run].stages:
      return run
    source = self.runs[run].source
    return self.origin(source, stage) if source else None

  def overrides(self, run: str, seed: int, folder: pathlib.Path) -> list[str]:
    """The `key=value`s of a run whose suite keeps its runs in a folder."""
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
    """The `key=value`s of an evaluation, laid over its run's settings."""
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
    """Settings that name another run's model, with that model's folder."""
    return {
      key: str(model_folder(folder, origin, seed, stage))
      for key, (stage, origin) in self._lent(run).items()
    }

  def _lent(self, run: str) -> dict[str, tuple[str, str]]:
    """Settings that name another run's model: its stage and the run.

    None where a run has a base model of its own: no other starts from it.
    """
    settings, own = self.runs[run].settings, self.runs[run].stages
    if "base" in own or settings.get("model.path"):
      return {}
    origins = {
      key: (stage, self.origin(run, stage))
      for key, stage in (("model.path", "base"), ("model.warmup", "warmup"))
      if stage not in own
    }
    return {key: found for key, found in origins.items() if found[1]}

  def _load(self, where: str, overrides: Sequence[str]) -> schema.Config:
    """The experiment's config with overrides; errors say where in the suite."""
    try:
      return loading.load([self.experiment], overrides)
    except errors.UserError as error:
      text = str(error).removeprefix("command line: ")
      raise errors.UserError(f"{self.file}: {where}: {text}") from error


def run_name(run: str, seed: int) -> str:
  """What a run with a seed is called, and its folder."""
  return f"{run}-seed{seed}"


def evaluation_name(evaluation: Evaluation, seed: int) -> str:
  """What an evaluation with a seed is called."""
  return "-".join((run_name(evaluation.run, seed), *evaluation.stages))


def run_folder(folder: pathlib.Path, run: str, seed: int) -> pathlib.Path:
  """Where a run lies among a suite's runs."""
  return folder / run_name(run, seed)


def model_folder(
  folder: pathlib.Path, run: str, seed: int, stage: str
) -> pathlib.Path:
  """Where a run leaves the model of a stage."""
  return run_folder(folder, run, seed) / "models" / stage


def metric(name: str) -> Metric | None:
  """What is known of a metric; None if there is no such metric."""
  found = re.fullmatch(r"(\w+)@([1-9]\d*)", name)
  if found and found[1] in AT_K:
    return Metric(f"{AT_K[found[1]]}@{found[2]}", evaluated=True)
  return METRICS.get(name)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested settings by their dotted keys."""
  found = {}
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
  """The file of the picture of a figure with this title."""
  words = re.findall(r"\w+", title.lower()) or ["figure"]
  return f"{'-'.join(words)}.png"


def _spelled(value: Any) -> str:
  """A value as YAML and a person read it."""
  if isinstance(value, list):
    return f"[{','.join(map(_spelled, value))}]"
  plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
  return value if plain else json.dumps(value)
