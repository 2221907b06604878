"""Solutions of stories, right and wrong, as sentences and as programs."""

import dataclasses
import random
from collections.abc import Sequence

from reft_jax.tasks.embedded import stories

# The events of each equation.
Groups = Sequence[Sequence[stories.Event]]

_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
_MAX_TRIES = 8


@dataclasses.dataclass(frozen=True)
class Solution:
  """A start, the events of each equation and the equations' results."""

  start: int
  groups: Groups
  results: Sequence[int]

  @property
  def value(self) -> int:
    """The last result."""
    return self.results[-1]


def group(
  rng: random.Random, events: Sequence[stories.Event], merge: float
) -> list[list[stories.Event]]:
  """Splits events into equations; neighbours join with probability `merge`."""
  groups = [[events[0]]]
  for event in events[1:]:
    if rng.random() < merge:
      groups[-1].append(event)
    else:
      groups.append([event])
  return groups


def solve(start: int, groups: Groups) -> Solution:
  """The correct solution of a story's events."""
  solution = _evaluate(start, groups)
  if solution is None:
    raise ValueError("a value is not a whole number from 0 to 99")
  return solution


def solve_wrongly(
  rng: random.Random, start: int, groups: Groups, *, slips: bool = True
) -> Solution | None:
  """A solution with a wrong result, a wrong step or a missed step.

  None if all the mistakes tried lead out of 0..99 (rare). Without `slips` every
  result is that of its equation, as in a program, which computes its results.
  """
  mistakes = ("result", "step", "missed") if slips else ("step", "missed")
  for _ in range(_MAX_TRIES):
    mistake = rng.choice(mistakes)
    if mistake == "result":
      slip = rng.choice(_SLIPS)
      solution = _evaluate(start, groups, rng.randrange(len(groups)), slip)
    else:
      wrong = [list(events) for events in groups]
      events = rng.choice(wrong)
      index = rng.randrange(len(events))
      if mistake == "missed":
        del events[index]
      else:
        events[index] = stories.random_event(rng)
      wrong = [events for events in wrong if events]
      if not wrong or wrong == groups:
        continue
      solution = _evaluate(start, wrong)
    if solution:
      return solution
  return None


def _evaluate(
  start: int, groups: Groups, slip_at: int = -1, slip: int = 0
) -> Solution | None:
  """Computes results; None if a value leaves 0..99 or is not whole.

  The equation at index `slip_at` is off by `slip`, and the next one starts from
  its result.
  """
  value = start
  results = []
  for index, events in enumerate(groups):
    changes = [*events, ("+", slip)] if index == slip_at else events
    for event in changes:
      after = stories.apply(value, event)
      if after is None:
        return None
      value = after
    results.append(value)
  return Solution(start, groups, results)


def sentence(solution: Solution) -> str:
  """The solution in words."""
  before = (solution.start, *solution.results[:-1])
  steps = zip(before, solution.groups, solution.results, strict=True)
  equations = [
    f"{_expression(str(value), group)} = {result}"
    for value, group, result in steps
  ]
  return f"We get {', then '.join(equations)}."


def program(solution: Solution) -> str:
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
