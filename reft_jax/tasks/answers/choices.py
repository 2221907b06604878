"""Multiple choice: a question's options and their values.

The options are the question's last line, as in MathQA:

  a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these
  ['a ) 12', 'b ) 15', 'c ) 10', 'd ) 8', 'e ) 14']
"""

import collections
import dataclasses
import re
import string
from collections.abc import Iterable, Sequence

from reft_jax.tasks.answers import quantities
from reft_jax.tasks.problem import Problem

_LABEL = re.compile(r"(?:^|,)[\s\['\"]*([a-j])\s*\)", re.IGNORECASE)
# Without commas: `a ) 38 b ) 27`, but not `f ( b )`
_SPACED_LABEL = re.compile(
  r"(?:^|(?<!\()\s+(?<!\(\s))([a-j])\s*\)", re.IGNORECASE
)
_PADDING = " \t'\"[]"
_DEFAULT_LETTERS = frozenset("abcde")


@dataclasses.dataclass(frozen=True)
class Option:
  """One option: its text, and its value if it is a single number."""

  text: str
  value: float | None


def parse(line: str) -> dict[str, Option]:
  """A line's options by letter; empty with fewer than two."""
  labels = list(_LABEL.finditer(line))
  if len(labels) < 2:
    labels = _in_order(_SPACED_LABEL.finditer(line.strip()))
  found: dict[str, Option] = {}
  ends = [*(label.start() for label in labels[1:]), len(line)]
  for label, end in zip(labels, ends, strict=False):
    text = label.string[label.end() : end].strip(_PADDING)
    option = Option(text, quantities.measured(text))
    found.setdefault(label[1].lower(), option)
  return found if len(found) > 1 else {}


def _in_order(labels: Iterable[re.Match[str]]) -> list[re.Match[str]]:
  """An `a` at the start of the line, the next `b`, the next `c` and so on."""
  found: list[re.Match[str]] = []
  for label in labels:
    expected = string.ascii_lowercase[len(found)]
    if label[1].lower() == expected and (found or label.start() == 0):
      found.append(label)
  return found


def options(question: str) -> dict[str, Option]:
  """The options on a question's last line, by letter."""
  return parse(question.strip().rpartition("\n")[2])


def without_options(question: str) -> str:
  """The question without its line of options, if there is one."""
  body, _, line = question.strip().rpartition("\n")
  return body.strip() if parse(line) else question


def offered(question: str) -> frozenset[str]:
  """The letters to choose from; a to e if no options can be read."""
  return frozenset(options(question)) or _DEFAULT_LETTERS


def nearest(question: str, number: float) -> str | None:
  """The letter of the option whose value is closest to a number.

  None if no option is close, or if two are equally close.
  """
  distances = {
    letter: abs(option.value - number)
    for letter, option in options(question).items()
    if option.value is not None and quantities.close(number, option.value)
  }
  least = min(distances.values(), default=None)
  best = [letter for letter, each in distances.items() if each == least]
  return best[0] if len(best) == 1 else None


def supported(question: str, letter: str, reached: float | None) -> bool | None:
  """Whether the number that the reasoning reached is the letter's value.

  None if that is unknown: the letter is not offered, or its option is not a
  number (`none of these`).
  """
  option = options(question).get(letter)
  if option is None or option.value is None:
    return None
  return reached is not None and quantities.close(reached, option.value)


def constant_letter(problems: Sequence[Problem]) -> tuple[str, float]:
  """The most frequent correct letter, and the accuracy of always choosing it.

  A baseline for trained policies. Ties go to the letter that comes first in
  the alphabet; there must be at least one problem.
  """
  counts = collections.Counter(each.answer.strip().lower() for each in problems)
  letter = min(counts, key=lambda each: (-counts[each], each))
  return letter, counts[letter] / len(problems)
