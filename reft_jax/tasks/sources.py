"""Problems from files and from the Hugging Face hub.

Four layouts are recognised by their fields:

  ReFT (the released code's):  item_id, question, answer_cot (optional),
    answer_value
  GSM8K as published:  question, answer (`... <<48/2=24>>24 ... #### 72`)
  SVAMP on the hub:  Body, Question, Answer (no chain of thought)
  MathQA as published:  Problem, Rationale (optional), options, correct

task="mathqa-numeric" turns multiple choice into MathQA-numeric: the question
without its options, with the value of the correct one as its answer.
"""

import ast
import contextlib
import dataclasses
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reft_jax import errors, files
from reft_jax.tasks.answers import choices, grade
from reft_jax.tasks.problem import Problem

HUB = "hub:"

Row = Mapping[str, Any]

# The usual configuration of data sets that have several.
_CONFIGURATIONS = {"openai/gsm8k": ["main"]}
_NUMERIC = "mathqa-numeric"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """The problems of a source.

  Attributes:
    problems: in the order of the rows.
    left_out: rows that MathQA-numeric cannot use: a right option without value.
  """

  problems: list[Problem]
  left_out: int = 0


def load(
  source: str, task: str | None = None, *, calculator_marks: bool = False
) -> Loaded:
  """The problems of a file or of a data set on the hub.

  Args:
    source: a `.json` file (a list of rows), a `.jsonl` file (a row a line), or
      `hub:owner/name[:configuration][:split]`, such as
      `hub:openai/gsm8k:main:test`; the split is `train` unless given.
    task: how answers are read, a key of `grade.TASKS`; by default the layout's,
      or the item_id up to its first underscore.
    calculator_marks: keep GSM8K's `<<48/2=24>>`.

  Raises:
    UserError: names the source, the row and what was expected.
  """
  if task is not None:
    grade.kind(task)
  rows = _read_hub(source) if source.startswith(HUB) else _read_file(source)
  if not rows:
    raise errors.UserError(f"{source} holds no rows.")
  layout = _layout(rows[0], source)
  problems = []
  for index, row in enumerate(rows):
    try:
      problem = _problem(row, layout, task, index, calculator_marks)
    except errors.UserError as error:
      message = f"row {index + 1} of {source}: {error}"
      raise errors.UserError(message) from None
    if problem is not None:
      problems.append(problem)
  if not problems:
    raise errors.UserError(
      f"none of the {len(rows)} right options of {source} is a number, so "
      f"nothing is left for task {_NUMERIC!r}; set data.task=mathqa."
    )
  return Loaded(problems, left_out=len(rows) - len(problems))


def carve_dev(
  problems: Sequence[Problem], size: int, seed: int
) -> tuple[list[Problem], list[Problem]]:
  """Splits problems into (train, dev), both in their given order.

  Repeated questions stay in train, so that no dev question is trained on.

  Raises:
    UserError: no training problem would be left.
  """
  count = Counter(each.question for each in problems)
  once = [i for i, each in enumerate(problems) if count[each.question] == 1]
  if not 0 <= size <= len(once) or (size and size == len(problems)):
    raise errors.UserError(
      f"data.dev_size={size} is too large for {len(problems)} training "
      f"problems ({len(once)} of them with a question of their own); it must "
      "leave some to train on."
      if size > 0
      else f"data.dev_size={size} must not be negative."
    )
  chosen = set(random.Random(f"dev {seed}").sample(once, size))
  train = [each for i, each in enumerate(problems) if i not in chosen]
  return train, [problems[i] for i in sorted(chosen)]


@dataclasses.dataclass(frozen=True)
class _Layout:
  """A publisher's layout of a row."""

  fields: tuple[str, ...]  # Required texts; the last, the answer, or a number.
  task: str | None  # Of every row; None if the rows name it.
  read: Callable[[Row], tuple[str, str, str]]  # Question, rationale, answer.
  marked: bool = False  # Whether rationales hold calculator marks.


def _read_reft(row: Row) -> tuple[str, str, str]:
  rationale = str(row.get("answer_cot") or "")
  return row["question"], rationale, str(row["answer_value"])


def _read_gsm8k(row: Row) -> tuple[str, str, str]:
  rationale, _, answer = str(row["answer"]).rpartition("####")
  # Without commas: `official` cannot read them, and targets must be readable.
  return row["question"], rationale, answer.replace(",", "")


def _read_svamp(row: Row) -> tuple[str, str, str]:
  question = f"{row['Body'].strip()} {row['Question'].strip()}"
  return question, "", str(row["Answer"])


def _read_mathqa(row: Row) -> tuple[str, str, str]:
  question = f"{row['Problem'].strip()}\n{_labelled(row['options'])}"
  rationale = str(row.get("Rationale") or "").strip()
  if re.fullmatch('".*"', rationale, re.DOTALL):  # Most are quoted twice.
    rationale = rationale[1:-1]
  return question, rationale, str(row["correct"])


def _labelled(options: str | list) -> str:
  """MathQA's options on one line; a list without letters gets them."""
  if isinstance(options, list):
    texts = [" ".join(str(text).split()) for text in options]
    line = " , ".join(texts)
    if choices.parse(line):
      return line
    return " , ".join(
      f"{letter} ) {text}"
      for letter, text in zip(string.ascii_lowercase, texts, strict=False)
    )
  line = " ".join(options.split())
  if choices.parse(line):
    return line
  try:
    texts = ast.literal_eval(line)
  except (SyntaxError, ValueError):
    return line
  return _labelled(list(texts)) if isinstance(texts, list | tuple) else line


_LAYOUTS = (
  _Layout(("question", "answer_value"), None, _read_reft),
  _Layout(("question", "answer"), "gsm8k", _read_gsm8k, marked=True),
  _Layout(("Body", "Question", "Answer"), "svamp", _read_svamp),
  _Layout(("Problem", "options", "correct"), "mathqa", _read_mathqa),
)
# The types of fields that are neither a text nor the answer.
_TYPES = {"options": str | list}


def _layout(row: Row, source: str) -> _Layout:
  found = list(row) if isinstance(row, Mapping) else []
  for layout in _LAYOUTS:
    if set(layout.fields) <= set(found):
      return layout
  wanted = " or ".join(f"({', '.join(each.fields)})" for each in _LAYOUTS)
  raise errors.UserError(
    f"{source} has an unknown layout: it must hold a list of rows, or one a "
    f"line, and these must have the fields {wanted}; found: "
    f"({', '.join(found)})."
  )


def _problem(
  row: Row,
  layout: _Layout,
  task: str | None,
  index: int,
  calculator_marks: bool,
) -> Problem | None:
  """A row as a problem; None if MathQA-numeric cannot use it."""
  found = row if isinstance(row, Mapping) else {}
  for field in layout.fields:
    wanted = _TYPES.get(field, str)
    if field == layout.fields[-1]:
      wanted = str | int | float
    if not isinstance(found.get(field), wanted):
      raise errors.UserError(
        f"expected the fields ({', '.join(layout.fields)}) as texts, but "
        f"{field!r} is {found.get(field)!r:.40} among ({', '.join(found)})."
      )
  item_id = row.get("item_id")
  if task is None:
    task = layout.task or str(item_id or "").partition("_")[0]
  if not task:
    raise errors.UserError(
      "rows without item_id need data.task; set it to one of: "
      f"{', '.join(sorted(grade.TASKS))}."
    )
  question, rationale, answer = layout.read(row)
  if not question.strip():
    raise errors.UserError(
      "the question is blank; give it words or take the row out."
    )
  if layout.marked and not calculator_marks:
    rationale = re.sub("<<.*?>>", "", rationale)
  problem = Problem(
    uid=str(item_id or f"{task}_{index}"),
    task=task,
    question=question,
    rationale=rationale.strip() or None,
    answer=answer.strip(),
  )
  if task == _NUMERIC and re.fullmatch("[a-zA-Z]", problem.answer):
    return _numeric(problem)
  grade.reference(problem)  # Raises for an unknown task or answer.
  return problem


def _numeric(problem: Problem) -> Problem | None:
  """Multiple choice as MathQA-numeric; None if the answer is not a number.

  The options leave the question, and the answer is the correct option as read
  by `quantities.measured`: without units, currencies and percent signs, and
  with fractions computed. Deviation: the published file drops minus signs and
  cuts `$ 3,375` to 3.
  """
  options = choices.options(problem.question)
  right = options.get(problem.answer.lower())
  if right is None or right.value is None:
    return None
  return dataclasses.replace(
    problem,
    question=choices.without_options(problem.question),
    answer=str(right.value),
  )


def _read_file(source: str) -> list[Row]:
  path = files.expand_user(source)
  if not path.is_file():
    raise errors.UserError(
      f"no data file at {source!r}; give a .json or .jsonl file, 'embedded' "
      "or hub:owner/name[:configuration][:split]."
    )
  try:
    text = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f"{source} cannot be read: {error}.") from error
  if text.lstrip().startswith("["):
    return _parse(text, source, 1)
  with contextlib.suppress(ValueError, RecursionError):
    return [json.loads(text)]  # One object, on however many lines.
  lines = enumerate(text.split("\n"), start=1)
  return [_parse(line, source, n) for n, line in lines if line.strip()]


def _parse(text: str, source: str, first_line: int) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    line = first_line + getattr(error, "lineno", 1) - 1
    raise errors.UserError(
      f"line {line} of {source} is not valid JSON "
      f"({getattr(error, 'msg', error)}); is the file complete?"
    ) from error


def _read_hub(source: str) -> list[Row]:
  name, *rest = source.removeprefix(HUB).split(":")
  if not name or len(rest) > 2 or not all(rest):
    raise errors.UserError(
      f"{source!r} must read hub:owner/name[:configuration][:split], such as "
      "hub:openai/gsm8k:main:test."
    )
  *configuration, split = rest or ["train"]
  configuration = configuration or _CONFIGURATIONS.get(name, [])
  import datasets

  try:
    return list(datasets.load_dataset(name, *configuration, split=split))
  except Exception as error:  # Network, cache, unknown name, unknown split.
    reason = str(error).strip().partition("\n")[0]
    raise errors.UserError(f"{source} could not be loaded: {reason}") from error
