"""Repeats a suite of runs with several seeds and writes one report.

  python -m reft_jax.reproduce embedded --seeds 1 2 3 --jobs 2

SUITE is a YAML file or the name of a packaged suite: what to run and evaluate,
and what to table, draw and claim (reft_jax.studies.reading has the format).
Every run is a process of reft_jax.train, every evaluation one of
reft_jax.evaluate; their output is in OUTPUT/logs. The results are
OUTPUT/report.md with pictures beside it, and OUTPUT/results.json.

Re-running the command skips what is finished and resumes the rest. A run is put
aside and trained again if the model that it starts from has other settings now.

output=FOLDER is the folder of all results (runs/suite-NAME); any other
key=value is a setting for every run and evaluation.

Exit codes: 0 done, 2 bad input, 3 a run or evaluation failed, 75 stopped by
SIGTERM, 130 interrupted.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence

from reft_jax import files
from reft_jax.config import cli
from reft_jax.errors import UserError
from reft_jax.runtime import console as console_lib
from reft_jax.studies import checking, reading, runner, suites

PROGRAM = cli.Program(
  "reft_jax.reproduce",
  about=f"{__doc__}\nPackaged suites: {', '.join(reading.packaged())}\n",
  paths=("SUITE",),
  options=(
    cli.Option(
      "--seeds",
      "the seeds, instead of the suite's",
      cli.Value("N", "whole numbers", int),
      (),
      listed=True,
    ),
    cli.Option("--jobs", "how many processes run at once (1)", cli.COUNT, 1),
    cli.Option("--dry-run", "check the suite, list its jobs", action="dry-run"),
    cli.Option("--report", "only write the report"),
  ),
)


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  screen = console_lib.Console()
  try:
    command = cli.parse(argv, PROGRAM)
    if command.action == "help":
      cli.print_help(PROGRAM)
      return 0
    suite = read_suite(command)
    checking.check(suite)
    if command.action == "dry-run":
      runner.dry_run(suite, screen)
    else:
      jobs = 0 if command.options["report"] else command.options["jobs"]
      line = command_line(command, suite.overrides)
      runner.run(suite, line, screen, jobs)
  except (UserError, runner.FailedError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 3
  except (runner.StoppedError, KeyboardInterrupt) as error:
    stopped = isinstance(error, runner.StoppedError)
    word = "stopped" if stopped else "interrupted"
    screen.line(f"{word}; re-run the command to resume.")
    return 75 if stopped else 130
  return 0


def read_suite(command: cli.Command) -> suites.Suite:
  """The suite that a command line names, with its seeds and settings."""
  suite = reading.load(command.paths[0])
  output, overrides = "", []
  for setting in command.overrides:
    if setting.startswith("output="):
      output = setting.removeprefix("output=")
    else:
      overrides.append(setting)
  return dataclasses.replace(
    suite,
    seeds=command.options["seeds"] or suite.seeds,
    output=files.expand_user(output or f"runs/suite-{suite.name}"),
    overrides=tuple(overrides),
  )


def command_line(command: cli.Command, overrides: Sequence[str]) -> str:
  """A command without what is of this machine: its folders."""
  path, options = pathlib.Path(command.paths[0]), command.options
  words = [path.name if path.is_absolute() else command.paths[0]]
  if options["seeds"]:
    words += ["--seeds", *map(str, options["seeds"])]
  words += overrides
  if options["jobs"] > 1:
    words += ["--jobs", str(options["jobs"])]
  return f"python -m reft_jax.reproduce {shlex.join(words)}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
