"""Reading the answer out of a completion and comparing it with the truth.

Two modes. `official` is the released code's rules to the letter. `strict`, the
default, closes the holes a policy could be rewarded through (a bare number
without the answer phrase, `nan`, full-width digits, `1_000`, letters that were
not offered) and understands what people write: `1,000`, `$5`, `7.`, `30 %`.

Nothing a model writes makes these functions raise.
"""

import dataclasses
import enum
import math
import re
from collections.abc import Callable

from reft_jax import errors
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts

MODES = ("strict", "official")

# How a task's answers are read: as a number or as a letter of a choice.
TASKS = {
  "gsm8k": "number",
  "svamp": "number",
  "mathqa-numeric": "number",
  "mathqa": "letter",
  "embedded": "number",
}

# Past this, doubles no longer tell neighbouring hundredths apart.
_LARGEST = 1e13
_TOLERANCE = 1e-2
_RELATIVE_TOLERANCE = 0.05

_NUMBER = re.compile(
  r"""(?P<sign>[+-]?)
      (?:\$\s?)?                         # A leading dollar
      (?P<number>
        (?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)  # 1,000 or 1000
        (?:\.[0-9]+)?
        |\.[0-9]+)
      (?P<exponent>(?:[eE][+-]?[0-9]+)?)
      (?:\s?%)?                          # A percentage is read as its number
      \.?                                # A full stop""",
  re.VERBOSE,
)
_LETTER = re.compile(r"\(?\s*([a-z])\s*\)?\s*\.?")
# MathQA's options, on the last line of a question: `a ) 38 , b ) 27.675 , ...`.
_OPTION = re.compile(r"(?:^|,)[\s\['\"]*([a-z])\s*\)")
_USUAL_LETTERS = frozenset("abcde")


class Verdict(enum.Enum):
  """What a completion earns is decided by the run's config, not here."""

  CORRECT = "correct"
  WRONG = "wrong"  # An answer, but not the right one.
  NONE = "none"  # No answer.


@dataclasses.dataclass(frozen=True)
class Grade:
  """A verdict and the value it judged: a number, a letter's text, or None."""

  verdict: Verdict
  value: float | str | None


def grade(
  completion: str,
  problem: problem_lib.Problem,
  *,
  reasoning: str = "nl",
  mode: str = "strict",
) -> Grade:
  """Grades a completion, with or without the prompt in front of it.

  Raises:
    UserError: unknown reasoning, mode or task, or a problem whose own answer
      cannot be read. Never because of the completion.
  """
  prompts.check_reasoning(reasoning)
  if mode not in MODES:
    raise errors.UserError(
      f"data.answers={mode!r} is unknown; choose one of: {', '.join(MODES)}."
    )
  truth = gold(problem)
  read, same = _RULES[kind(problem.task), mode]
  value = read(completion, problem.question)
  if value is None:
    return Grade(Verdict.NONE, None)
  verdict = Verdict.CORRECT if same(value, truth) else Verdict.WRONG
  return Grade(verdict, value)


def kind(task: str) -> str:
  """'number' or 'letter'; UserError for a task that is not known."""
  if task not in TASKS:
    raise errors.UserError(
      f"task {task!r} is unknown; set data.task to one of: "
      f"{', '.join(sorted(TASKS))}."
    )
  return TASKS[task]


def gold(problem: problem_lib.Problem) -> float | str:
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


def _reasoning(text: str) -> str:
  """The completion within a decoded sequence."""
  return text.strip().split(prompts.COT_TRIGGER)[-1].strip()


def _float(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _official_text(text: str) -> str:
  """What follows the last answer phrase; everything if there is none."""
  return _reasoning(text).split(prompts.ANSWER_TRIGGER)[-1]


def _official_number(text: str, question: str) -> float | None:
  """Whatever `float` reads, nan and inf included."""
  del question
  return _float(_official_text(text))


def _official_letter(text: str, question: str) -> str:
  """Any text at all: never None."""
  del question
  return re.sub("[\"']", "", _official_text(text).lower()).strip()


def _strict_text(text: str) -> str | None:
  """What follows the last answer phrase, None if there is none."""
  _, phrase, answer = _reasoning(text).rpartition(
    prompts.ANSWER_TRIGGER.rstrip()
  )
  return answer.strip() if phrase else None


def _strict_number(text: str, question: str) -> float | None:
  """Deviation: a finite decimal number of sane size, alone on its line."""
  del question
  answer = _strict_text(text)
  match = answer and _NUMBER.fullmatch(answer)
  if not match:
    return None
  digits = match["sign"] + match["number"] + match["exponent"]
  value = float(digits.replace(",", ""))
  return value if abs(value) <= _LARGEST else None


def _strict_letter(text: str, question: str) -> str | None:
  """Deviation: one of the letters the question offers, or no answer."""
  answer = _strict_text(text)
  match = answer and _LETTER.fullmatch(answer.strip("\"' ").lower())
  if not match:
    return None
  options = question.strip().rpartition("\n")[2]
  offered = frozenset(_OPTION.findall(options)) or _USUAL_LETTERS
  return match[1] if match[1] in offered else None


def _official_close(value: float, truth: float) -> bool:
  return abs(value - truth) <= _TOLERANCE


def _strict_close(value: float, truth: float) -> bool:
  """Deviation: small truths must be met to 5 %, or 0 would pass for 0.005."""
  tolerance = min(_TOLERANCE, _RELATIVE_TOLERANCE * abs(truth))
  return abs(value - truth) <= tolerance


def _same_letter(value: str, truth: str) -> bool:
  return value == truth


_RULES: dict[tuple[str, str], tuple[Callable, Callable]] = {
  ("number", "official"): (_official_number, _official_close),
  ("number", "strict"): (_strict_number, _strict_close),
  ("letter", "official"): (_official_letter, _same_letter),
  ("letter", "strict"): (_strict_letter, _same_letter),
}
