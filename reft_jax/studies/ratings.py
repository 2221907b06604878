"""Blinded ratings: people judge solutions without knowing who wrote them.

A page shows questions with a solution from each source, shuffled; the page's
key says who wrote what. Every rater saves a file of ratings, which is read
with the key (the paper's human evaluation).
"""

import collections
import csv
import dataclasses
import hashlib
import itertools
import json
import pathlib
import random
import re
import statistics
import string
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reft_jax import files
from reft_jax.errors import UserError
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import pages
from reft_jax.studies import agreement
from reft_jax.studies import solutions as solutions_lib

PAGE, KEY = "rating.html", "key.json"
CRITERIA = {
  "logic": "Does the reasoning lead to the answer, without wrong steps?",
  "naming": "Do names and words say what the quantities are?",
  "compactness": "Is nothing there that is not needed?",
}
SCALE = (0.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Authorship:
  """The question of a solution on the page, and the sources that wrote it."""

  uid: str
  sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Key:
  """A page, each source's file, and who wrote each solution on the page."""

  page: str
  sources: Mapping[str, str]
  solutions: Mapping[str, Authorship]


# The ratings of one rater: by solution and criterion, a value of SCALE.
Scores = Mapping[str, Mapping[str, float]]


def draw(
  sources: Sequence[str],
  *,
  questions: int,
  seed: int,
  right: bool,
  output: pathlib.Path,
) -> None:
  """Writes a page with solutions of `sources`, and its key.

  With `right`, questions are those that all sources answered correctly.

  Raises:
    UserError: the sources cannot be compared, have too few questions, or the
      folder holds another page.
  """
  found = {source: solutions_lib.find(source) for source in sources}
  paths = {file.resolve() for file in found.values()}
  if len(sources) < 2 or len(paths) < len(sources):
    raise UserError(
      "draw compares two or more sources, each given once, such as"
      " runs/embedded-seed0:sft runs/embedded-seed0:reft"
    )
  if questions < 1:
    raise UserError(f"--questions {questions} must be above 0")
  page, key = _blind(found, questions, random.Random(f"rate {seed}"), right)
  kept = output / KEY
  if kept.exists() and open_key(kept).page != key.page:
    raise UserError(
      f"{output} holds another page, which raters may have; set --output to"
      " another folder"
    )
  output.mkdir(parents=True, exist_ok=True)
  # The key first: ratings of a page without a key would be lost work.
  files.replace(kept, json.dumps(dataclasses.asdict(key), indent=2) + "\n")
  files.replace(output / PAGE, pages.render("rating", page))
  screen = console_lib.Console()
  screen.line(
    f"page for the raters: {output / PAGE}, with {len(key.solutions)}"
    f" solutions of {questions} questions"
  )
  screen.line(f"key, not for the raters: {kept}")


def _blind(
  paths: Mapping[str, pathlib.Path], count: int, rng: random.Random, right: bool
) -> tuple[dict[str, Any], Key]:
  """Draws questions; returns the content of their page, and its key.

  Questions and the solutions of each are shuffled. A text that several sources
  wrote is shown once and counts for all of them.
  """
  rows: Mapping[str, solutions_lib.Rows] = {
    source: solutions_lib.completions(file) for source, file in paths.items()
  }
  asked = solutions_lib.questions(rows)
  if right:
    rows = {source: _correct(source, each) for source, each in rows.items()}
  shared = [uid for uid in asked if all(uid in each for each in rows.values())]
  if len(shared) < count:
    raise UserError(
      f"--questions {count}: all sources answered only {len(shared)}"
      f"{' correctly' if right else ''}; ask for fewer"
    )
  shown, solutions = [], {}
  for number, uid in enumerate(rng.sample(shared, count), start=1):
    authors = collections.defaultdict(list)
    for source, each in rows.items():
      text = textwrap.dedent(each[uid]["completion"]).strip()
      authors[text].append(source)
    texts = rng.sample(sorted(authors), len(authors))
    named = {f"{number}{_letters(at)}": text for at, text in enumerate(texts)}
    for name, text in named.items():
      solutions[name] = Authorship(uid, tuple(authors[text]))
    answers = [each[uid].get("answer") for each in rows.values()]
    known = [str(answer) for answer in answers if answer not in (None, "")]
    shown.append(
      {
        "question": asked[uid]["question"].strip(),
        "answer": known[0] if known else None,
        "solutions": named,
      }
    )
  # The page's name follows from what it shows, not from who wrote it.
  mark = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]
  sources = {source: str(file) for source, file in paths.items()}
  page = {"page": mark, "criteria": CRITERIA, "scale": SCALE}
  return page | {"questions": shown}, Key(mark, sources, solutions)


def _correct(source: str, rows: solutions_lib.Rows) -> solutions_lib.Rows:
  """The rows with correct answers."""
  if not all("verdict" in row for row in rows.values()):
    raise UserError(
      f"--right: {source} does not say which of its answers are right; give"
      " a RUN:STAGE, or an evaluation that was sampled anew"
    )
  return {uid: r for uid, r in rows.items() if r["verdict"] == "correct"}


def _letters(place: int) -> str:
  """A, B ... Z, AA, AB ..."""
  before, last = divmod(place, len(string.ascii_uppercase))
  return (_letters(before - 1) if before else "") + string.ascii_uppercase[last]


def open_key(file: pathlib.Path) -> Key:
  """Reads a key.

  Raises:
    UserError: the file is not a key, or its solutions and sources differ.
  """
  fields = solutions_lib.read_object(solutions_lib.read_text(file), str(file))
  try:
    solutions = {
      name: Authorship(each["uid"], tuple(each["sources"]))
      for name, each in fields["solutions"].items()
    }
    key = Key(fields["page"], dict(fields["sources"]), solutions)
    authors = {source for each in solutions.values() for source in each.sources}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"{file} is not the key of a page") from error
  if not authors or authors != key.sources.keys():
    compared, found = (
      ", ".join(sorted(map(str, names))) or "no source"
      for names in (key.sources, authors)
    )
    raise UserError(
      f"{file} compares {compared}, but holds solutions of {found}; give the"
      " key as draw wrote it"
    )
  return key


def read(
  key: pathlib.Path,
  *,
  ratings: Sequence[pathlib.Path],
  output: pathlib.Path | None,
) -> None:
  """Shows and writes how each source was rated and how well raters agree.

  Raises:
    UserError: ratings are of another page, incomplete, or given twice.
  """
  opened = open_key(key)
  raters: dict[str, Scores] = {}
  origin: dict[str, pathlib.Path] = {}
  for file in ratings:
    rater, scores = _open_ratings(file, opened)
    if rater in raters:
      raise UserError(
        f"{rater} rated in {origin[rater]} and in {file}; give one of the two"
      )
    raters[rater], origin[rater] = scores, file
  summary = _summarize(opened, raters)
  folder = output or key.parent
  folder.mkdir(parents=True, exist_ok=True)
  whole, rows = folder / "ratings.json", folder / "ratings.csv"
  files.replace(whole, json.dumps(summary, indent=2) + "\n")
  with rows.open("w", encoding="utf-8", newline="") as table:
    writer = csv.DictWriter(table, fieldnames=list(summary["ratings"][0]))
    writer.writeheader()
    writer.writerows(summary["ratings"])
  screen = console_lib.Console()
  _show(summary, screen)
  screen.line(f"ratings: {whole}, {rows}")


def _open_ratings(file: pathlib.Path, key: Key) -> tuple[str, Scores]:
  """Reads a rater's name and ratings, which must be those of the key's page."""
  saved = solutions_lib.read_object(solutions_lib.read_text(file), str(file))
  rater, given = saved.get("rater"), saved.get("ratings")
  if not isinstance(rater, str) or not isinstance(given, dict):
    raise UserError(f"{file} does not hold ratings that the page saved")
  if saved.get("page") != key.page:
    raise UserError(
      f"{file} rates page {saved.get('page')}, but the key is of page"
      f" {key.page}; give the key that was drawn with it"
    )
  if not re.fullmatch(r"[\w.-]+", rater):
    raise UserError(
      f"{file} is by rater {rater!r}; a name is letters, digits, . _ or -: open"
      " the page again, give it and save"
    )
  strange = given.keys() - key.solutions.keys()
  if strange:
    raise UserError(f"{file} rates {min(strange)}, which the page has not")
  missing = []
  for name, criterion in itertools.product(key.solutions, CRITERIA):
    scores = given.get(name)
    score = scores.get(criterion) if isinstance(scores, dict) else None
    if score is None:
      missing.append(f"{criterion} of {name}")
    elif isinstance(score, bool) or score not in SCALE:
      raise UserError(
        f"{file} gives {criterion} of {name} {score!r}; it must be one of"
        f" {', '.join(f'{value:g}' for value in SCALE)}"
      )
  if missing:
    raise UserError(
      f"{file} lacks {len(missing)} of {len(key.solutions) * len(CRITERIA)}"
      f" ratings, the first {missing[0]}; open the page again, finish and save"
    )
  return rater, given


def _summarize(key: Key, raters: Mapping[str, Scores]) -> dict[str, Any]:
  """How sources were rated, how well raters agree, and every rating."""
  # A row for each solution, a column for each rater.
  ratings_UR = {
    criterion: np.array(
      [
        [scores[name][criterion] for scores in raters.values()]
        for name in key.solutions
      ]
    )
    for criterion in CRITERIA
  }
  sources: dict[str, dict[str, Any]] = {}
  for source in key.sources:
    wrote_U = [source in each.sources for each in key.solutions.values()]
    sources[source] = {"solutions": sum(wrote_U)}
    for criterion, given_UR in ratings_UR.items():
      means = list(map(statistics.fmean, given_UR[wrote_U]))
      sources[source][criterion] = {
        "mean": statistics.fmean(means),
        "deviation": statistics.stdev(means) if len(means) > 1 else None,
      }
  return {
    "page": key.page,
    "raters": {
      rater: {
        criterion: statistics.fmean(given_UR[:, column])
        for criterion, given_UR in ratings_UR.items()
      }
      for column, rater in enumerate(raters)
    },
    "sources": sources,
    "agreement": {
      criterion: {
        "alpha": agreement.ordinal_alpha(given_UR),
        "equal": agreement.equal_pairs(given_UR),
      }
      for criterion, given_UR in ratings_UR.items()
    },
    "ratings": [
      {"source": source, "uid": solution.uid, "solution": name, "rater": rater}
      | {criterion: scores[name][criterion] for criterion in CRITERIA}
      for rater, scores in raters.items()
      for name, solution in key.solutions.items()
      for source in solution.sources
    ],
  }


def _show(summary: Mapping[str, Any], screen: console_lib.Console) -> None:
  """Shows what `_summarize` returns, without the single ratings."""
  raters = summary["raters"]
  screen.table(
    f"Ratings from 0 to 1 by {len(raters)} rater{'s' * (len(raters) > 1)}",
    ["source", "solutions", *CRITERIA],
    [
      [source, each["solutions"], *(_spread(each[name]) for name in CRITERIA)]
      for source, each in summary["sources"].items()
    ],
  )
  screen.line("±: deviation between solutions, each the mean of its raters")
  if len(raters) == 1:
    screen.line("one rater: agreement needs two or more")
    return
  screen.table(
    "Agreement",
    ["criterion", "alpha", "equal pairs"],
    [[name, *each.values()] for name, each in summary["agreement"].items()],
  )
  screen.line(
    "alpha: Krippendorff's, ordinal; 1 is perfect, 0 is chance, - if all"
    " ratings are equal"
  )
  screen.table(
    "Mean of each rater",
    ["rater", *CRITERIA],
    [[rater, *means.values()] for rater, means in raters.items()],
  )


def _spread(score: Mapping[str, float | None]) -> str:
  deviation = score["deviation"]
  spread = "-" if deviation is None else f"{deviation:.3f}"
  return f"{score['mean']:.3f} ± {spread}"
