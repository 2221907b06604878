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
                within, paper}; a side is a REFERENCE, or one is a number

A REFERENCE is RUN/STAGE, or RUN/STAGE:METRIC where it is not about `metric`,
which is `test` unless the claim or figure says otherwise. What is left empty is
as if it were not there.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import omegaconf

from reft_jax import errors, files
from reft_jax.config import loading
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
  path = files.expand_user(file)
  if not path.is_file() and file in packaged():
    path = SUITES / f"{file}.yaml"
  if not path.is_file():
    raise errors.UserError(
      f"suite {file}: no such file; packaged suites are {', '.join(packaged())}"
    )
  content = omegaconf.OmegaConf.to_container(loading.read_file(file, path))
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
  for key, each in _mapping(f"{file}: runs", top["runs"]).items():
    name = _text(f"{file}: runs", key)
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
    name=_text(f"{file}: name", top["name"]),
    about=_text(f"{file}: about", top["about"]),
    experiment=_text(f"{file}: experiment", top["experiment"]),
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
  settings = _settings(where, content)
  source = settings.pop("from", suites.MAIN if suites.MAIN in above else None)
  if source is not None:
    source = _text(f"{where}: from", source)
  if source not in (None, *above):
    raise errors.UserError(
      f"{where}: from: {source} must name a run above it:"
      f" {', '.join(above) or 'there is none'}"
    )
  stages = _some(f"{where}: stages", settings.get("stages"))
  return suites.Run(name, stages, settings, source)


def _evaluation(where: str, content: Any) -> suites.Evaluation:
  fields = _fields(
    where, content, ("run", "stages"), reward_model="", settings={}
  )
  judge = _text(f"{where}: reward_model", fields["reward_model"])
  return suites.Evaluation(
    run=_text(f"{where}: run", fields["run"]),
    stages=_some(f"{where}: stages", fields["stages"]),
    reward_model=judge or None,
    settings=_settings(f"{where}: settings", fields["settings"]),
  )


def _table(where: str, content: Any) -> suites.Table:
  fields = _fields(where, content, ("title", "columns", "rows"), note="")
  rows = []
  for number, each in enumerate(_list(f"{where}: rows", fields["rows"])):
    place = f"{where}: rows[{number}]"
    row = _fields(place, each, ("label", "result"), paper={})
    result = _reference(place, row["result"], "test")
    paper = _filled(_mapping(f"{place}: paper", row["paper"]))
    label = _text(f"{place}: label", row["label"])
    rows.append(suites.Row(label, result.run, result.stage, paper))
  columns = f"{where}: columns"
  return suites.Table(
    title=_text(f"{where}: title", fields["title"]),
    columns=tuple(
      _text(columns, each) for each in _some(columns, fields["columns"])
    ),
    rows=tuple(rows),
    note=_text(f"{where}: note", fields["note"]),
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
    title, metric, share = _drawn(where, fields)
    over = _text(f"{where}: over", fields["over"])
    if over not in suites.OVER:
      raise errors.UserError(
        f"{where}: over must be one of {', '.join(suites.OVER)}"
      )
    lines = {
      _text(where, label): _reference(where, result, metric)
      for label, result in _mapping(where, fields["curves"]).items()
    }
    return suites.Curves(title, over, lines, share)
  fields = _fields(
    where, content, ("title", "points", "x"), metric="test", share=True
  )
  title, metric, share = _drawn(where, fields)
  lines = {}
  for label, line in _mapping(where, fields["points"]).items():
    points = _mapping(f"{where}: {label}", line)
    lines[_text(where, label)] = {
      _number(where, x): _reference(where, result, metric)
      for x, result in points.items()
    }
  return suites.Points(title, _text(f"{where}: x", fields["x"]), lines, share)


def _drawn(where: str, fields: Mapping[str, Any]) -> tuple[str, str, bool]:
  """A figure's title and metric, and whether it is shown in per cent."""
  share = fields["share"]
  if not isinstance(share, bool):
    raise errors.UserError(f"{where}: share: {share!r} should be true or false")
  return (
    _text(f"{where}: title", fields["title"]),
    _text(f"{where}: metric", fields["metric"]),
    share,
  )


def _claim(where: str, content: Any) -> suites.Claim:
  if "equal" in _mapping(where, content):
    fields = _fields(
      where, content, ("text", "equal", "within"), metric="test", paper=""
    )
    sides = _list(f"{where}: equal", fields["equal"])
    by, within = 0.0, _margin(f"{where}: within", fields["within"])
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
    by, within = _margin(f"{where}: by", fields["by"]), None
  if len(sides) != 2:
    raise errors.UserError(f"{where}: equal must hold two results")
  metric = _text(f"{where}: metric", fields["metric"])
  one, other = (
    _reference(where, side, metric)
    if isinstance(side, str)
    else _number(where, side)
    for side in sides
  )
  if isinstance(one, float) and isinstance(other, float):
    raise errors.UserError(
      f"{where}: compares {one:g} and {other:g}, which no run decides; one of"
      " them should be RUN/STAGE"
    )
  text = _text(f"{where}: text", fields["text"])
  paper = _text(f"{where}: paper", fields["paper"])
  return suites.Claim(text, one, other, by, within, paper)


def _reference(where: str, text: Any, metric: str) -> suites.Reference:
  """RUN/STAGE or RUN/STAGE:METRIC."""
  found = re.fullmatch(r"([^/:]+)/([^/:]+)(?::(.+))?", str(text))
  if not found:
    raise errors.UserError(f"{where}: {text!r} should be RUN/STAGE")
  return suites.Reference(found[1], found[2], found[3] or metric)


def _settings(where: str, content: Any) -> dict[str, Any]:
  """Settings by their dotted keys, without what the suite itself says."""
  settings = suites.flat(_mapping(where, content))
  for name in ("name", "seed", "output"):
    if name in settings:
      raise errors.UserError(
        f"{where}: {name} follows from the suite's own name, seeds and folder;"
        " leave it out"
      )
  return settings


def _fields(
  where: str, content: Any, needed: Sequence[str], **defaults: Any
) -> dict[str, Any]:
  """A mapping that holds what is needed and nothing unknown."""
  content = _filled(_mapping(where, content))
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


def _filled(content: Mapping[Any, Any]) -> dict[Any, Any]:
  """What is not left empty."""
  return {name: each for name, each in content.items() if each is not None}


def _list(where: str, content: Any) -> tuple[Any, ...]:
  if not isinstance(content, list):
    raise errors.UserError(f"{where}: expected a list")
  return tuple(content)


def _some(where: str, content: Any) -> tuple[Any, ...]:
  """A list that is not empty."""
  if not _list(where, content):
    raise errors.UserError(f"{where} is empty")
  return tuple(content)


def _text(where: str, content: Any) -> str:
  """Text, or a number to be shown as one."""
  if isinstance(content, bool) or not isinstance(content, str | int | float):
    raise errors.UserError(
      f"{where}: {content!r} should be text, in quotes if need be"
    )
  return str(content).strip()


def _number(where: str, content: Any) -> float:
  number = isinstance(content, int | float) and not isinstance(content, bool)
  if not number or not math.isfinite(content):
    raise errors.UserError(f"{where}: {content!r} should be a number")
  return float(content)


def _margin(where: str, content: Any) -> float:
  if _number(where, content) < 0:
    raise errors.UserError(f"{where}: {content} should be 0 or more")
  return float(content)
