"""Multiple choice: what a question offers and what its options are worth.

Options stand on a question's last line, as MathQA writes them:

  a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these
  ['a ) 12', 'b ) 15', 'c ) 10', 'd ) 8', 'e ) 14']
"""

import collections
import dataclasses
import itertools
import re
import string
from collections.abc import Iterable, Sequence

from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks.answers import quantities

_LABEL = re.compile(r"(?:^|,)[\s\['\"]*([a-j])\s*\)", re.IGNORECASE)
# Without commas: `a ) 38 b ) 27`, but not `f ( b )`
_SPACED_LABEL = re.compile(
  r"(?:^|(?<!\()\s+(?<!\(\s))([a-j])\s*\)", re.IGNORECASE
)
_AROUND = " \t'\"[]"
_USUAL_LETTERS = frozenset("abcde")


@dataclasses.dataclass(frozen=True)
class Option:
  """One option: its text, and its value if it is a single number."""

  text: str
  value: float | None


def parse(line: str) -> dict[str, Option]:
  """A line's options by their letters; empty if it holds fewer than two."""
  labels = list(_LABEL.finditer(line))
  if len(labels) < 2:
    labels = _in_order(_SPACED_LABEL.finditer(line.strip()))
  found: dict[str, Option] = {}
  for label, following in itertools.pairwise((*labels, None)):
    end = following.start() if following else None
    text = label.string[label.end() : end].strip(_AROUND)
    option = Option(text, quantities.measured(text))
    found.setdefault(label[1].lower(), option)
  return found if len(found) > 1 else {}


def _in_order(labels: Iterable[re.Match]) -> list[re.Match]:
  """An `a` that starts the line, the next `b`, the next `c` and so on."""
  found: list[re.Match] = []
  for label in labels:
    expected = string.ascii_lowercase[len(found)]
    if label[1].lower() == expected and (found or label.start() == 0):
      found.append(label)
  return found


def options(question: str) -> dict[str, Option]:
  """The options on a question's last line by their letters."""
  return parse(question.strip().rpartition("\n")[2])


def without_options(question: str) -> str:
  """The question without its last line, if that holds options."""
  body, _, line = question.strip().rpartition("\n")
  return body.strip() if parse(line) else question


def offered(question: str) -> frozenset[str]:
  """The letters that may be chosen: a to e where no options can be read."""
  return frozenset(options(question)) or _USUAL_LETTERS


def nearest(question: str, number: float) -> str | None:
  """The letter of the option that a number is the value of.

  The closest one if several are close; None if none is, or if two are the same.
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
  """Whether reasoning that reached a number (or none) backs the letter.

  None where it cannot be told: the letter is not offered, or its option is no
  number (`none of these`).
  """
  option = options(question).get(letter)
  if option is None or option.value is None:
    return None
  return reached is not None and quantities.close(reached, option.value)


def constant_letter(
  problems: Sequence[problem_lib.Problem],
) -> tuple[str, float]:
  """The letter that is right most often, and the share it is right for.

  What a policy scores that has learnt nothing else. Ties go to the first
  letter of the alphabet; there must be at least one problem.
  """
  counts = collections.Counter(each.answer.strip().lower() for each in problems)
  letter = min(counts, key=lambda each: (-counts[each], each))
  return letter, counts[letter] / len(problems)
