"""The command line of every command: paths, options, settings, help."""

import argparse
import collections
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reft_jax import errors
from reft_jax.config import loading, schema

_REAL_EXPERIMENT = "gsm8k_nl_codellama_7b"


@dataclasses.dataclass(frozen=True)
class Option:
  """An option of a command.

  Attributes:
    flag: such as `--target`.
    text: the line of help.
    metavar: the value's name in the usage; "" for a switch without a value.
    wanted: the value in words, for errors: "a name".
    read: converts the value; raises ValueError for a bad one.
    choices: the values that are possible; None: all that `read` accepts.
    default: the value without the option; False for a switch.
    action: what a switch sets `Command.action` to, if it does.
    repeated: whether the option may be repeated; its value is a tuple.
    listed: whether it is followed by several whole numbers, as `--seeds 1 2`.
  """

  flag: str
  text: str
  metavar: str = ""
  wanted: str = ""
  read: Callable[[str], Any] = str
  choices: tuple[str, ...] | None = None
  default: Any = None
  action: str = ""
  repeated: bool = False
  listed: bool = False

  @property
  def name(self) -> str:
    """The key in `Command.options`."""
    return self.flag.removeprefix("--").replace("-", "_")

  @property
  def usage(self) -> str:
    """The option with the name of its value."""
    return f"{self.flag} {self.metavar}{'...' * self.listed}".rstrip()


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
  """An `Option.read` for numbers above 0."""

  def read(text: str) -> Any:
    number = kind(text)
    if not number > 0:  # Also nan.
      raise ValueError
    return number

  return read


CONFIG = Option(
  flag="--config",
  text="read settings from a file; later files win, then key=value",
  metavar="FILE",
  wanted="a file",
  default=(),
  repeated=True,
)
PRINT_CONFIG = Option(
  flag="--print-config",
  text="print all settings as YAML, and do nothing else",
  action="print-config",
)
DRY_RUN = Option(
  flag="--dry-run",
  text="check everything, and do nothing else",
  action="dry-run",
)
RUN_OPTIONS = (CONFIG, PRINT_CONFIG, DRY_RUN)


@dataclasses.dataclass(frozen=True)
class Program:
  """A command, and what its command line may hold.

  Attributes:
    name: the module that is run, such as `reft_jax.train`.
    about: the text at the top of its help.
    paths: the names of its positional arguments; a last one that ends in
      "..." stands for one or more.
    options: its options.
    overrides: whether it takes `key=value`.
    default: the settings it has without `--config`.
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
    words = [
      f"[{option.usage}]{'...' * (option.repeated and not option.listed)}"
      for option in self.options
    ]
    settings = ["[key=value]..."] if self.overrides else []
    return " ".join([*self.paths, *words, *settings, "[--help]"])


TRAIN = Program("reft_jax.train")


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line that was parsed.

  Attributes:
    action: "run", "help", or what a switch says: "print-config", "dry-run".
    paths: the positional arguments.
    files: the values of `--config`.
    overrides: each `key=value`.
    options: the values of the program's other options, by `Option.name`.
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
    key, equals, _ = argument.partition("=")
    setting = (
      equals and program.overrides and not (program.paths and "/" in key)
    )
    (overrides if setting else paths).append(argument)
    if argument.startswith("-"):
      raise _unknown(argument, program)
  _check_paths(paths, program)
  return Command(
    action=values.pop("action"),
    paths=tuple(paths),
    files=values.pop(CONFIG.name, ()),
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
  options = {option.flag: option for option in program.options}
  for flag, option in options.items():
    how: dict[str, Any] = {"dest": option.name, "default": None}
    if option.action:
      how = {"dest": "action", "action": "store_const", "const": option.action}
    elif not option.metavar:
      how = {"action": "store_true"}
    elif option.repeated:
      how |= {"type": option.read, "action": "append"}
    else:
      how |= {"type": option.read, "choices": option.choices}
    parser.add_argument(flag, **how)
  try:
    known, others = parser.parse_known_args([*_unlisted(argv, options)])
  except argparse.ArgumentError as error:
    option = options[str(error.argument_name)]
    if not option.metavar:
      raise errors.UserError(f"{option.flag} takes no value") from error
    raise errors.UserError(
      f"{option.flag} needs {option.wanted} after it"
    ) from error
  values = vars(known)
  for option in options.values():
    if option.metavar and values[option.name] is None:
      values[option.name] = option.default
    elif option.repeated:
      values[option.name] = tuple(values[option.name])
  return values, others


def _unlisted(
  argv: Sequence[str], options: Mapping[str, Option]
) -> Iterator[str]:
  """Arguments with `--seeds 1 2` as `--seeds 1 --seeds 2`.

  Otherwise argparse would also take the settings and paths that follow.
  """
  flag = ""
  for before, argument in zip(("", *argv), argv, strict=False):
    if argument in options:
      flag = argument if options[argument].listed else ""
    elif not argument.isdecimal():
      flag = ""
    elif flag and before != flag:
      yield flag
    yield argument


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


def _unknown(argument: str, program: Program) -> errors.UserError:
  return errors.UserError(
    f"unknown argument {argument!r}; expected {program.usage}"
  )


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
