"""Suites: what a reproduction runs, and what it tables, draws and claims.

A suite is a YAML file; those in `launch/suites` travel inside the package and
can be named without their path. Its parts:

  name, about   what the report is headed with
  experiment    the packaged experiment, or file, under every run
  seeds         every run is repeated with each
  settings      laid over the experiment, for every run
  runs          NAME: settings of one run, its `stages` among them. A run that
                lacks the base or warmup stage takes that model from `main`,
                or from the run that `from: NAME` says, of the same seed.
  evaluations   {run, stages, reward_model, settings}: of these stages' models
                by reft_jax.evaluate; reward_model names a run that has one
  tables        {title, columns, rows, note}: a column is one of METRICS, or
                majority@k, pass@k, rerank@k; a
                row is {label, result: RUN/STAGE, paper: {setting: figure}}
  figures       {title, curves: {LABEL: RUN/STAGE}, over: step|rows|share,
                metric: dev/accuracy} draws what was logged along stages;
                {title, points: {LABEL: {X: REFERENCE}}, x: what X is} draws
                results of several runs. share: false where not in per cent
  claims        {text, above, below, by, paper}, or {text, equal: [one, other],
                within, paper}; each side is a number or a REFERENCE

A REFERENCE is RUN/STAGE, or RUN/STAGE:METRIC where it is not about `metric`,
which is `test` unless the claim or figure says otherwise.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import omegaconf

from reft_jax import config as config_lib
from reft_jax import errors

# In a checkout the suites lie beside the launch scripts; installed, they lie
# inside this package.
_PACKAGED = pathlib.Path(__file__).resolve().parent.parent / "suites"
SUITES = (
  _PACKAGED
  if _PACKAGED.is_dir()
  else _PACKAGED.parent.parent / "launch" / "suites"
)
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
_AT_K = {"majority": "vote", "pass": "pass", "rerank": "rerank"}


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
  """A run that every seed repeats; `source` lends it the stages it lacks."""

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
  """A suite that has been read; `check` says if it can be run."""

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
    lent = self._lent_models(run, seed, folder)
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
  ) -> config_lib.Config:
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

  def check(self, overrides: Sequence[str] = ()) -> None:
    """Holds the suite to what its runs and evaluations will leave behind.

    Raises:
      UserError: a setting, file, run, stage or metric that there is not.
    """
    for run in self.runs.values():
      self._check_run(run, overrides)
    samples = self._samples(overrides)
    for figure in self.figures:
      for line in figure.lines.values() if isinstance(figure, Curves) else ():
        self._check_stage(f"figure {figure.title!r}", line.run, line.stage)
    for where, reference in self._references():
      self._check_reference(where, reference, samples)

  def _check_run(self, run: Run, overrides: Sequence[str]) -> None:
    folder, seed = pathlib.Path(), self.seeds[0]
    config = self.config(run.name, seed, folder, overrides)
    lent = self._lent_models(run.name, seed, folder)
    # Models of other runs are not there yet, and need not be.
    there = {
      key: None if lent.get(f"model.{key}") == path else path
      for key, path in vars(config.model).items()
    }
    try:
      config_lib.validate(config)
      config_lib.check_files(
        dataclasses.replace(config, model=config_lib.ModelConfig(**there))
      )
    except errors.UserError as error:
      raise errors.UserError(f"{self.file}: run {run.name}: {error}") from error

  def _lent(self, run: str) -> dict[str, tuple[str, str]]:
    """Settings that name another run's model: its stage and the run.

    None where a run has a base model of its own: no other starts from it.
    """
    settings, own = self.runs[run].settings, self.runs[run].stages
    if "base" in own or settings.get("model", {}).get("path"):
      return {}
    origins = {
      key: (stage, self.origin(run, stage))
      for key, stage in (("model.path", "base"), ("model.warmup", "warmup"))
      if stage not in own
    }
    return {key: found for key, found in origins.items() if found[1]}

  def _lent_models(
    self, run: str, seed: int, folder: pathlib.Path
  ) -> dict[str, str]:
    """The same with the folders of the models."""
    return {
      key: str(model_folder(folder, origin, seed, stage))
      for key, (stage, origin) in self._lent(run).items()
    }

  def _samples(self, overrides: Sequence[str]) -> dict[Any, set[str]]:
    """What evaluations will know of a model, by its run and stage."""
    known: dict[Any, set[str]] = {}
    for number, evaluation in enumerate(self.evaluations):
      where = f"evaluations[{number}]"
      for stage in (REWARD_MODEL,) if evaluation.reward_model else ():
        self._check_stage(where, evaluation.reward_model, stage)
      settings = self._load(
        where,
        [
          *written(self.settings),
          *written(evaluation.settings),
          *overrides,
        ],
      ).evaluation
      names = {"greedy", "sampled", "upper_bound"}
      for k in settings.at or ():
        if k > settings.samples:
          raise errors.UserError(
            f"{self.file}: {where}: evaluation.at={k} of only"
            f" evaluation.samples={settings.samples}"
          )
        names |= {f"majority@{k}", f"pass@{k}"}
        if evaluation.reward_model or settings.reward_model:
          names.add(f"rerank@{k}")
      for stage in evaluation.stages:
        self._check_stage(where, evaluation.run, stage)
        known.setdefault((evaluation.run, stage), set()).update(names)
    return known

  def _references(self) -> Iterator[tuple[str, Reference]]:
    """Every result that is tabled, drawn or claimed, and where."""
    for table in self.tables:
      for row in table.rows:
        for column in table.columns:
          where = f"table {table.title!r}, row {row.label!r}"
          yield where, Reference(row.run, row.stage, column)
    for figure in self.figures:
      for line in figure.lines.values() if isinstance(figure, Points) else ():
        for reference in line.values():
          yield f"figure {figure.title!r}", reference
    for claim in self.claims:
      for side in claim.sides:
        if isinstance(side, Reference):
          yield f"claim {claim.text!r}", side

  def _check_reference(
    self, where: str, reference: Reference, known: Mapping[Any, set[str]]
  ) -> None:
    self._check_stage(where, reference.run, reference.stage)
    name = reference.metric
    if metric(name) is None:
      raise errors.UserError(
        f"{self.file}: {where}: unknown metric {name!r}; there are"
        f" {', '.join(METRICS)} and {', '.join(f'{m}@k' for m in _AT_K)}"
      )
    place = reference.run, reference.stage
    if metric(name).evaluated and name not in known.get(place, ()):
      raise errors.UserError(
        f"{self.file}: {where}: no evaluation of {'/'.join(place)} knows"
        f" {name}; add one, its k to evaluation.at, or a reward_model to rerank"
      )

  def _check_stage(self, where: str, run: str, stage: str) -> None:
    if run not in self.runs:
      raise errors.UserError(
        f"{self.file}: {where}: no run {run!r}; there are"
        f" {', '.join(self.runs)}"
      )
    if stage not in self.runs[run].stages:
      raise errors.UserError(
        f"{self.file}: {where}: run {run} has no stage {stage!r}; it has"
        f" {', '.join(self.runs[run].stages)}"
      )

  def _load(self, where: str, overrides: Sequence[str]) -> config_lib.Config:
    """The experiment's config with overrides; errors say where in the suite."""
    try:
      return config_lib.load([self.experiment], overrides)
    except errors.UserError as error:
      text = str(error).removeprefix("command line: ")
      raise errors.UserError(f"{self.file}: {where}: {text}") from error


def run_folder(folder: pathlib.Path, run: str, seed: int) -> pathlib.Path:
  """Where a run lies among a suite's runs."""
  return folder / f"{run}-seed{seed}"


def model_folder(
  folder: pathlib.Path, run: str, seed: int, stage: str
) -> pathlib.Path:
  """Where a run leaves the model of a stage."""
  return run_folder(folder, run, seed) / "models" / stage


def metric(name: str) -> Metric | None:
  """What is known of a metric; None if there is no such metric."""
  found = re.fullmatch(r"(\w+)@([1-9]\d*)", name)
  if found and found[1] in _AT_K:
    return Metric(f"{_AT_K[found[1]]}@{found[2]}", evaluated=True)
  return METRICS.get(name)


def written(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
  """Nested settings as the `key=value`s of a command line."""
  overrides = []
  for key, value in settings.items():
    if isinstance(value, Mapping):
      overrides += written(value, f"{prefix}{key}.")
    else:
      overrides.append(f"{prefix}{key}={_spelled(value)}")
  return overrides


def _spelled(value: Any) -> str:
  """A value as YAML and a person read it."""
  if isinstance(value, list):
    return f"[{','.join(map(_spelled, value))}]"
  plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
  return value if plain else json.dumps(value)


def packaged() -> list[str]:
  """The names of the suites that travel with the package."""
  return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(file: str) -> Suite:
  """Reads a suite: a YAML file, or the name of a packaged one.

  Raises:
    UserError: it does not exist, or is not written as a suite is.
  """
  path = config_lib.expanded(file)
  if not path.is_file() and file in packaged():
    path = SUITES / f"{file}.yaml"
  if not path.is_file():
    raise errors.UserError(
      f"suite {file}: no such file; packaged suites are {', '.join(packaged())}"
    )
  content = omegaconf.OmegaConf.to_container(config_lib.read_file(file, path))
  return _suite(file, content)


def _suite(file: str, content: Mapping[str, Any]) -> Suite:
  """A file's content, understood."""
  top = _fields(
    file,
    content,
    ("name", "about", "experiment", "seeds", "runs"),
    settings={},
    evaluations=[],
    tables=[],
    figures=[],
    claims=[],
  )
  runs: dict[str, Run] = {}
  for name, each in _mapping(f"{file}: runs", top["runs"]).items():
    runs[name] = _run(f"{file}: run {name}", name, each, runs)

  def parts(name: str, read: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    where = f"{file}: {name}"
    some = enumerate(_list(where, top[name]))
    return tuple(read(f"{where}[{number}]", each) for number, each in some)

  seeds = _list(f"{file}: seeds", top["seeds"])
  if not all(type(seed) is int for seed in seeds) or not seeds:
    raise errors.UserError(f"{file}: seeds must be whole numbers")
  return Suite(
    file=file,
    name=str(top["name"]),
    about=str(top["about"]).strip(),
    experiment=str(top["experiment"]),
    seeds=seeds,
    settings=_mapping(f"{file}: settings", top["settings"]),
    runs=runs,
    evaluations=parts("evaluations", _evaluation),
    tables=parts("tables", _table),
    figures=parts("figures", _figure),
    claims=parts("claims", _claim),
  )


def _run(where: str, name: str, content: Any, above: Mapping[str, Run]) -> Run:
  settings = dict(_mapping(where, content))
  source = settings.pop("from", MAIN if MAIN in above else None)
  if source is not None and source not in above:
    raise errors.UserError(
      f"{where}: from: {source} must name a run above it:"
      f" {', '.join(above) or 'there is none'}"
    )
  stages = _list(f"{where}: stages", settings.get("stages"))
  return Run(name, stages, settings, source)


def _evaluation(where: str, content: Any) -> Evaluation:
  fields = _fields(
    where, content, ("run", "stages"), reward_model=None, settings={}
  )
  fields["stages"] = _list(f"{where}: stages", fields["stages"])
  return Evaluation(**fields)


def _table(where: str, content: Any) -> Table:
  fields = _fields(where, content, ("title", "columns", "rows"), note="")
  rows = []
  for number, each in enumerate(_list(f"{where}: rows", fields["rows"])):
    place = f"{where}: rows[{number}]"
    row = _fields(place, each, ("label", "result"), paper={})
    result = _reference(place, row["result"], "test")
    paper = _mapping(f"{place}: paper", row["paper"])
    rows.append(Row(row["label"], result.run, result.stage, paper))
  columns = _list(f"{where}: columns", fields["columns"])
  return Table(fields["title"], columns, tuple(rows), fields["note"].strip())


def _figure(where: str, content: Any) -> Curves | Points:
  if "curves" in _mapping(where, content):
    fields = _fields(
      where,
      content,
      ("title", "curves"),
      metric="dev/accuracy",
      over="step",
      share=True,
    )
    if fields["over"] not in OVER:
      raise errors.UserError(f"{where}: over must be one of {', '.join(OVER)}")
    lines = {
      label: _reference(where, result, fields["metric"])
      for label, result in _mapping(where, fields["curves"]).items()
    }
    return Curves(fields["title"], fields["over"], lines, fields["share"])
  fields = _fields(
    where, content, ("title", "points", "x"), metric="test", share=True
  )
  lines = {}
  for label, line in _mapping(where, fields["points"]).items():
    points = _mapping(f"{where}: {label}", line)
    lines[label] = {
      _number(where, x): _reference(where, result, fields["metric"])
      for x, result in points.items()
    }
  return Points(fields["title"], fields["x"], lines, fields["share"])


def _claim(where: str, content: Any) -> Claim:
  if "equal" in _mapping(where, content):
    fields = _fields(
      where, content, ("text", "equal", "within"), metric="test", paper=""
    )
    sides = _list(f"{where}: equal", fields["equal"])
    by, within = 0.0, _number(where, fields["within"])
  else:
    fields = _fields(
      where,
      content,
      ("text", "above", "below"),
      metric="test",
      by=0.0,
      paper="",
    )
    sides = fields["above"], fields["below"]
    by, within = _number(where, fields["by"]), None
  if len(sides) != 2:
    raise errors.UserError(f"{where}: equal must hold two results")
  one, other = (
    _reference(where, side, fields["metric"])
    if isinstance(side, str)
    else _number(where, side)
    for side in sides
  )
  paper = str(fields["paper"]).strip()
  return Claim(fields["text"].strip(), one, other, by, within, paper)


def _reference(where: str, text: Any, metric: str) -> Reference:
  """RUN/STAGE or RUN/STAGE:METRIC."""
  found = re.fullmatch(r"([^/:]+)/([^/:]+)(?::(.+))?", str(text))
  if not found:
    raise errors.UserError(f"{where}: {text!r} should be RUN/STAGE")
  return Reference(found[1], found[2], found[3] or metric)


def _fields(
  where: str, content: Any, needed: Sequence[str], **defaults: Any
) -> dict[str, Any]:
  """A mapping that holds what is needed and nothing unknown."""
  content = _mapping(where, content)
  names = (*needed, *defaults)
  for name in content:
    if name not in names:
      raise errors.UserError(
        f"{where}: unknown {name!r}; expected {', '.join(names)}"
      )
  for name in needed:
    if name not in content:
      raise errors.UserError(f"{where}: {name} is missing")
  return {**defaults, **content}


def _mapping(where: str, content: Any) -> dict[Any, Any]:
  if not isinstance(content, dict):
    raise errors.UserError(f"{where}: expected NAME: ... pairs")
  return content


def _list(where: str, content: Any) -> tuple[Any, ...]:
  if not isinstance(content, list):
    raise errors.UserError(f"{where}: expected a list")
  return tuple(content)


def _number(where: str, content: Any) -> float:
  if not isinstance(content, int | float):
    raise errors.UserError(f"{where}: {content!r} should be a number")
  return float(content)
