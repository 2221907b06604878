"""`python -m reft_jax.plan --target NAME`: does it fit, how long does it take?

The sampling, scoring, PPO and supervised steps of a run are compiled for
hardware that need not be present. The plan shows their memory, collectives and
least time. Settings are those of reft_jax.train.

Compilers are plugins of jax. If that of a target is not installed, the plan is
calculated without it, and says what to install.

Exit codes: 0 planned, whatever the plan says, 2 bad input, 3 a compiler
failed, 130 interrupted.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from reft_jax.config import checks, cli, loading
from reft_jax.errors import UserError
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.planner import hardware, showing, worker
from reft_jax.planner import subject as subjects
from reft_jax.runtime import console as console_lib

PROGRAM = cli.Program(
  "reft_jax.plan",
  about=__doc__,
  options=(
    cli.Option(
      "--target",
      "hardware, may be repeated: cpu, cpu x8, a100-80g x8, a100-40g x8, h100"
      " x8, h200, l4, t4, v5e-8, v5p-8 (v4 and v5p count cores), v6e-8 ..."
      " (cpu)",
      cli.NAME,
      ("cpu",),
    ),
    cli.Option(
      "--model",
      "the shape of a published model, such as codellama-7b, without weights"
      " (that of model.path)",
      cli.NAME,
    ),
    cli.Option("--json", "print the plan as JSON, and nothing else"),
    cli.Option("--arithmetic", "compile nothing: formulas only, in seconds"),
    cli.Option("--no-search", "do not search for settings that fit"),
    cli.CONFIG,
    cli.PRINT_CONFIG,
  ),
)


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  console = console_lib.Console()
  try:
    command = cli.parse(argv, PROGRAM)
    match command.action:
      case "help":
        cli.print_help(PROGRAM)
      case "print-config":
        print(loading.to_yaml(command.config), end="")
      case _:
        plan(command, console)
  except (UserError, UnsupportedModelError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except worker.CompilerError as error:
    print(f"error: {error}", file=sys.stderr)
    return 3
  except KeyboardInterrupt:
    console.line("interrupted.")
    return 130
  return 0


def plan(command: cli.Command, console: console_lib.Console) -> None:
  """Plans a run for each target, and prints the plans.

  Raises:
    UserError: a target, the model or the settings make no sense.
    CompilerError: a compiler failed.
  """
  options = command.options
  as_json, arithmetic = options["json"], options["arithmetic"]
  if options["model"] and not command.files:
    raise UserError(
      f"--model {options['model']} would be planned with the settings of the"
      " embedded run; name an experiment, such as --config"
      " gsm8k_nl_codellama_7b"
    )
  checks.validate(command.config)
  targets = [hardware.target(name) for name in options["target"]]
  subject = subjects.subject(command.config, options["model"])
  plans: list[dict[str, Any]] = []
  if not as_json:
    showing.introduce(subject, console)
  for target in targets:
    lacking = None if arithmetic else worker.missing(target.chip.platform)
    compiled = not arithmetic and lacking is None
    search = not options["no_search"]
    found = worker.ask(subject, target, compiled=compiled, search=search)
    plans.append(found | {"install": lacking})
    if not as_json:
      showing.show(plans[-1], console)
  if as_json:
    names = ("model", "problems", "prompt_slots", "response_slots")
    planned = {name: getattr(subject, name) for name in names}
    planned = {"config": command.config.name, **planned, "plans": plans}
    print(json.dumps(planned, indent=1))
  elif len(plans) > 1:
    showing.compare(plans, console)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
