"""The command line of every command: paths, options, settings, help."""

import argparse
import collections
import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from reft_jax import errors, files
from reft_jax.config import loading, schema

_REAL_EXPERIMENT = "gsm8k_nl_codellama_7b"


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
  """A `Value.read` for numbers above 0."""

  def read(text: str) -> Any:
    number = kind(text)
    if not number > 0:  # Also nan.
      raise ValueError
    return number

  return read


@dataclasses.dataclass(frozen=True)
class Value:
  """What follows an option: its name in the usage, and in errors ("a name").

  `read` converts the text and raises ValueError for a bad one; `choices` are
  all values that are possible, if they can be listed.
  """

  name: str
  wanted: str
  read: Callable[[str], Any] = str
  choices: Collection[str] | None = None


FOLDER = Value("FOLDER", "a folder", files.expand_user)
NAME = Value("NAME", "a name")
INTEGER = Value("N", "a whole number", int)
COUNT = Value("N", "a whole number above 0", positive(int))


@dataclasses.dataclass(frozen=True)
class Option:
  """An option of a command.

  Attributes:
    flag: such as `--target`.
    text: the line of help.
    value: what follows it; None for a switch.
    default: the value without the option; a tuple if it may be repeated.
    listed: whether several numbers may follow it, as in `--seeds 1 2`.
    action: what a switch sets `Command.action` to, if it does.
  """

  flag: str
  text: str
  value: Value | None = None
  default: Any = None
  listed: bool = False
  action: str = ""

  @property
  def repeated(self) -> bool:
    """Whether it may be repeated."""
    return isinstance(self.default, tuple)

  @property
  def usage(self) -> str:
    """The option with the name of its value."""
    if self.value is None:
      return self.flag
    return f"{self.flag} {self.value.name}{'...' * self.listed}"


CONFIG = Option(
  "--config",
  "read settings from a file; later files win, then key=value",
  Value("FILE", "a file"),
  (),
)
PRINT_CONFIG = Option(
  "--print-config",
  "print all settings as YAML, and do nothing else",
  action="print-config",
)
DRY_RUN = Option(
  "--dry-run", "check everything, and do nothing else", action="dry-run"
)
RUN_OPTIONS = (CONFIG, PRINT_CONFIG, DRY_RUN)


@dataclasses.dataclass(frozen=True)
class Program:
  """A command, and what its command line may hold.

  Attributes:
    name: the module that is run, such as `reft_jax.train`.
    about: the text at the top of its help.
    paths: its positional arguments; the last may stand for several ("X...").
    options: its options.
    overrides: whether it takes `key=value`.
    default: the settings it has without `--config`, for its help.
  """

  name: str
  about: str = ""
  paths: tuple[str, ...] = ()
  options: tuple[Option, ...] = RUN_OPTIONS
  overrides: bool = True
  default: str = f"those of {loading.DEFAULT_EXPERIMENT}"

  @property
  def usage(self) -> str:
    """The arguments in one line."""
    options = [
      f"[{option.usage}]{'...' * (option.repeated and not option.listed)}"
      for option in self.options
    ]
    settings = ["[key=value]..."] * self.overrides
    return " ".join([*self.paths, *options, *settings, "[--help]"])


TRAIN = Program("reft_jax.train")


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line that was parsed.

  `action` is "run", "help", "print-config" or "dry-run"; `files` are the values
  of `--config`, `options` those of other options by flag, as `max_shard_gb`.
  """

  action: str = "run"
  paths: tuple[str, ...] = ()
  files: tuple[str, ...] = ()
  overrides: tuple[str, ...] = ()
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def config(self) -> schema.Config:
    """The settings: files in their order, then overrides, over the defaults.

    Raises:
      UserError: as `loading.load`; or real data or a model without `--config`
        to say how to train it.
    """
    files = self.files or (loading.DEFAULT_EXPERIMENT,)
    config = loading.load(files, self.overrides)
    if not self.files:
      _check_generated(config)
    return config


def parse(argv: Sequence[str], program: Program = TRAIN) -> Command:
  """Parses a command line.

  An argument is a setting if it has an equals sign, and a path otherwise; a
  program that takes paths also takes what has a slash before the equals sign
  as a path. Options may stand before, between and after the others.

  Raises:
    UserError: an argument is unknown or missing, or an option has a bad value.
  """
  if asks_for_help(argv):
    return Command(action="help")
  values, others = _parse_options(argv, program)
  paths: list[str] = []
  overrides: list[str] = []
  for argument in others:
    if argument.startswith("-"):
      raise _unknown(argument, program)
    key, equals, _ = argument.partition("=")
    is_path = not equals or (program.paths and "/" in key)
    known = paths if is_path or not program.overrides else overrides
    known.append(argument)
  _check_paths(paths, program)
  return Command(
    action=values.pop("action"),
    paths=tuple(paths),
    files=values.pop("config", ()),
    overrides=tuple(overrides),
    options=values,
  )


def asks_for_help(argv: Sequence[str]) -> bool:
  """Whether a command line has a flag of help, which wins over the rest."""
  return not {"-h", "--help"}.isdisjoint(argv)


def _parse_options(
  argv: Sequence[str], program: Program
) -> tuple[dict[str, Any], list[str]]:
  """The options' values with the action, and all other arguments in order."""
  parser = argparse.ArgumentParser(
    add_help=False, allow_abbrev=False, exit_on_error=False
  )
  parser.set_defaults(action="run")
  options: dict[str, Option] = {}
  for option in program.options:
    how: dict[str, Any] = {"action": "store_true"}
    if value := option.value:
      how = {"action": "append" if option.repeated else "store"}
      how |= {"type": value.read, "choices": value.choices}
    elif option.action:
      how = {"action": "store_const", "const": option.action, "dest": "action"}
    options[parser.add_argument(option.flag, **how).dest] = option
  try:
    known, others = parser.parse_known_args(argv)
  except argparse.ArgumentError as error:
    (option,) = (o for o in program.options if o.flag == error.argument_name)
    wants = "takes no value"
    if option.value:
      wants = f"needs {option.value.wanted} after it"
    raise errors.UserError(f"{option.flag} {wants}") from error
  values = vars(known)
  for name, option in options.items():
    if option.value and values[name] is None:
      values[name] = option.default
      continue
    if option.listed:  # argparse reads the first number after each flag.
      values[name] += [int(word) for word in others if word.isdecimal()]
      others = [word for word in others if not word.isdecimal()]
    if option.repeated:
      values[name] = tuple(values[name])
  return values, others


def _unknown(argument: str, program: Program) -> errors.UserError:
  expected = f"expected {program.usage}"
  return errors.UserError(f"unknown argument {argument!r}; {expected}")


def _check_paths(paths: Sequence[str], program: Program) -> None:
  """Raises UserError for too few paths or too many."""
  names = program.paths
  if len(paths) < len(names):
    missing = names[len(paths)].removesuffix("...").lower()
    raise errors.UserError(
      f"which {missing}? Usage: python -m {program.name} {program.usage}"
    )
  if len(paths) > len(names) and not "".join(names[-1:]).endswith("..."):
    raise _unknown(paths[len(names)], program)


def _check_generated(config: schema.Config) -> None:
  """The default experiment's settings are for generated data only."""
  real = []
  if config.data.train != "embedded":
    real.append(f"data.train={config.data.train}")
  if config.model.path:
    real.append(f"model.path={config.model.path}")
  if real:
    raise errors.UserError(
      f"command line: {' and '.join(real)} would be trained with the settings"
      f" of the {loading.DEFAULT_EXPERIMENT} run; name an experiment, such as"
      f" --config {_REAL_EXPERIMENT}, or --config {loading.DEFAULT_EXPERIMENT}"
      " to mean it"
    )


def print_help(program: Program = TRAIN) -> None:
  """Prints the usage, the options, and every setting with its default."""
  import rich.console
  import rich.table

  console = rich.console.Console(highlight=False, markup=False)
  if program.about:
    print(program.about)
  usage = f"Usage: python -m {program.name} {program.usage}\n"
  console.print(usage, soft_wrap=True)
  options = rich.table.Table.grid(padding=(0, 2, 0, 0))
  for option in program.options:
    options.add_row(option.usage, option.text)
  console.print(options)
  if CONFIG not in program.options:
    return
  console.print(
    "\nA FILE is YAML, or the name of a packaged experiment:"
    f" {', '.join(loading.experiments())}. A setting is given as"
    f" reft.steps=20. Without --config the settings are {program.default}.\n"
  )
  groups = collections.defaultdict(list)
  for key, field, value in loading.settings(schema.Config()):
    group, _, name = key.rpartition(".")
    groups[group].append((name, loading.show(value), field.metadata["help"]))
  settings = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  settings.add_column("setting", no_wrap=True)
  settings.add_column("default", style="cyan", max_width=10)
  settings.add_column("meaning", ratio=1)
  for group, rows in groups.items():
    if group:
      about = operator.attrgetter(group)(schema.Config()).__doc__
      settings.add_row()
      settings.add_row(f"{group}.", "", about, style="bold")
    for name, default, text in rows:
      settings.add_row(f"  {name}" if group else name, default, text)
  console.print(settings)
