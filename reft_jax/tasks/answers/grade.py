"""Reading the answer of a completion and comparing it with the reference.

There are two modes. `official` follows the released code exactly. `strict`, the
default, does not reward answers that are not answers (a bare number without
the answer phrase, `nan`, full-width digits, `1_000`, a program that returns
True, letters that are not offered), and reads common notations: `1,000`, `$5`,
`**7**`, `30 %`, `c ) 30`. docs/answers.md lists the differences.

No completion makes these functions raise.
"""

import dataclasses
import enum
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from reft_jax import errors
from reft_jax.tasks import programs, prompts
from reft_jax.tasks.answers import choices, quantities
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import results

MODES = ("strict", "official")

# The kind of a task's answers.
TASKS = {
  "gsm8k": "number",
  "svamp": "number",
  "mathqa-numeric": "number",
  "mathqa": "letter",
  "embedded": "number",
  "embedded-choice": "letter",
}

Value = float | str

_TOLERANCE = 1e-2
_LETTER = re.compile(
  r"""(?P<bold>\*\*)?(?:option\s+)?
      \(?\s*(?P<letter>[a-z])\s*
      (?:\)?\s*[.,]?|\)\s*(?P<text>[^\n]+?))
      (?(bold)\*\*[.,]?)""",
  re.VERBOSE,
)


class Verdict(enum.Enum):
  """Whether a completion answers, and rightly; the config sets the rewards."""

  CORRECT = "correct"
  WRONG = "wrong"
  NONE = "none"  # No answer.


@dataclasses.dataclass(frozen=True)
class Grade:
  """A verdict and its grounds.

  Attributes:
    verdict: correct, wrong or no answer.
    value: the answer: a number, a letter, or None.
    reached: on multiple choice, the result of the reasoning.
    supported: whether that result is the value of the chosen letter; None if
      unknown.
  """

  verdict: Verdict
  value: Value | None
  reached: float | None = None
  supported: bool | None = None


def grade(
  completion: str,
  problem: Problem,
  *,
  reasoning: str = "nl",
  mode: str = "strict",
  result: results.Result | None = None,
) -> Grade:
  """Grades a completion, with or without the prompt in front of it.

  Args:
    completion: the model's text.
    problem: its problem.
    reasoning: `nl`, or `python` for programs.
    mode: one of MODES.
    result: the result of running `programs.source`, for programs.

  Raises:
    UserError: unknown reasoning, mode or task, or an unreadable reference
      answer. Never because of the completion.
    ValueError: a program without its result.
  """
  prompts.check_reasoning(reasoning)
  if mode not in MODES:
    raise errors.UserError(
      f"data.answers={mode!r} is unknown; choose one of: {', '.join(MODES)}."
    )
  given = completion if reasoning == "nl" else result
  if given is None:
    raise ValueError("a program is graded by its result, which is missing")
  answer_kind = kind(problem.task)
  rules = _RULES[answer_kind, mode]
  reference = rules.reference(problem)
  value: Any = rules.read[reasoning](given)
  if value is not None and rules.choose:
    value = rules.choose(value, problem.question)
  if value is None:
    verdict = Verdict.NONE
  else:
    verdict = Verdict.CORRECT if rules.same(value, reference) else Verdict.WRONG
  if answer_kind == "number":
    return Grade(verdict, value)
  reached = _REACHED[reasoning](given)
  if reasoning == "python" and reached is None:  # It returned a letter.
    return Grade(verdict, value)
  supported = choices.supported(problem.question, value, reached)
  return Grade(verdict, value, reached, supported)


def kind(task: str) -> str:
  """'number' or 'letter'; UserError for an unknown task."""
  if task not in TASKS:
    raise errors.UserError(
      f"task {task!r} is unknown; set data.task to one of: "
      f"{', '.join(sorted(TASKS))}."
    )
  return TASKS[task]


def reference(problem: Problem) -> Value:
  """The reference answer's value; UserError if it cannot be read."""
  if kind(problem.task) == "letter":
    letter = problem.answer.strip().lower()
    if re.fullmatch("[a-z]", letter):
      return letter
    wanted = "a letter"
  else:
    number = _float(problem.answer.replace(",", ""))
    if number is not None and math.isfinite(number):
      return number
    wanted = "a number"
  raise errors.UserError(
    f"the answer {problem.answer!r} of {problem.uid} is not {wanted}, which "
    f"task {problem.task!r} expects; correct the row or set data.task."
  )


def _float(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _official_text(completion: str) -> str:
  """The text after the last answer phrase; all of it without one."""
  text = prompts.continuation(completion)
  return text.split(prompts.ANSWER_TRIGGER)[-1]


def _unquoted(text: str) -> str:
  return re.sub("[\"']", "", text.lower()).strip()


def _split(completion: str) -> tuple[str, str]:
  """The texts before and after the last answer phrase ('' without it)."""
  text = prompts.continuation(completion)
  before, phrase, answer = text.rpartition(prompts.ANSWER_TRIGGER.rstrip())
  return (before, answer.strip()) if phrase else (text, "")


def _strict_program_letter(result: results.Result) -> Value | None:
  number = programs.number(result)
  text = result.text if result.kind == "text" else None
  return text if number is None else number


def _choose(answer: Value, question: str) -> str | None:
  """Deviation: a letter that the question offers, or no answer.

  A number stands for the option with that value. A letter may be followed by
  its option's text: `c ) 30`.
  """
  if not isinstance(answer, str):
    return choices.nearest(question, answer)
  match = _LETTER.fullmatch(answer.strip("\"' ").lower())
  if not match or match["letter"] not in choices.offered(question):
    return None
  if match["text"] is None:
    return match["letter"]
  option = choices.options(question).get(match["letter"])
  repeated = option and _words(option.text) == _words(match["text"])
  return match["letter"] if repeated else None


def _words(text: str) -> list[str]:
  return text.lower().rstrip(" .").split()


@dataclasses.dataclass(frozen=True)
class _Rules:
  """How answers of one kind are read and compared in one mode."""

  reference: Callable[[Problem], Value]
  # By reasoning, from the completion or the result of its program.
  read: Mapping[str, Callable[[Any], Value | None]]
  same: Callable[[Any, Any], bool]  # (value, reference value)
  # (answer, question) -> value, where the two differ.
  choose: Callable[[Value, str], Value | None] | None = None


_RULES = {
  ("number", "official"): _Rules(
    reference,
    {
      # Anything that `float` reads: nan and inf, and True and '7' of programs.
      "nl": lambda completion: _float(_official_text(completion)),
      "python": lambda result: result.number,
    },
    lambda value, reference: abs(value - reference) <= _TOLERANCE,
  ),
  ("number", "strict"): _Rules(
    reference,
    {
      # Deviation: one finite decimal number and nothing else.
      "nl": lambda completion: quantities.plain(_split(completion)[1]),
      "python": programs.number,
    },
    quantities.close,
  ),
  ("letter", "official"): _Rules(
    lambda problem: _unquoted(problem.answer),
    {
      # Any text is an answer; that of a program that failed is 'none'.
      "nl": lambda completion: _unquoted(_official_text(completion)),
      "python": lambda result: _unquoted(str(result.text)),
    },
    operator.eq,
  ),
  ("letter", "strict"): _Rules(
    reference,
    {
      "nl": lambda completion: _split(completion)[1],
      "python": _strict_program_letter,
    },
    operator.eq,
    _choose,
  ),
}

# By reasoning: the result behind an answer to multiple choice.
_REACHED: Mapping[str, Callable[[Any], float | None]] = {
  "nl": lambda completion: quantities.computed(_split(completion)[0]),
  "python": programs.number,
}
