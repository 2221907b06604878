"""`python -m reft_jax.train`: from questions to a learning curve.

Without arguments it runs the embedded experiment, which needs no download.
Exit codes: 0 done, 2 bad input, 3 programs can no longer be run, 4 diverged,
75 stopped by SIGTERM with everything saved (re-running the command resumes),
130 interrupted. The processes of one run (distributed=...) end with the same
code, unless one of them fails alone.
"""

import contextlib
import functools
import sys
from collections.abc import Sequence

import jax

from reft_jax.config import checks, cli, loading, schema
from reft_jax.errors import UserError
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.run import claim, dry_run, report, setup, stages
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import multihost, preemption, xla_flags
from reft_jax.tasks.sandbox import executor as executor_lib


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  return multihost.run(functools.partial(_main, argv))


def _main(argv: Sequence[str]) -> int:
  console = console_lib.Console()
  try:
    command = cli.parse(argv)
    match command.action:
      case "help":
        cli.print_help()
      case "print-config":
        print(loading.to_yaml(command.config), end="")
      case "dry-run":
        checks.validate(command.config)
        dry_run.show(command.config, console)
      case "run":
        checks.validate(command.config)
        xla_flags.use(command.config.xla_flags, console.line)
        multihost.initialize(command.config.distributed)
        console = console_lib.Console(quiet=not multihost.is_lead())
        train(command.config, console)
  except (UserError, UnsupportedModelError) as error:
    return multihost.refuse(error)
  except executor_lib.LostWorkerError as error:
    print(
      f"error: {error}; re-running the command resumes from the last save.",
      file=sys.stderr,
    )
    return 3
  except loop_lib.DivergedError as error:
    if multihost.is_lead():
      print(f"error: {error}", file=sys.stderr)
    return 4
  except preemption.PreemptedError as reason:
    console.line(f"{reason}; re-running the command resumes.")
    return 75
  except KeyboardInterrupt:
    console.line("interrupted; re-running the command resumes.")
    return 130
  return 0


def train(config: schema.Config, console: console_lib.Console) -> None:
  """Runs all stages of a config and shows what came out."""
  setup.configure_libraries()
  with contextlib.ExitStack() as exits:
    with multihost.raise_on_all_processes():
      ready = setup.prepare(config, exits)
    setup.check_equal_on_all(config, ready)
    directory = schema.run_directory(config)
    with multihost.raise_on_all_processes():
      if multihost.is_lead():
        claim.claim(directory, config, ready.inputs)
    run = setup.open_run(config, directory, ready, console, exits)
    report.introduce(run, ready)
    exits.enter_context(preemption.stopping_on_sigterm())
    exits.enter_context(jax.set_mesh(run.engine.mesh))
    results = stages.Stages(run, ready.policies).run_all()
    if multihost.is_lead():
      report.conclude(run, results, ready.splits)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
