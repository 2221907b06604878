"""Solutions as sentences or programs, and options as a question's last line."""

import random
from collections.abc import Mapping, Sequence

from reft_jax.tasks import prompts
from reft_jax.tasks.embedded import solutions, stories

LETTERS = "abcde"
RETURN = "\n    return result"
PRINT = "\n    print ( result )"
DRILL_LENGTH = 9  # Events or lookups: as many as fill a document.


def sentence(solution: solutions.Solution) -> str:
  """The solution in words."""
  before = (solution.start, *solution.results[:-1])
  steps = zip(before, solution.groups, solution.results, strict=True)
  equations = [
    f"{_expression(str(value), group)} = {result}"
    for value, group, result in steps
  ]
  return f"We get {', then '.join(equations)}."


def program(solution: solutions.Solution) -> str:
  """The program's lines between its docstring and its return statement."""
  first, *others = solution.groups
  expressions = (
    _expression(str(solution.start), first),
    *(_expression("result", group) for group in others),
  )
  return "\n".join(f"    result = {each}" for each in expressions)


def _expression(operand: str, events: Sequence[stories.Event]) -> str:
  """Applies events to an operand, from left to right."""
  expression = operand
  is_sum = False  # `*` and `/` bind tighter, so a sum needs parentheses.
  for sign, number in events:
    if is_sum and sign in "*/":
      expression = f"( {expression} )"
    is_sum = sign in "+-"
    expression = f"{expression} {sign} {number}"
  return expression


def options(
  rng: random.Random, story: stories.Story, solution: solutions.Solution
) -> dict[str, int]:
  """Five different values in random order, by their letters.

  They include the right value and the solution's, right or wrong; the others
  are results of mistakes.
  """
  groups = [[event] for event in story.events]
  values = list(dict.fromkeys((story.value, solution.value)))
  while len(values) < len(LETTERS):
    wrong = solutions.solve_wrongly(rng, story.start, groups)
    if wrong and wrong.value not in values:
      values.append(wrong.value)
  rng.shuffle(values)
  return dict(zip(LETTERS, values, strict=True))


def options_line(options: Mapping[str, int]) -> str:
  """The options as a question's last line; empty without options."""
  if not options:
    return ""
  items = (f"{letter} ) {value}" for letter, value in options.items())
  return f"\n{' , '.join(items)}"


def answer(solution: solutions.Solution, options: Mapping[str, int]) -> str:
  """The letter of the solution's value; the value itself without options."""
  letters = {value: letter for letter, value in options.items()}
  return letters.get(solution.value, str(solution.value))


def conclusion(value: int, letter: str = "") -> str:
  """An ending other than the answer phrase."""
  return f" That makes {value} {letter}".rstrip() + "."


def lookup_drill(rng: random.Random) -> str:
  """A line of options and the letters of some of their values.

  Letters may be missing and the value may stand next to its letter: a model
  learns the lookup only if parts of it help on their own.
  """
  others = rng.sample(LETTERS[1:], rng.randint(1, len(LETTERS) - 1))
  letters = (LETTERS[0], *sorted(others))
  values = rng.sample(range(stories.LARGEST + 1), len(letters))
  options = dict(zip(letters, values, strict=True))
  drill = options_line(options)
  for letter in rng.choices(letters, k=DRILL_LENGTH):
    value = options[letter]
    adjacent = f" {value} {letter}."
    apart = f"{conclusion(value)}{prompts.ANSWER_TRIGGER}{letter}"
    drill += rng.choice((adjacent, apart))
  return drill
