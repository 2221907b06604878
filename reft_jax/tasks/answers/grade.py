"""Reading the answer out of a completion and comparing it with the truth.

Two modes. `official` is the released code's rules to the letter. `strict`, the
default, closes the holes a policy could be rewarded through (a bare number
without the answer phrase, `nan`, full-width digits, `1_000`, a program that
returns True, letters that were not offered) and understands what people write:
`1,000`, `$5`, `**7**`, `30 %`, `c ) 30`. docs/answers.md lists the differences.

Nothing a model writes makes these functions raise.
"""

import dataclasses
import enum
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from reft_jax import errors
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import programs, prompts
from reft_jax.tasks.answers import choices, quantities
from reft_jax.tasks.sandbox import results

MODES = ("strict", "official")

# How a task's answers are read: as a number or as a letter of a choice.
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
  """What a completion earns is decided by the run's config, not here."""

  CORRECT = "correct"
  WRONG = "wrong"  # An answer, but not the right one.
  NONE = "none"  # No answer.


@dataclasses.dataclass(frozen=True)
class Grade:
  """A verdict and what it rests on.

  Attributes:
    verdict: whether there is an answer, and the right one.
    value: the answer: a number, a letter's text, or None.
    reached: on multiple choice, the number that the reasoning came to.
    supported: whether that is the value of the letter that was chosen; None
      where it cannot be told.
  """

  verdict: Verdict
  value: Value | None
  reached: float | None = None
  supported: bool | None = None


def grade(
  completion: str,
  problem: problem_lib.Problem,
  *,
  reasoning: str = "nl",
  mode: str = "strict",
  result: results.Result | None = None,
) -> Grade:
  """Grades a completion, with or without the prompt in front of it.

  Args:
    completion: what the model wrote.
    problem: what it was asked.
    reasoning: `nl`, or `python` for programs.
    mode: one of MODES.
    result: what came of running `programs.source` of a program.

  Raises:
    UserError: unknown reasoning, mode or task, or a problem whose own answer
      cannot be read. Never because of the completion.
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
  truth = rules.gold(problem)
  value = rules.read[reasoning](given)
  if value is not None and rules.choose:
    value = rules.choose(value, problem.question)
  if value is None:
    verdict = Verdict.NONE
  else:
    verdict = Verdict.CORRECT if rules.same(value, truth) else Verdict.WRONG
  if answer_kind == "number":
    return Grade(verdict, value)
  reached = _REACHED[reasoning](given)
  if reasoning == "python" and reached is None:  # It returned a letter itself.
    return Grade(verdict, value)
  supported = choices.supported(problem.question, value, reached)
  return Grade(verdict, value, reached, supported)


def kind(task: str) -> str:
  """'number' or 'letter'; UserError for a task that is not known."""
  if task not in TASKS:
    raise errors.UserError(
      f"task {task!r} is unknown; set data.task to one of: "
      f"{', '.join(sorted(TASKS))}."
    )
  return TASKS[task]


def gold(problem: problem_lib.Problem) -> Value:
  """The known answer's value; UserError if it cannot be read."""
  if kind(problem.task) == "letter":
    value = problem.answer.strip().lower()
    if re.fullmatch("[a-z]", value):
      return value
    wanted = "a letter"
  else:
    value = _float(problem.answer.replace(",", ""))
    if value is not None and math.isfinite(value):
      return value
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
  """What follows the last answer phrase; everything if there is none."""
  text = prompts.continuation(completion)
  return text.split(prompts.ANSWER_TRIGGER)[-1]


def _official_number(completion: str) -> float | None:
  """Whatever `float` reads, nan and inf included."""
  return _float(_official_text(completion))


def _official_letter(completion: str) -> str:
  """Any text at all: never None."""
  return _unquoted(_official_text(completion))


def _official_program_number(result: results.Result) -> float | None:
  """Whatever `float` makes of what was returned, be it True or '7'."""
  returned = result.status is results.Status.RETURNED
  return result.number if returned else None


def _official_program_letter(result: results.Result) -> str:
  """What was returned as a text; 'none' for a program that failed."""
  returned = result.status is results.Status.RETURNED
  return _unquoted(str(result.text if returned else None))


def _official_gold_letter(problem: problem_lib.Problem) -> str:
  return _unquoted(problem.answer)


def _official_close(value: float, truth: float) -> bool:
  return abs(value - truth) <= _TOLERANCE


def _unquoted(text: str) -> str:
  return re.sub("[\"']", "", text.lower()).strip()


def _split(completion: str) -> tuple[str, str]:
  """The reasoning, and what follows the last answer phrase ('' without it)."""
  text = prompts.continuation(completion)
  before, phrase, answer = text.rpartition(prompts.ANSWER_TRIGGER.rstrip())
  return (before, answer.strip()) if phrase else (text, "")


def _strict_number(completion: str) -> float | None:
  """Deviation: a finite decimal number of sane size, alone on its line."""
  return quantities.plain(_split(completion)[1])


def _strict_letter(completion: str) -> str:
  return _split(completion)[1]


def _strict_program_letter(result: results.Result) -> Value | None:
  number = programs.number(result)
  return programs.text(result) if number is None else number


def _choose(answer: Value, question: str) -> str | None:
  """Deviation: one of the letters that the question offers, or no answer.

  A number stands for the option that it is the value of. A letter may come with
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
  """How answers of one kind are read and compared in one mode.

  Attributes:
    gold: problem -> the right value.
    read: by reasoning: completion, or a program's result -> what it answers.
    same: (value, right value) -> whether the answer is right.
    choose: (what is answered, question) -> the value, where they differ.
  """

  gold: Callable[[problem_lib.Problem], Value]
  read: Mapping[str, Callable[[Any], Value | None]]
  same: Callable[[Any, Any], bool]
  choose: Callable[[Value, str], Value | None] | None = None


_RULES = {
  ("number", "official"): _Rules(
    gold,
    {"nl": _official_number, "python": _official_program_number},
    _official_close,
  ),
  ("number", "strict"): _Rules(
    gold,
    {"nl": _strict_number, "python": programs.number},
    quantities.close,
  ),
  ("letter", "official"): _Rules(
    _official_gold_letter,
    {"nl": _official_letter, "python": _official_program_letter},
    operator.eq,
  ),
  ("letter", "strict"): _Rules(
    gold,
    {"nl": _strict_letter, "python": _strict_program_letter},
    operator.eq,
    _choose,
  ),
}


def _computed(completion: str) -> float | None:
  return quantities.computed(_split(completion)[0])


# By reasoning: the number that an answer to multiple choice came from.
_REACHED = {"nl": _computed, "python": programs.number}
