"""Suite files: from YAML to `suites.Suite`.

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
                by reft_jax.evaluate, with the run's settings and these laid
                over them; reward_model names a run that has one
  tables        {title, columns, rows, note}: a column is one of
                suites.METRICS, or majority@k, pass@k, rerank@k; a row is
                {label, result: RUN/STAGE, paper: {setting: figure}}
  figures       {title, curves: {LABEL: RUN/STAGE}, over: step|rows|share,
                metric: dev/accuracy} draws what was logged along stages;
                {title, points: {LABEL: {X: REFERENCE}}, x: what X is} draws
                results of several runs. share: false where not in per cent
  claims        {text, above, below, by, paper}, or {text, equal: [one, other],
                within, paper}; each side is a number or a REFERENCE

A REFERENCE is RUN/STAGE, or RUN/STAGE:METRIC where it is not about `metric`,
which is `test` unless the claim or figure says otherwise.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import omegaconf

from reft_jax import config as config_lib
from reft_jax import errors, files
from reft_jax.studies import suites

SUITES = files.packaged("suites")


def packaged() -> list[str]:
  """The names of the suites that travel with the package."""
  return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(file: str) -> suites.Suite:
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


def _suite(file: str, content: Mapping[str, Any]) -> suites.Suite:
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
  runs: dict[str, suites.Run] = {}
  for name, each in _mapping(f"{file}: runs", top["runs"]).items():
    runs[name] = _run(f"{file}: run {name}", name, each, runs)

  def parts(name: str, read: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    where = f"{file}: {name}"
    some = enumerate(_list(where, top[name]))
    return tuple(read(f"{where}[{number}]", each) for number, each in some)

  seeds = _some(f"{file}: seeds", top["seeds"])
  if not all(type(seed) is int for seed in seeds):
    raise errors.UserError(f"{file}: seeds must be whole numbers")
  if len(set(seeds)) < len(seeds):
    raise errors.UserError(f"{file}: seeds: each can be run once")
  return suites.Suite(
    file=file,
    name=str(top["name"]),
    about=str(top["about"]).strip(),
    experiment=str(top["experiment"]),
    seeds=seeds,
    settings=_settings(f"{file}: settings", top["settings"]),
    runs=runs,
    evaluations=parts("evaluations", _evaluation),
    tables=parts("tables", _table),
    figures=parts("figures", _figure),
    claims=parts("claims", _claim),
  )


def _run(
  where: str, name: str, content: Any, above: Mapping[str, suites.Run]
) -> suites.Run:
  settings = dict(_settings(where, content))
  source = settings.pop("from", suites.MAIN if suites.MAIN in above else None)
  if source is not None and source not in above:
    raise errors.UserError(
      f"{where}: from: {source} must name a run above it:"
      f" {', '.join(above) or 'there is none'}"
    )
  stages = _some(f"{where}: stages", settings.get("stages"))
  return suites.Run(name, stages, settings, source)


def _evaluation(where: str, content: Any) -> suites.Evaluation:
  fields = _fields(
    where, content, ("run", "stages"), reward_model=None, settings={}
  )
  fields["stages"] = _some(f"{where}: stages", fields["stages"])
  fields["settings"] = _settings(f"{where}: settings", fields["settings"])
  return suites.Evaluation(**fields)


def _table(where: str, content: Any) -> suites.Table:
  fields = _fields(where, content, ("title", "columns", "rows"), note="")
  rows = []
  for number, each in enumerate(_list(f"{where}: rows", fields["rows"])):
    place = f"{where}: rows[{number}]"
    row = _fields(place, each, ("label", "result"), paper={})
    result = _reference(place, row["result"], "test")
    paper = _mapping(f"{place}: paper", row["paper"])
    rows.append(suites.Row(row["label"], result.run, result.stage, paper))
  columns = _some(f"{where}: columns", fields["columns"])
  return suites.Table(
    fields["title"], columns, tuple(rows), fields["note"].strip()
  )


def _figure(where: str, content: Any) -> suites.Curves | suites.Points:
  if "curves" in _mapping(where, content):
    fields = _fields(
      where,
      content,
      ("title", "curves"),
      metric="dev/accuracy",
      over="step",
      share=True,
    )
    if fields["over"] not in suites.OVER:
      raise errors.UserError(
        f"{where}: over must be one of {', '.join(suites.OVER)}"
      )
    lines = {
      label: _reference(where, result, fields["metric"])
      for label, result in _mapping(where, fields["curves"]).items()
    }
    return suites.Curves(
      fields["title"], fields["over"], lines, fields["share"]
    )
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
  return suites.Points(fields["title"], fields["x"], lines, fields["share"])


def _claim(where: str, content: Any) -> suites.Claim:
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
  return suites.Claim(fields["text"].strip(), one, other, by, within, paper)


def _reference(where: str, text: Any, metric: str) -> suites.Reference:
  """RUN/STAGE or RUN/STAGE:METRIC."""
  found = re.fullmatch(r"([^/:]+)/([^/:]+)(?::(.+))?", str(text))
  if not found:
    raise errors.UserError(f"{where}: {text!r} should be RUN/STAGE")
  return suites.Reference(found[1], found[2], found[3] or metric)


def _settings(where: str, content: Any) -> dict[str, Any]:
  """Settings of runs or evaluations, without what the suite itself says."""
  content = _mapping(where, content)
  for name in ("name", "seed", "output"):
    if name in content:
      raise errors.UserError(
        f"{where}: {name} follows from the suite's own name, seeds and folder;"
        " leave it out"
      )
  return content


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


def _some(where: str, content: Any) -> tuple[Any, ...]:
  """A list that is not empty."""
  if not _list(where, content):
    raise errors.UserError(f"{where} is empty")
  return tuple(content)


def _number(where: str, content: Any) -> float:
  if not isinstance(content, int | float):
    raise errors.UserError(f"{where}: {content!r} should be a number")
  return float(content)
