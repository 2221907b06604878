"""Stories: who has how many things, and what happens to them."""

import dataclasses
import random
import re
from collections.abc import Collection, Iterator, Sequence

from reft_jax import errors
from reft_jax.tasks.problem import Problem

# A sign and a number: ("+", 5) or ("*", 2).
Event = tuple[str, int]
# Two questions with the same start and events are the same problem.
Signature = tuple[int, tuple[Event, ...]]

LARGEST = 99
_LARGEST_STEP = 12
_DISTRACTOR_RATE = 0.4
_MAX_TRIES = 10_000  # Repeated stories in a row before giving up.

_FEMALE_NAMES = ("Anna", "Emma", "Lucy", "Mia")
_MALE_NAMES = ("Ben", "Carl", "Paul", "Tom")
NAMES = _FEMALE_NAMES + _MALE_NAMES
THINGS = ("apples", "books", "cards", "coins", "pens", "shells")
SIGHTS = ("birds", "boats", "cars", "clouds")
VERBS = {"+": ("buys", "finds", "wins"), "-": ("loses", "sells", "drops")}
SCALINGS = {("*", 2): "doubles", ("*", 3): "triples", ("/", 2): "halves"}
# Drawn uniformly, so repetitions set the frequencies.
_KINDS: tuple[str | Event, ...] = (
  *("+", "+", "+", "-", "-", "-"),
  *(("*", 2), ("*", 3), ("/", 2)),
)


@dataclasses.dataclass(frozen=True)
class Story:
  """A question, its start and events, and its answer."""

  question: str
  start: int
  events: tuple[Event, ...]
  value: int


def draw(
  rng: random.Random,
  count: int,
  min_events: int,
  max_events: int,
  exclude: Collection[Signature],
) -> Iterator[Story]:
  """Yields stories that are not in `exclude`, which may grow meanwhile.

  Raises:
    UserError: the numbers of events make no range, or no new story is found.
  """
  if not 1 <= min_events <= max_events:
    raise errors.UserError(
      f"embedded.min_events={min_events} must be at least 1 and at most "
      f"embedded.max_events={max_events}."
    )
  for _ in range(count):
    for _ in range(_MAX_TRIES):
      story = make(rng, rng.randint(min_events, max_events))
      if (story.start, story.events) not in exclude:
        break
    else:
      raise errors.UserError(
        f"there are too few different problems of {min_events} to "
        f"{max_events} events; ask for fewer or raise embedded.max_events."
      )
    yield story


def make(rng: random.Random, num_events: int) -> Story:
  """Draws one story."""
  name = rng.choice(NAMES)
  pronoun = "She" if name in _FEMALE_NAMES else "He"
  thing = rng.choice(THINGS)
  start = value = rng.randint(2, 50)
  sentences = [f"{name} has {start} {thing}."]
  events = []
  for _ in range(num_events):
    event = random_event(rng)
    while (after := apply(value, event)) is None:
      event = random_event(rng)
    value = after
    events.append(event)
    sentences.append(f"{pronoun} {_predicate(rng, event)}.")
  if rng.random() < _DISTRACTOR_RATE:
    place = rng.randint(1, len(sentences))
    sentences.insert(place, _distractor(rng, name, pronoun))
  sentences.append(f"How many {thing} does {name} have?")
  return Story(" ".join(sentences), start, tuple(events), value)


def random_event(rng: random.Random) -> Event:
  """Draws an event, whether or not it is possible."""
  kind = rng.choice(_KINDS)
  if isinstance(kind, str):
    return kind, rng.randint(2, _LARGEST_STEP)
  return kind


def apply(value: int, event: Event) -> int | None:
  """The value after an event; None if it leaves 0..99 or is not whole."""
  sign, number = event
  if sign == "+":
    value += number
  elif sign == "-":
    value -= number
  elif sign == "*":
    value *= number
  elif value % number:
    return None
  else:
    value //= number
  return value if 0 <= value <= LARGEST else None


def signatures(problems: Sequence[Problem]) -> frozenset[Signature]:
  """The signatures of problems, to `exclude` them elsewhere."""
  return frozenset(signature(each.question) for each in problems)


def signature(question: str) -> Signature:
  """The start and the events of a question, read from its text."""
  start = int(re.findall(r"has ([0-9]+)", question)[0])
  signs = {verb: sign for sign, verbs in VERBS.items() for verb in verbs}
  scalings = {verb: event for event, verb in SCALINGS.items()}
  events = []
  for verb, amount in re.findall(r"(?:She|He) (\w+) (\w+)\.", question):
    if verb in scalings:
      events.append(scalings[verb])
    elif verb in signs:
      events.append((signs[verb], int(amount)))
  return start, tuple(events)


def _predicate(rng: random.Random, event: Event) -> str:
  if event in SCALINGS:
    return f"{SCALINGS[event]} them"
  sign, number = event
  return f"{rng.choice(VERBS[sign])} {number}"


def _distractor(rng: random.Random, name: str, pronoun: str) -> str:
  number = rng.randint(2, _LARGEST_STEP)
  if rng.random() < 0.5:
    return f"{pronoun} is {number}."
  other = rng.choice([each for each in NAMES if each != name])
  return f"{other} sees {number} {rng.choice(SIGHTS)}."
