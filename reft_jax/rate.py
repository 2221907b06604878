"""`python -m reft_jax.rate`: people judge solutions without knowing whose.

  draw SOURCE SOURCE...   a page with the same questions' solutions from each
  read KEY RATINGS...     who wrote what, how it was rated, how raters agree

The page is one file, to be opened from disk, on which logic, naming and
compactness of each solution are rated 0, 1/2 or 1 (the paper's criteria). Each
rater saves a file; key.json, which stays here, says who wrote what.
"""

import argparse
import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from reft_jax import files
from reft_jax.errors import UserError
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import pages
from reft_jax.studies import ratings as ratings_lib

PAGE, KEY = "rating.html", "key.json"


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  screen = console_lib.Console()
  try:
    arguments = vars(_parser().parse_args(argv))
    command = {"draw": draw, "read": read}[arguments.pop("command")]
    command(**arguments, screen=screen)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    print(
      f"error: {error.filename} cannot be written ({error.strerror}); set"
      " --output",
      file=sys.stderr,
    )
    return 2
  return 0


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog="python -m reft_jax.rate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  one = commands.add_parser("draw", help="make a page to rate on")
  one.add_argument(
    "sources",
    nargs="+",
    metavar="SOURCE",
    help="RUN:STAGE, such as runs/embedded-seed0:sft; an evaluation's folder;"
    " or a file of completions",
  )
  one.add_argument("--questions", type=int, default=50, help="how many (50)")
  one.add_argument("--seed", type=int, default=0, help="of the draw (0)")
  one.add_argument(
    "--right",
    action="store_true",
    help="only questions that all sources answered rightly",
  )
  one.add_argument(
    "--output", type=files.expand_user, default="rating", help="folder (rating)"
  )
  two = commands.add_parser("read", help="read ratings back into a table")
  two.add_argument(
    "key", type=files.expand_user, metavar="KEY", help=f"{KEY} of the page"
  )
  two.add_argument(
    "ratings",
    type=files.expand_user,
    nargs="+",
    metavar="RATINGS",
    help="what raters saved",
  )
  two.add_argument(
    "--output",
    type=files.expand_user,
    help="folder of ratings.json and ratings.csv (the key's)",
  )
  return parser


def draw(
  sources: Sequence[str],
  *,
  questions: int,
  seed: int,
  right: bool,
  output: pathlib.Path,
  screen: console_lib.Console,
) -> None:
  """Writes a page with solutions of `sources`, and its key.

  Raises:
    UserError: sources that cannot be compared, too few questions, a folder
      that holds another page.
  """
  found = {source: ratings_lib.find(source) for source in sources}
  paths = {file.resolve() for file in found.values()}
  if len(sources) < 2 or len(paths) < len(sources):
    raise UserError(
      "draw compares two or more sources, each given once, such as"
      " runs/embedded-seed0:sft runs/embedded-seed0:reft"
    )
  if questions < 1:
    raise UserError(f"--questions {questions} must be above 0")
  page, key = ratings_lib.blind(found, count=questions, seed=seed, right=right)
  kept = output / KEY
  if kept.exists() and ratings_lib.open_key(kept).page != key.page:
    raise UserError(
      f"{output} holds another page, which may be with raters; set --output to"
      " another folder"
    )
  output.mkdir(parents=True, exist_ok=True)
  # First: a page without its key would be rated for nothing.
  files.replace(kept, json.dumps(dataclasses.asdict(key), indent=2) + "\n")
  files.replace(output / PAGE, pages.render("rating", page))
  screen.line(
    f"page: {output / PAGE}, for the raters: {len(key.solutions)} solutions"
    f" of {questions} questions"
  )
  screen.line(f"key: {kept}, which raters must not see")


def read(
  key: pathlib.Path,
  *,
  ratings: Sequence[pathlib.Path],
  output: pathlib.Path | None,
  screen: console_lib.Console,
) -> None:
  """Shows how each source was rated and how raters agree; writes both.

  Raises:
    UserError: ratings that are not of the key's page, not whole, or given
      twice.
  """
  opened = ratings_lib.open_key(key)
  raters: dict[str, ratings_lib.Ratings] = {}
  origin: dict[str, pathlib.Path] = {}
  for file in ratings:
    given = ratings_lib.open_ratings(file, opened)
    if given.rater in raters:
      raise UserError(
        f"{given.rater} rated in {origin[given.rater]} and in {file}; give one"
        " of the two"
      )
    raters[given.rater], origin[given.rater] = given, file
  summary = ratings_lib.summarize(opened, list(raters.values()))
  written = _write(output or key.parent, summary)
  _show(summary, screen)
  screen.line(f"ratings: {', '.join(map(str, written))}")


def _write(
  folder: pathlib.Path, summary: Mapping[str, Any]
) -> tuple[pathlib.Path, pathlib.Path]:
  folder.mkdir(parents=True, exist_ok=True)
  whole, rows = folder / "ratings.json", folder / "ratings.csv"
  files.replace(whole, json.dumps(summary, indent=2) + "\n")
  with rows.open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, fieldnames=list(summary["ratings"][0]))
    writer.writeheader()
    writer.writerows(summary["ratings"])
  return whole, rows


def _show(summary: Mapping[str, Any], screen: console_lib.Console) -> None:
  raters, criteria = summary["raters"], list(ratings_lib.CRITERIA)
  screen.table(
    f"Ratings from 0 to 1 by {len(raters)} rater{'s' * (len(raters) > 1)}",
    ["source", "solutions", *criteria],
    [
      [source, each["solutions"], *(_spread(each[name]) for name in criteria)]
      for source, each in summary["sources"].items()
    ],
  )
  screen.line("±: deviation among solutions, each the mean of its raters")
  if len(raters) == 1:
    screen.line("one rater: no agreement to tell; two or more show it")
    return
  screen.table(
    "Agreement",
    ["criterion", "alpha", "equal pairs"],
    [[name, *each.values()] for name, each in summary["agreement"].items()],
  )
  screen.line(
    "alpha: Krippendorff's, ordinal; 1 is perfect, 0 chance, - where all"
    " ratings are equal"
  )
  screen.table(
    "Mean of each rater",
    ["rater", *criteria],
    [[rater, *means.values()] for rater, means in raters.items()],
  )


def _spread(score: Mapping[str, float | None]) -> str:
  deviation = score["deviation"]
  spread = "-" if deviation is None else f"{deviation:.3f}"
  return f"{score['mean']:.3f} ± {spread}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
