"""`python -m reft_jax.plan --target NAME`: will it fit, how long will it take?

The run's own sampling, scoring, PPO and supervised steps are compiled for
hardware that need not be here, and their memory, collectives and least time are
told. Settings are those of reft_jax.train: --config files and key=value.

  --target NAME   for which hardware, may be given several times: cpu, cpu x8,
                  a100-80g x8, a100-40g x8, h100 x8, h200, l4, t4, v5e-8,
                  v5p-8 (v4 and v5p count cores), v6e-8 ... Default: cpu.
  --model NAME    a published model's shape, such as codellama-7b; no weights
                  are needed. Default: model.path's.
  --json          the plan as JSON, and nothing else.
  --arithmetic    compile nothing: what formulas alone say, in seconds.
  --no-search     do not look for what would fit where it does not.

Compilers are plugins of jax. Where a target's is not installed, its plan is
arithmetic alone and says what to install.

Exit codes: 0 planned, whatever the plan says, 2 bad input, 3 a compiler
failed, 130 interrupted.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from reft_jax.config import checks, cli, loading, schema
from reft_jax.errors import UserError
from reft_jax.models.hf import pretrained
from reft_jax.planner import hardware, showing, worker
from reft_jax.planner import subject as subjects
from reft_jax.runtime import console as console_lib

OPTIONS = (
  "[--target NAME]... [--model NAME] [--json] [--arithmetic] [--no-search]"
)


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line asks for besides settings."""

  targets: tuple[str, ...] = ()
  model: str | None = None
  json: bool = False
  arithmetic: bool = False
  search: bool = True


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  screen = console_lib.Console()
  try:
    options, settings = divide(argv)
    command = cli.parse(settings, OPTIONS)
    match command.action:
      case "help":
        print(__doc__)
        cli.print_help(f"reft_jax.plan {OPTIONS}")
      case "print-config":
        print(loading.to_yaml(command.config), end="")
      case _:
        plan(command.config, options, screen)
  except (UserError, pretrained.UnsupportedModelError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except worker.CompilerError as error:
    print(f"error: {error}", file=sys.stderr)
    return 3
  except KeyboardInterrupt:
    screen.line("interrupted.")
    return 130
  return 0


def divide(argv: Sequence[str]) -> tuple[Options, list[str]]:
  """This program's own options, and the arguments that settings are made of.

  Raises:
    UserError: an option lacks its value, or a shape lacks settings.
  """
  if {"-h", "--help"} & set(argv):
    return Options(), ["--help"]
  targets: list[str] = []
  model, flags, rest = None, set(), []
  arguments = iter(argv)
  for argument in arguments:
    name, equals, value = argument.partition("=")
    if name in ("--target", "--model"):
      if not equals:
        value = next(arguments, "")
      if not value:
        raise UserError(f"{name} needs a name after it")
      if name == "--model":
        model = value
      else:
        targets.append(value)
    elif argument in ("--json", "--arithmetic", "--no-search"):
      flags.add(argument)
    else:
      rest.append(argument)
  if model and not any(a.startswith("--config") for a in rest):
    raise UserError(
      f"--model {model} would be planned with the settings of the embedded"
      " run; name an experiment, such as --config gsm8k_nl_codellama_7b"
    )
  options = Options(
    targets=tuple(targets or ["cpu"]),
    model=model,
    json="--json" in flags,
    arithmetic="--arithmetic" in flags,
    search="--no-search" not in flags,
  )
  return options, rest


def plan(
  config: schema.Config, options: Options, screen: console_lib.Console
) -> None:
  """Plans a config for each target, and prints what comes out.

  Raises:
    UserError: a target, the model or the settings make no sense.
    CompilerError: a compiler failed.
  """
  checks.validate(config)
  targets = [hardware.target(name) for name in options.targets]
  subject = subjects.subject(config, options.model)
  plans: list[dict[str, Any]] = []
  if not options.json:
    introduce(subject, screen)
  for target in targets:
    lacking = worker.missing(target.chip.platform)
    compiled = not options.arithmetic and lacking is None
    plans.append(
      worker.ask(subject, target, compiled=compiled, search=options.search)
      | {"install": None if options.arithmetic else lacking}
    )
    if not options.json:
      showing.show(plans[-1], screen)
  if options.json:
    summary = {
      "config": config.name,
      "model": subject.model,
      "problems": subject.problems,
      "prompt_slots": subject.prompt_slots,
      "response_slots": subject.response_slots,
      "plans": plans,
    }
    print(json.dumps(summary, indent=1))
  elif len(plans) > 1:
    showing.compare(plans, screen)


def introduce(subject: subjects.Subject, screen: console_lib.Console) -> None:
  """Says what is planned."""
  problems = subject.problems
  screen.line(
    f"{subject.config.name} with {subject.model}: prompts of"
    f" {subject.prompt_slots} and responses of {subject.response_slots} tokens,"
    " all as long as they may be; "
    + ("?" if problems is None else f"{problems:,}")
    + " problems to learn from"
  )
  if subject.unplanned:
    screen.line(f"not planned: {', '.join(subject.unplanned)}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
