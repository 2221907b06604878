"""The solutions that a run or an evaluation wrote, for ratings by people."""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reft_jax import files
from reft_jax.config import stages as table
from reft_jax.errors import UserError

Row = Mapping[str, Any]
# By the uid of their question.
Rows = Mapping[str, Row]


def find(source: str) -> pathlib.Path:
  """The completions of RUN:STAGE, of an evaluation's folder, or of a file.

  Raises:
    UserError: there is no such file, or there are several.
  """
  path = files.expand_user(source)
  for file in (path, path / "greedy.jsonl"):
    if file.is_file():
      return file
  if stages := _stages(path):
    if len(stages) == 1:
      return _samples(path, stages[0])
    named = " or ".join(f"{source}:{stage}" for stage in stages)
    raise UserError(f"{source}: say which stage, {named}")
  folder, _, stage = source.rpartition(":")
  run = files.expand_user(folder)
  stages = _stages(run) if folder else []
  if stage in stages:
    return _samples(run, stage)
  if stages:
    raise UserError(f"{source}: {folder} has tested {', '.join(stages)}")
  raise UserError(
    f"{source}: no completions there; give RUN:STAGE, an evaluation's folder"
    " or a .jsonl file"
  )


def _stages(run: pathlib.Path) -> list[str]:
  """The stages whose greedy test answers are in a run's folder."""
  return [name for name in table.TABLE if _samples(run, name).is_file()]


def _samples(run: pathlib.Path, stage: str) -> pathlib.Path:
  return run / "samples" / f"test-{stage}.jsonl"


def completions(file: pathlib.Path) -> Rows:
  """The rows of a file of completions, by their question's uid.

  Rows of runs and evaluations also have the question and the verdict.

  Raises:
    UserError: the file does not hold one completion for each question.
  """
  rows: dict[str, Row] = {}
  # Not splitlines: JSON strings may hold other line ends, such as U+2028.
  for number, line in enumerate(read_text(file).split("\n"), start=1):
    if not line.strip():
      continue
    where = f"line {number} of {file}"
    row = _flatten(read_object(line, where), where)
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


def _flatten(row: Row, where: str) -> Row:
  """A row with one completion, from an evaluation's row of lists."""
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


def questions(rows: Mapping[str, Rows]) -> Rows:
  """A row with the question for each uid, from the `completions` of sources.

  Raises:
    UserError: no row has a question, or two sources have different ones.
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
      "no source has the questions; add a RUN:STAGE that was tested on them,"
      " or an evaluation, to the sources"
    )
  return asked


def read_text(file: pathlib.Path) -> str:
  """A file's text; raises UserError if it cannot be read."""
  try:
    return file.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{file} cannot be read ({getattr(error, 'strerror', 'no UTF-8')})"
    ) from error


def read_object(text: str, where: str) -> dict[str, Any]:
  """A JSON object; raises UserError for anything else and for equal keys."""

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
      f"{where} holds a number with too many digits; give the file as it was"
      " saved"
    ) from error
  if not isinstance(found, dict):
    raise UserError(f"{where} should be a JSON object")
  return found
