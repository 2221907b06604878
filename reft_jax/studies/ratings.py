"""Blinded ratings: people judge solutions without knowing who wrote them.

A page shows questions with a solution from each source, shuffled; the page's
key says who wrote what. Every rater saves a file of ratings, which is read
with the key (the paper's human evaluation).
"""

import collections
import csv
import dataclasses
import hashlib
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
  """Who wrote what.

  Attributes:
    page: identifies the page.
    sources: the file of each source.
    solutions: by their names on the page.
  """

  page: str
  sources: Mapping[str, str]
  solutions: Mapping[str, Authorship]


@dataclasses.dataclass(frozen=True)
class Ratings:
  """The ratings of one rater: by solution and criterion, a value of SCALE."""

  rater: str
  scores: Mapping[str, Mapping[str, float]]


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
  page, key = blind(found, count=questions, seed=seed, right=right)
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
  screen.line(
    f"page for the raters: {output / PAGE}, with {len(key.solutions)}"
    f" solutions of {questions} questions"
  )
  screen.line(f"key, not for the raters: {kept}")


def read(
  key: pathlib.Path,
  *,
  ratings: Sequence[pathlib.Path],
  output: pathlib.Path | None,
  screen: console_lib.Console,
) -> None:
  """Shows and writes how each source was rated and how well raters agree.

  Raises:
    UserError: ratings are of another page, incomplete, or given twice.
  """
  opened = open_key(key)
  raters: dict[str, Ratings] = {}
  origin: dict[str, pathlib.Path] = {}
  for file in ratings:
    given = open_ratings(file, opened)
    if given.rater in raters:
      raise UserError(
        f"{given.rater} rated in {origin[given.rater]} and in {file}; give one"
        " of the two"
      )
    raters[given.rater], origin[given.rater] = given, file
  summary = summarize(opened, list(raters.values()))
  folder = output or key.parent
  folder.mkdir(parents=True, exist_ok=True)
  whole, rows = folder / "ratings.json", folder / "ratings.csv"
  files.replace(whole, json.dumps(summary, indent=2) + "\n")
  with rows.open("w", encoding="utf-8", newline="") as table:
    writer = csv.DictWriter(table, fieldnames=list(summary["ratings"][0]))
    writer.writeheader()
    writer.writerows(summary["ratings"])
  show(summary, screen)
  screen.line(f"ratings: {whole}, {rows}")


def blind(
  paths: Mapping[str, pathlib.Path], *, count: int, seed: int, right: bool
) -> tuple[dict[str, Any], Key]:
  """Draws questions; returns the content of their page, and its key.

  Questions and the solutions of each are shuffled. A text that several sources
  wrote is shown once and counts for all of them.

  Args:
    paths: the file of completions of each source.
    count: the number of questions.
    seed: decides the draw.
    right: draw only from questions that all sources answered correctly.

  Raises:
    UserError: the sources share too few questions, or `right` is asked of a
      source without verdicts.
  """
  rows = {
    source: solutions_lib.completions(file) for source, file in paths.items()
  }
  asked = solutions_lib.questions(rows)
  shared = _shared(rows, asked, right=right)
  if len(shared) < count:
    raise UserError(
      f"--questions {count}: all sources answered only {len(shared)}"
      f"{' correctly' if right else ''}; ask for fewer"
    )
  rng = random.Random(f"rate {seed}")
  shown, solutions = [], {}
  for number, uid in enumerate(rng.sample(shared, count), start=1):
    authors = collections.defaultdict(list)
    for source, each in rows.items():
      text = textwrap.dedent(each[uid]["completion"]).strip()
      authors[text].append(source)
    texts = rng.sample(sorted(authors), len(authors))
    answers = [each[uid].get("answer") for each in rows.values()]
    known = [str(answer) for answer in answers if answer not in (None, "")]
    names = [f"{number}{_letters(place)}" for place in range(len(texts))]
    shown.append(
      {
        "question": asked[uid]["question"].strip(),
        "answer": known[0] if known else None,
        "solutions": dict(zip(names, texts, strict=True)),
      }
    )
    for name, text in zip(names, texts, strict=True):
      solutions[name] = Authorship(uid, tuple(authors[text]))
  # The page's name follows from what it shows, not from who wrote it.
  mark = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]
  sources = {source: str(file) for source, file in paths.items()}
  page = {"page": mark, "criteria": CRITERIA, "scale": SCALE}
  return page | {"questions": shown}, Key(mark, sources, solutions)


def _shared(
  rows: Mapping[str, Mapping[str, solutions_lib.Row]],
  asked: Mapping[str, solutions_lib.Row],
  *,
  right: bool,
) -> list[str]:
  """The questions that all sources answered, or answered correctly."""
  for source, each in rows.items() if right else ():
    if not all("verdict" in row for row in each.values()):
      raise UserError(
        f"--right: {source} does not say which of its answers are right; give"
        " a RUN:STAGE, or an evaluation that was sampled anew"
      )
  return [
    uid
    for uid in asked
    if all(
      uid in each and (not right or each[uid].get("verdict") == "correct")
      for each in rows.values()
    )
  ]


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


def open_ratings(file: pathlib.Path, key: Key) -> Ratings:
  """Reads the file of one rater.

  Raises:
    UserError: the file does not hold exactly the ratings of the key's page.
  """
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
  for name in key.solutions:
    scores = given.get(name)
    for criterion in CRITERIA:
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
  return Ratings(rater, given)


def summarize(key: Key, raters: Sequence[Ratings]) -> dict[str, Any]:
  """How sources were rated, how well raters agree, and every rating.

  A source's deviation is between its solutions, each the mean of its raters.
  """
  return {
    "page": key.page,
    "raters": {
      each.rater: {
        criterion: statistics.fmean(
          scores[criterion] for scores in each.scores.values()
        )
        for criterion in CRITERIA
      }
      for each in raters
    },
    "sources": {
      source: _summarize_source(key, raters, source) for source in key.sources
    },
    "agreement": {
      criterion: _agreement(key, raters, criterion) for criterion in CRITERIA
    },
    "ratings": [
      {"source": source, "uid": solution.uid, "solution": name}
      | {"rater": each.rater}
      | {criterion: each.scores[name][criterion] for criterion in CRITERIA}
      for each in raters
      for name, solution in key.solutions.items()
      for source in solution.sources
    ],
  }


def _summarize_source(
  key: Key, raters: Sequence[Ratings], source: str
) -> dict[str, Any]:
  names = [
    name
    for name, solution in key.solutions.items()
    if source in solution.sources
  ]
  found: dict[str, Any] = {"solutions": len(names)}
  for criterion in CRITERIA:
    means = [
      statistics.fmean(each.scores[name][criterion] for each in raters)
      for name in names
    ]
    found[criterion] = {
      "mean": statistics.fmean(means),
      "deviation": statistics.stdev(means) if len(means) > 1 else None,
    }
  return found


def _agreement(
  key: Key, raters: Sequence[Ratings], criterion: str
) -> dict[str, float | None]:
  ratings_UR = np.array(
    [
      [each.scores[name][criterion] for each in raters]
      for name in key.solutions
    ]
  )
  return {
    "alpha": agreement.ordinal_alpha(ratings_UR),
    "equal": agreement.equal_pairs(ratings_UR),
  }


def show(summary: Mapping[str, Any], screen: console_lib.Console) -> None:
  """Shows what `summarize` returns, without the single ratings."""
  raters, criteria = summary["raters"], list(CRITERIA)
  screen.table(
    f"Ratings from 0 to 1 by {len(raters)} rater{'s' * (len(raters) > 1)}",
    ["source", "solutions", *criteria],
    [
      [source, each["solutions"], *(_spread(each[name]) for name in criteria)]
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
    ["rater", *criteria],
    [[rater, *means.values()] for rater, means in raters.items()],
  )


def _spread(score: Mapping[str, float | None]) -> str:
  deviation = score["deviation"]
  spread = "-" if deviation is None else f"{deviation:.3f}"
  return f"{score['mean']:.3f} ± {spread}"
