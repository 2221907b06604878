"""People judge solutions without knowing which model wrote them.

  draw SOURCE SOURCE...   makes a page of questions with each source's solutions
  read KEY RATINGS...     shows each source's ratings and how well raters agree

The page is one file, to be opened from disk. Raters give logic, naming and
compactness of each solution 0, 1/2 or 1 (the paper's criteria), and save a file
each. Only key.json, which raters must not see, says who wrote what.
"""

import pathlib
import sys
from collections.abc import Sequence

from reft_jax import files
from reft_jax.config import cli
from reft_jax.errors import UserError
from reft_jax.studies import ratings

_PLACE = pathlib.Path("rating")
PROGRAMS = {
  "draw": cli.Program(
    "reft_jax.rate draw",
    about="SOURCE is RUN:STAGE, an evaluation's folder, or a file of"
    " completions.\n",
    paths=("SOURCE...",),
    options=(
      cli.Option("--questions", "number of questions (50)", cli.INTEGER, 50),
      cli.Option("--seed", "seed of the draw (0)", cli.INTEGER, 0),
      cli.Option(
        "--right", "draw only questions that all sources answered correctly"
      ),
      cli.Option("--output", "folder of the page (rating)", cli.FOLDER, _PLACE),
    ),
    overrides=False,
  ),
  "read": cli.Program(
    "reft_jax.rate read",
    about="KEY is the page's key.json, RATINGS are the raters' files.\n",
    paths=("KEY", "RATINGS..."),
    options=(
      cli.Option(
        "--output",
        "folder of ratings.json and ratings.csv (that of KEY)",
        cli.FOLDER,
      ),
    ),
    overrides=False,
  ),
}


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  try:
    name, *rest = argv or [""]
    if name in PROGRAMS:
      _run(name, cli.parse(rest, PROGRAMS[name]))
    elif cli.asks_for_help(argv):
      print(__doc__)
    else:
      raise UserError(
        f"which command? {' or '.join(PROGRAMS)}; see python -m reft_jax.rate"
        " --help"
      )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    trouble = f"cannot be written ({error.strerror}); set --output"
    print(f"error: {error.filename} {trouble}", file=sys.stderr)
    return 2
  return 0


def _run(name: str, command: cli.Command) -> None:
  """Runs one of the programs."""
  if command.action == "help":
    cli.print_help(PROGRAMS[name])
  elif name == "draw":
    ratings.draw(command.paths, **command.options)
  else:
    key, *given = map(files.expand_user, command.paths)
    ratings.read(key, ratings=given, **command.options)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
