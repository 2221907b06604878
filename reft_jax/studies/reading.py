"""Suite files: from YAML to `suites.Suite`.

A suite is a YAML file. Those in `launch/suites` are packaged, and a command
names them without their path. The parts of a suite:

  name, about   the heading of the report
  experiment    the packaged experiment, or file, that every run starts from
  seeds         every run is repeated with each seed
  settings      laid over the experiment, for every run
  runs          NAME: settings of one run, its `stages` among them. A run
                without a base or warmup stage takes that model from `main`,
                or from the run in `from: NAME`, with the same seed.
  evaluations   {run, stages, reward_model, settings}: reft_jax.evaluate runs
                on these stages' models, with the run's settings and these
                laid over them; reward_model names a run that trains one
  tables        {title, columns, rows, note}: a column is one of
                suites.METRICS, or majority@k, pass@k, rerank@k; a row is
                {label, result: RUN/STAGE, paper: {setting: figure}}
  figures       {title, curves: {LABEL: RUN/STAGE}, over: step|rows|share,
                metric: dev/accuracy} draws what was logged along stages;
                {title, points: {LABEL: {X: REFERENCE}}, x: what X is} draws
                results of several runs. share: false where not in per cent
  claims        {text, above, below, by, paper}, or {text, equal: [one, other],
                within, paper}; a side is a REFERENCE, or one is a number

A REFERENCE is RUN/STAGE, or RUN/STAGE:METRIC. Without METRIC, the `metric` of
the claim or figure holds, or `test`. A key without a value counts as absent.

The dataclasses of `suites` are the format: a field is a key, its type says
what the value must be, and a field without a default must be given.
"""

import dataclasses
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import omegaconf

from reft_jax import errors, files
from reft_jax.config import loading
from reft_jax.studies import suites

SUITES = files.packaged("suites")


def packaged() -> list[str]:
  """The names of the packaged suites."""
  return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(file: str) -> suites.Suite:
  """Reads a suite: a YAML file, or the name of a packaged one.

  Raises:
    UserError: the file does not exist, or a part of it is not as it must be.
  """
  path = files.expand_user(file)
  if not path.is_file() and file in packaged():
    path = SUITES / f"{file}.yaml"
  if not path.is_file():
    raise errors.UserError(
      f"suite {file}: no such file; packaged suites are {', '.join(packaged())}"
    )
  content = omegaconf.OmegaConf.to_container(loading.read_file(file, path))
  place = pathlib.Path()
  return _fields(
    suites.Suite, file, content, file=file, output=place, overrides=()
  )


def _fields(
  kind: Any, where: str, content: Any, metric: str = "test", **known: Any
) -> Any:
  """Reads a mapping into a dataclass; `known` fields are not in the mapping.

  A field `metric` is the metric of all references in the mapping.
  """
  kinds = typing.get_type_hints(kind)
  needed = {
    field.name: field.default is field.default_factory  # Both are missing.
    for field in dataclasses.fields(kind)
    if field.name not in known
  }
  given = {k: v for k, v in _pairs(where, content).items() if v is not None}
  for name in given:
    if name not in needed:
      raise errors.UserError(
        f"{where}: unknown {name!r}; expected {', '.join(needed)}"
      )
  for name, must in needed.items():
    if must and given.get(name, []) == []:
      lack = "empty" if name in given else "missing"
      raise errors.UserError(f"{where}: {name} is {lack}")
  if "metric" in needed:
    metric = given.get("metric", kind.metric)
    metric = given["metric"] = _value(str, f"{where}: metric", metric)
  read = {
    name: _value(kinds[name], f"{where}: {name}", each, metric)
    for name, each in given.items()
  }
  return kind(**known, **read)


def _value(kind: Any, where: str, content: Any, metric: str = "test") -> Any:
  """Reads a value of a dataclass's field into the field's type."""
  if kind in _SCALARS:
    allowed, words = _SCALARS[kind]
    if not allowed(content):
      raise errors.UserError(f"{where}: {content!r} should be {words}")
    return str(content).strip() if kind is str else kind(content)
  if kind == suites.Settings:
    return _settings(where, content)
  if kind == Mapping[str, suites.Run]:
    return _runs(where, content)
  if kind is suites.Reference:
    found = re.fullmatch(r"([^/:]+)/([^/:]+)(?::(.+))?", str(content))
    if not found:
      raise errors.UserError(f"{where}: {content!r} should be RUN/STAGE")
    return suites.Reference(found[1], found[2], found[3] or metric)
  if kind == suites.Side:
    side = suites.Reference if isinstance(content, str) else float
    return _value(side, where, content, metric)
  origin, kinds = typing.get_origin(kind), typing.get_args(kind)
  if origin is tuple:
    items = _list(where, content)
    if ... not in kinds and len(items) != len(kinds):
      raise errors.UserError(f"{where} must hold two results")
    return tuple(
      _value(kinds[0], f"{where}[{number}]", each, metric)
      for number, each in enumerate(items)
    )
  if origin is Mapping:
    keys, values = kinds
    return {
      _value(keys, where, key): _value(values, f"{where}: {key}", each, metric)
      for key, each in _pairs(where, content).items()
      if each is not None or values is not str  # A figure the paper lacks.
    }
  if origin is typing.Literal:
    if _value(str, where, content) not in kinds:
      raise errors.UserError(f"{where} must be one of {', '.join(kinds)}")
    return content
  if origin is types.UnionType:  # Of dataclasses: their first fields differ.
    given = _pairs(where, content)
    fit = (k for k in kinds if dataclasses.fields(k)[0].name in given)
    kind = next(fit, kinds[-1])
  return _fields(kind, where, content)


def _runs(where: str, content: Any) -> dict[str, suites.Run]:
  """The runs by their names, each with the run that lends it models."""
  runs: dict[str, suites.Run] = {}
  for key, each in _pairs(where, content).items():
    name = _value(str, where, key)
    place = f"{where.removesuffix('s')} {name}"
    settings = _settings(place, each)
    source = settings.pop("from", suites.MAIN if suites.MAIN in runs else None)
    if source is not None:
      source = _value(str, f"{place}: from", source)
      if source not in runs:
        raise errors.UserError(
          f"{place}: from: {source} must name a run above it:"
          f" {', '.join(runs) or 'there is none'}"
        )
    stages = _list(f"{place}: stages", settings.get("stages"))
    if not stages:
      raise errors.UserError(f"{place}: stages is empty")
    runs[name] = suites.Run(name, tuple(stages), settings, source)
  return runs


def _settings(where: str, content: Any) -> dict[str, Any]:
  """Settings by their dotted keys, without those that the suite decides."""
  settings = _flat(_pairs(where, content))
  for name in ("name", "seed", "output"):
    if name in settings:
      raise errors.UserError(
        f"{where}: {name} follows from the suite's own name, seeds and folder;"
        " leave it out"
      )
  return settings


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in settings.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found


def _pairs(where: str, content: Any) -> dict[Any, Any]:
  if not isinstance(content, dict):
    raise errors.UserError(f"{where}: expected NAME: ... pairs")
  return content


def _list(where: str, content: Any) -> list[Any]:
  if not isinstance(content, list):
    raise errors.UserError(f"{where}: expected a list")
  return content


def _finite(content: Any) -> bool:
  return type(content) in (int, float) and math.isfinite(content)


# What text, numbers and switches must be, and in words. A number is also text.
_SCALARS: Mapping[Any, tuple[Callable[[Any], bool], str]] = {
  str: (lambda v: type(v) in (str, int, float), "text, in quotes if need be"),
  int: (lambda v: type(v) is int, "a whole number"),
  float: (_finite, "a number"),
  bool: (lambda v: type(v) is bool, "true or false"),
  suites.Margin: (lambda v: _finite(v) and v >= 0, "a number of 0 or more"),
}
