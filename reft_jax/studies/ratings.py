"""Solutions of several models, judged by people who do not know whose.

A page shows the same questions with a solution from each source, shuffled; its
key says who wrote what. Ratings of the page, a file for each rater, are read
back with the key (the paper's human evaluation).
"""

import collections
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

from reft_jax import files as files_lib
from reft_jax.config import schema
from reft_jax.errors import UserError
from reft_jax.studies import agreement

CRITERIA = {
  "logic": "Does the reasoning lead to the answer, without wrong steps?",
  "naming": "Do names and words say what the quantities are?",
  "compactness": "Is nothing there that is not needed?",
}
SCALE = (0.0, 0.5, 1.0)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Solution:
  """A text on the page: to which question, and which sources wrote it."""

  uid: str
  sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Key:
  """Who wrote what.

  Attributes:
    page: tells the page from others.
    sources: what was compared, and the files it was read from.
    solutions: by the names that the page gives them.
  """

  page: str
  sources: Mapping[str, str]
  solutions: Mapping[str, Solution]


@dataclasses.dataclass(frozen=True)
class Ratings:
  """What one rater gave: by solution and criterion, a number of `SCALE`."""

  rater: str
  scores: Mapping[str, Mapping[str, float]]


def find(source: str) -> pathlib.Path:
  """The file of completions that a source means.

  Args:
    source: RUN:STAGE, an evaluation's folder, or the file itself.

  Raises:
    UserError: there is none, or it could be one of several.
  """
  path = files_lib.expand_user(source)
  if path.is_file():
    return path
  if (path / "greedy.jsonl").is_file():
    return path / "greedy.jsonl"
  stages = _stages(path)
  if len(stages) == 1:
    return _samples(path, stages[0])
  if stages:
    named = " or ".join(f"{source}:{stage}" for stage in stages)
    raise UserError(f"{source}: say which stage, {named}")
  folder, _, stage = source.rpartition(":")
  stages = _stages(files_lib.expand_user(folder)) if folder else []
  if stage in stages:
    return _samples(files_lib.expand_user(folder), stage)
  if stages:
    raise UserError(f"{source}: {folder} has tested {', '.join(stages)}")
  raise UserError(
    f"{source}: no completions there; give RUN:STAGE, an evaluation's folder"
    " or a .jsonl file"
  )


def _stages(run: pathlib.Path) -> list[str]:
  """The stages whose greedy test answers a run's folder holds."""
  return [name for name in schema.STAGES if _samples(run, name).is_file()]


def _samples(run: pathlib.Path, stage: str) -> pathlib.Path:
  return run / "samples" / f"test-{stage}.jsonl"


def completions(file: pathlib.Path) -> dict[str, Row]:
  """The rows of a file of completions, by their question's uid.

  Those of a run and of an evaluation come with their question and verdict.

  Raises:
    UserError: what is in the file is something else.
  """
  rows: dict[str, Row] = {}
  # Not splitlines: JSON may hold other line ends unescaped, such as U+2028.
  for number, line in enumerate(read_text(file).split("\n"), start=1):
    if not line.strip():
      continue
    where = f"line {number} of {file}"
    row = _single(read_object(line, where), where)
    uid, text = row.get("uid"), row.get("completion")
    if not isinstance(uid, str) or not isinstance(text, str):
      raise UserError(f"{where} is no completion of a question")
    if uid in rows:
      raise UserError(
        f"{where} is another completion of {uid}; give a file with one for"
        " each question, such as samples/test-sft.jsonl"
      )
    rows[uid] = row
  return rows


def _single(row: Row, where: str) -> Row:
  """A line with lists, as evaluations keep it, as one about one completion."""
  match row:
    case {"completions": [text], "grades": [{"verdict": verdict}]}:
      return {**row, "completion": text, "verdict": verdict}
    case {"completions": [text]}:
      return {**row, "completion": text}
    case {"completions": [_, _, *_] as texts}:
      raise UserError(
        f"{where} holds {len(texts)} samples of a question; give a file with"
        " one for each question, such as greedy.jsonl"
      )
  return row


def questions(rows: Mapping[str, Mapping[str, Row]]) -> dict[str, Row]:
  """The questions by their uids, as those sources tell that hold them.

  Args:
    rows: by source, what `completions` returns.

  Raises:
    UserError: none does, or two tell different ones.
  """
  asked: dict[str, Row] = {}
  for source, each in rows.items():
    for uid, row in each.items():
      if isinstance(row.get("question"), str):
        known = asked.setdefault(uid, row)
        if known["question"] != row["question"]:
          raise UserError(
            f"{uid} is another question in {source} than in a source before"
            " it; compare runs that were tested on the same questions"
          )
  if not asked:
    raise UserError(
      "no source tells the questions; give a RUN:STAGE that was tested on"
      " them, or an evaluation, as one of the sources"
    )
  return asked


def blind(
  files: Mapping[str, pathlib.Path], *, count: int, seed: int, right: bool
) -> tuple[dict[str, Any], Key]:
  """What a page shows, and its key.

  Questions are drawn and shuffled, and so are the solutions of each. What
  several sources wrote alike is shown once and counts for all of them.

  Args:
    files: by source, its completions.
    count: how many questions.
    seed: of the draw.
    right: draw only from questions that all sources answered rightly.

  Raises:
    UserError: the sources have not so many questions in common, or with
      `right` one of them has no verdicts.
  """
  rows = {source: completions(file) for source, file in files.items()}
  asked = questions(rows)
  for source, each in rows.items() if right else ():
    if not all("verdict" in row for row in each.values()):
      raise UserError(
        f"--right: {source} does not say which of its answers are right; give"
        " a RUN:STAGE, or an evaluation that was sampled anew"
      )
  shared = [
    uid
    for uid in asked
    if all(
      uid in each and (not right or each[uid].get("verdict") == "correct")
      for each in rows.values()
    )
  ]
  if len(shared) < count:
    raise UserError(
      f"--questions {count}: all sources answered only {len(shared)}"
      f"{' rightly' if right else ''}; ask for fewer"
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
      solutions[name] = Solution(uid, tuple(authors[text]))
  # Of what is shown, not of who wrote it.
  mark = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]
  sources = {source: str(file) for source, file in files.items()}
  page = {"page": mark, "criteria": CRITERIA, "scale": SCALE}
  return page | {"questions": shown}, Key(mark, sources, solutions)


def _letters(place: int) -> str:
  """A, B ... Z, AA, AB ..."""
  before, last = divmod(place, len(string.ascii_uppercase))
  return (_letters(before - 1) if before else "") + string.ascii_uppercase[last]


def open_key(file: pathlib.Path) -> Key:
  """Reads a key.

  Raises:
    UserError: it is none, or its solutions are not of its sources.
  """
  fields = read_object(read_text(file), str(file))
  try:
    solutions = {
      name: Solution(each["uid"], tuple(each["sources"]))
      for name, each in fields["solutions"].items()
    }
    key = Key(fields["page"], dict(fields["sources"]), solutions)
    authors = {source for each in solutions.values() for source in each.sources}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"{file} is no key of a page") from error
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
  """Reads what one rater saved.

  Raises:
    UserError: it is not all ratings of the key's page, and no others.
  """
  saved = read_object(read_text(file), str(file))
  rater, given = saved.get("rater"), saved.get("ratings")
  if not isinstance(rater, str) or not isinstance(given, dict):
    raise UserError(f"{file} holds no ratings that the page saved")
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
  """How sources were rated, how raters agree, and every rating.

  A source's deviation is among its solutions, each the mean of its raters.
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
      source: _of_source(key, raters, source) for source in key.sources
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


def _of_source(
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


def read_text(file: pathlib.Path) -> str:
  """A file's text; UserError if it cannot be read."""
  try:
    return file.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{file} cannot be read ({getattr(error, 'strerror', 'no UTF-8')})"
    ) from error


def read_object(text: str, where: str) -> dict[str, Any]:
  """An object of JSON; UserError if it is none, or holds a name twice."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = collections.Counter(name for name, _ in pairs)
    for name, count in counts.items():
      if count > 1:
        raise UserError(f"{where} holds {name!r} twice; keep one of the two")
    return dict(pairs)

  try:
    found = json.loads(text, object_pairs_hook=unique)
  except (json.JSONDecodeError, RecursionError) as error:
    raise UserError(f"{where} is not valid JSON; is it complete?") from error
  except UserError:
    raise
  except ValueError as error:
    raise UserError(
      f"{where} holds a number of too many digits; give the file as it was"
      " saved"
    ) from error
  if not isinstance(found, dict):
    raise UserError(f"{where} should be an object of JSON")
  return found
