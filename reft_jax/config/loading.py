"""Settings from YAML files and overrides, and back to YAML.

An experiment is a YAML file that is laid over the defaults. Those in
`launch/experiments` are part of the package and are known by their names.
"""

import dataclasses
import difflib
import functools
import logging
import pathlib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import omegaconf
import yaml

from reft_jax import errors
from reft_jax import files as files_lib
from reft_jax.config import schema

EXPERIMENTS = files_lib.packaged("experiments")

DEFAULT_EXPERIMENT = "embedded"
_COMMAND_LINE = "command line"
# The nested mapping of a file or an override, and its dotted keys and values.
Layer = dict[Any, Any]
Leaves = Iterable[tuple[str, Any]]
_OmegaConfError = omegaconf.errors.OmegaConfBaseException
_logger = logging.getLogger(__name__)
_type_hints = functools.cache(typing.get_type_hints)


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> schema.Config:
  """Lays files, then `key=value` overrides, over the defaults.

  The result has the right types; `checks.validate` checks its values.

  Raises:
    UserError: a file is missing or is not YAML, a setting is unknown, or a
      value has the wrong type.
  """
  tree = omegaconf.OmegaConf.structured(schema.Config)
  _unlock(tree)
  for file in files:
    for where, layer in _layers(file):
      _overlay(tree, _leaves(layer), where)
  layers = [_read_override(override) for override in overrides]
  leaves = [leaf for layer in layers for leaf in _leaves(layer)]
  _overlay(tree, leaves, _COMMAND_LINE)
  try:
    return typing.cast(schema.Config, omegaconf.OmegaConf.to_object(tree))
  except _OmegaConfError as error:
    raise errors.UserError(_first_line(error)) from error


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
  """Every setting below a node: dotted key, dataclass field and value."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from settings(value, f"{prefix}{field.name}.")
    else:
      yield f"{prefix}{field.name}", field, value


def identity(config: schema.Config) -> dict[str, Any]:
  """The settings that must not change when a run is resumed."""
  return {
    key: value
    for key, field, value in settings(config)
    if not field.metadata["may_change"]
  }


def to_yaml(config: schema.Config) -> str:
  """The whole tree as YAML that `load` reads back to an equal config."""
  return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def show(value: Any) -> str:
  """A setting's value as it is written in an override."""
  if isinstance(value, tuple | list):
    return f"[{', '.join(map(show, value))}]"
  if value is None:
    return "null"
  return str(value).lower() if isinstance(value, bool) else str(value)


def experiments() -> list[str]:
  """The names of the packaged experiments."""
  return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def _layers(
  file: str, below: tuple[str, ...] = ()
) -> Iterator[tuple[str, Layer]]:
  """A file's settings after those it `extends`; those `below` extend it."""
  if file in below:
    raise errors.UserError(f"{' extends '.join((*below, file))}: a circle")
  path = _found(file, below)
  layer = _plain(read_file(file, path))
  parents = layer.pop("extends", None) or []
  if not isinstance(parents, list):
    parents = [parents]
  for parent in map(str, parents):
    beside = path.parent / parent
    known = str(beside) if beside.is_file() else parent
    yield from _layers(known, (*below, file))
  yield file, layer


def _found(file: str, below: Sequence[str]) -> pathlib.Path:
  """Where a file lies that a command line or another file names."""
  paths = [files_lib.expand_user(file), EXPERIMENTS / f"{file}.yaml"]
  if below:
    paths.append(EXPERIMENTS / f"parts/{file}.yaml")
  for path in paths:
    if path.is_file():
      return path
  raise errors.UserError(
    f"{f'{below[-1]}: extends' if below else '--config'} {file}: no such"
    f" file; packaged experiments are {', '.join(experiments())}"
  )


def read_file(file: str, path: pathlib.Path) -> omegaconf.DictConfig:
  """A YAML file's mapping; errors call it `file`."""
  try:
    layer = omegaconf.OmegaConf.load(path)
  except yaml.MarkedYAMLError as error:
    line = error.problem_mark.line + 1 if error.problem_mark else "?"
    raise errors.UserError(
      f"{file} line {line}: not valid YAML: {error.problem}"
    ) from error
  except (OSError, ValueError, yaml.YAMLError, _OmegaConfError) as error:
    raise errors.UserError(f"{file}: {_first_line(error)}") from error
  if not isinstance(layer, omegaconf.DictConfig):
    raise errors.UserError(f"{file}: expected a mapping of settings")
  return layer


def _plain(layer: omegaconf.DictConfig) -> Layer:
  return typing.cast(Layer, omegaconf.OmegaConf.to_container(layer))


def _read_override(override: str) -> Layer:
  """The mapping that a `key=value` stands for."""
  try:
    return _plain(omegaconf.OmegaConf.from_dotlist([override]))
  except (yaml.YAMLError, _OmegaConfError) as error:
    raise errors.UserError(
      f"{_COMMAND_LINE}: cannot read {override!r}; quote its value"
    ) from error


def _unlock(node: omegaconf.DictConfig) -> None:
  """Lets a tree of frozen dataclasses be changed while it is put together."""
  omegaconf.OmegaConf.set_readonly(node, False)
  for child in node.values():
    if isinstance(child, omegaconf.DictConfig):
      _unlock(child)


def _overlay(tree: omegaconf.DictConfig, leaves: Leaves, where: str) -> None:
  """Lays one file, or all overrides, over the tree, setting by setting."""
  for key, value in _renamed(leaves, where):
    kind = type_of(key, where)
    if dataclasses.is_dataclass(kind):
      if value in (None, {}):  # A group whose settings are all commented out.
        continue
      raise errors.UserError(
        f"{where}: {key} is a group, set {key}.{_names(kind)[0]} and so on"
      )
    nullable = types.NoneType in typing.get_args(kind)
    meant = None if nullable and value in ("None", "none") else value
    if key == "distributed" and value is False:
      meant = "off"  # YAML reads the word as a boolean.
    try:
      omegaconf.OmegaConf.update(tree, key, meant)
    except _OmegaConfError as error:
      raise errors.UserError(
        f"{where}: {key}={show(value)} should be {_expected(kind)}"
      ) from error


def _leaves(layer: Layer, prefix: str = "") -> Leaves:
  for key, value in layer.items():
    if isinstance(value, dict) and value:
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _renamed(leaves: Leaves, where: str) -> Leaves:
  """Settings by their present names; warns of old ones."""
  given: dict[str, str] = {}
  for key, value in leaves:
    name = schema.ALIASES.get(key, key)
    if given.setdefault(name, key) != key:
      raise errors.UserError(
        f"{where}: {key} and {given[name]} are the same setting; keep {name}"
      )
    if name != key:
      _warn_of_old_name(key, name)
    yield name, value


@functools.cache
def _warn_of_old_name(old: str, new: str) -> None:
  """Warns once per process."""
  _logger.warning(
    "%s is now called %s; the old name works in this version only.", old, new
  )


def _names(kind: Any) -> list[str]:
  """The names in a group."""
  return [field.name for field in dataclasses.fields(kind)]


def type_of(key: str, where: str) -> Any:
  """The declared type of a dotted key.

  Raises UserError, which names `where` it was read, if there is none.
  """
  kind, group = schema.Config, ""
  for part in key.split("."):
    names = _names(kind) if dataclasses.is_dataclass(kind) else []
    if part not in names:
      last = key.rpartition(".")[2]
      close = [
        other
        for other, _, _ in settings(schema.Config())
        if other.rpartition(".")[2] == last
      ] or [group + name for name in difflib.get_close_matches(part, names)]
      if close:
        remedy = f"did you mean {' or '.join(close)}?"
      elif names:
        remedy = f"{group[:-1] or 'the top'} holds {', '.join(names)}"
      else:
        remedy = f"{group[:-1]} is not a group"
      raise errors.UserError(f"{where}: unknown setting {key}; {remedy}")
    kind = _type_hints(kind)[part]
    group += f"{part}."
  return kind


def _expected(kind: Any) -> str:
  """A type in words."""
  if typing.get_origin(kind) is Literal:
    return "one of " + ", ".join(typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    return f"a list (each {_expected(typing.get_args(kind)[0])})"
  if typing.get_origin(kind) in (types.UnionType, typing.Union):
    members = (k for k in typing.get_args(kind) if k is not types.NoneType)
    return " or ".join([*map(_expected, members), "null"])
  words = {bool: "true or false", int: "a whole number", float: "a number"}
  return words.get(kind, "text")


def _first_line(error: Exception) -> str:
  return str(error).partition("\n")[0]
