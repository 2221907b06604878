"""The command line of every program: files, overrides, flags, help."""

import collections
import dataclasses
import operator
from collections.abc import Sequence
from typing import Literal

from reft_jax import errors
from reft_jax.config import loading, schema

USAGE = (
  "[--config FILE]... [key=value]... [--print-config] [--dry-run] [--help]"
)

_REAL_EXPERIMENT = "gsm8k_nl_codellama_7b"


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line, understood."""

  config: schema.Config
  action: Literal["run", "dry-run", "help", "print-config"]
  overrides: tuple[str, ...]


def parse(argv: Sequence[str], options: str = "") -> Command:
  """Reads a command line: `--config FILE`, `key=value`, a flag.

  Files are laid over the defaults in their order, then the overrides. The
  result has the right types; `validate` and `check_files` say if it makes
  sense. Of a program's own `options` only what is expected tells.

  Raises:
    UserError: An unknown argument or key, a value of the wrong type, a file
      that is missing or is not YAML, or real data or a model without a
      `--config` to say how to train it.
  """
  files, overrides, action = [], [], "run"
  arguments = collections.deque(argv)
  while arguments:
    argument = arguments.popleft()
    if argument in ("-h", "--help"):
      return Command(config=schema.Config(), action="help", overrides=())
    if argument in ("--print-config", "--dry-run"):
      action = argument.removeprefix("--")
    elif argument == "--config":
      if not arguments:
        raise errors.UserError("--config needs a file after it")
      files.append(arguments.popleft())
    elif argument.startswith("--config="):
      files.append(argument.removeprefix("--config="))
    elif "=" in argument and not argument.startswith("-"):
      overrides.append(argument)
    else:
      expected = f"{options} {USAGE}".lstrip()
      raise errors.UserError(
        f"unknown argument {argument!r}; expected {expected}"
      )
  config = loading.load(files or [loading.DEFAULT_EXPERIMENT], overrides)
  if not files:
    _check_generated(config)
  return Command(config=config, action=action, overrides=tuple(overrides))


def print_help(
  program: str, otherwise: str = f"the run is {loading.DEFAULT_EXPERIMENT}"
) -> None:
  """Prints the usage and every setting with its default and meaning.

  `otherwise` says what holds without --config.
  """
  import rich.console
  import rich.table

  groups = collections.defaultdict(list)
  for key, field, value in loading.settings(schema.Config()):
    group, _, name = key.rpartition(".")
    groups[group].append((name, loading.show(value), field.metadata["help"]))
  table = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  table.add_column("setting", no_wrap=True)
  table.add_column("default", style="cyan", max_width=10)
  table.add_column("meaning", ratio=1)
  for group, rows in groups.items():
    if group:
      about = operator.attrgetter(group)(schema.Config()).__doc__
      table.add_row()
      table.add_row(f"{group}.", "", about, style="bold")
    for name, default, text in rows:
      table.add_row(f"  {name}" if group else name, default, text)

  console = rich.console.Console(highlight=False, markup=False)
  console.print(f"Usage: python -m {program} {USAGE}\n", soft_wrap=True)
  console.print(
    "A FILE is YAML, or the name of a packaged experiment:"
    f" {', '.join(loading.experiments())}. Later files win, then key=value, as"
    f" in reft.steps=20. Without --config {otherwise}.\n"
  )
  console.print(table)


def _check_generated(config: schema.Config) -> None:
  """The default experiment's settings are for generated data alone."""
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
