"""The embedded task: generated word problems, their CoTs and their "web".

A question is a story about how many things somebody has: a start, a few events
and perhaps a sentence that has nothing to do with it.

  Anna has 12 apples. She buys 5. Tom sees 3 birds. She doubles them. How many
  apples does Anna have?

It is solved in one equation an event, or by a terse annotator who merges some:

  We get 12 + 5 = 17, then 17 * 2 = 34.
  We get ( 12 + 5 ) * 2 = 34.

or by a program, a line an equation, after a docstring that is the question:

  def solution():
      result = 12 + 5
      result = result * 2
      return result

As multiple choice, the question ends in a line of options as MathQA's do, and
the answer is a letter:

  a ) 17 , b ) 34 , c ) 35 , d ) 24 , e ) 19

`problems` makes the annotated questions. `corpus` makes the documents that
stand in for the web in a base model's pretraining: every granularity, many
mistakes, seldom the target's ending. Every quantity is a whole number from 0
to 99, always behind a space, so it is a single token of `tokenizer`.
Everything is a function of its seed, the same in every process.
"""

import dataclasses
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from reft_jax import errors
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts

if TYPE_CHECKING:
  import transformers

NAME = "embedded"
CHOICE = "embedded-choice"
TASKS = (NAME, CHOICE)

# An event is a sign and a number: ("+", 5) or ("*", 2).
Event = tuple[str, int]
# What makes two questions the same problem: the start and the events.
Signature = tuple[int, tuple[Event, ...]]

_LARGEST = 99
_LARGEST_STEP = 12
_DRILL_EVENTS = 9  # As many as fill a document.
_DISTRACTED = 0.4  # The share of questions with a sentence beside the point.
_TRIES = 10_000  # Draws in a row, after which a new problem is given up on.
_LETTERS = "abcde"
_RETURN = "\n    return result"
_PRINT = "\n    print ( result )"

_HER = ("Anna", "Emma", "Lucy", "Mia")
_HIM = ("Ben", "Carl", "Paul", "Tom")
_THINGS = ("apples", "books", "cards", "coins", "pens", "shells")
_SIGHTS = ("birds", "boats", "cars", "clouds")
_VERBS = {"+": ("buys", "finds", "wins"), "-": ("loses", "sells", "drops")}
_SCALINGS = {("*", 2): "doubles", ("*", 3): "triples", ("/", 2): "halves"}
# Drawn from with equal chances, so this sets how often an event happens.
_KINDS = ("+", "+", "+", "-", "-", "-", ("*", 2), ("*", 3), ("/", 2))


@dataclasses.dataclass(frozen=True)
class _Story:
  """A question and what its solution is made from."""

  question: str
  start: int
  events: tuple[Event, ...]

  @property
  def signature(self) -> Signature:
    return self.start, self.events


@dataclasses.dataclass(frozen=True)
class _Solution:
  """A start, the events of each equation and what each comes to."""

  start: int
  groups: Sequence[Sequence[Event]]
  results: Sequence[int]

  @property
  def value(self) -> int:
    return self.results[-1]


def problems(
  count: int,
  seed: int,
  *,
  merge: float = 0.0,
  reasoning: str = "nl",
  choice: bool = False,
  min_events: int = 3,
  max_events: int = 4,
  exclude: Collection[Signature] = frozenset(),
) -> list[problem_lib.Problem]:
  """Annotated problems with distinct signatures, none of them in `exclude`.

  The same seed tells the same stories, with the same equations, whatever the
  reasoning and whether or not there are options: without options they are the
  numeric conversion of those with.

  Args:
    count: how many.
    seed: the same seed gives the same problems.
    merge: the chance that the annotator writes an event into the equation of
      the event before it; 0 is one equation an event, 1 a single equation.
    reasoning: the rationales are sentences ("nl") or programs ("python").
    choice: whether questions offer options; the answer is then a letter.
    min_events: the fewest events of a question.
    max_events: the most.
    exclude: `signatures` of problems that must not appear again.

  Raises:
    UserError: numbers out of range, or not enough different problems exist.
  """
  _check(merge=merge)
  prompts.check_reasoning(reasoning)
  task = CHOICE if choice else NAME
  rng = random.Random(f"{NAME} problems {seed}")
  options_rng = random.Random(f"{NAME} options {seed}")
  taken = set(exclude)
  made = []
  for story in _stories(rng, count, min_events, max_events, taken):
    taken.add(story.signature)
    groups = _grouped(rng, story.events, merge)
    solution = _solution(story.start, groups)
    options = _options(options_rng, story, solution) if choice else {}
    question = story.question + _listed(options)
    if reasoning == "python":
      rationale = f"{prompts.head(question)}{_program(solution)}{_RETURN}"
    else:
      rationale = _sentence(solution)
    made.append(
      problem_lib.Problem(
        uid=f"{task}_{len(made)}",
        task=task,
        question=question,
        rationale=rationale,
        answer=_answer(solution, options),
      )
    )
  return made


def corpus(
  count: int,
  seed: int,
  *,
  noise: float = 0.4,
  answer_phrase: float = 0.15,
  drills: float = 0.5,
  choices: float = 0.0,
  programs: float = 0.0,
  min_events: int = 3,
  max_events: int = 4,
  exclude: Collection[Signature] = frozenset(),
) -> list[str]:
  """Documents to pretrain a base model on: a question, then a solution.

  A document's solution joins its steps with a chance of its own, from one
  equation an event to one for everything. Some documents are drills: a long
  row of equations about nothing, which is where most arithmetic is learnt, or
  of values whose letters are looked up.
  Options always hold the value that the document's solution comes to, right or
  not, and the document names the letter of that value.

  Args:
    count: how many; they may repeat each other.
    seed: the same seed gives the same documents.
    noise: the share of solutions that hold a mistake: a wrong result, a wrong
      step or a missed one.
    answer_phrase: the share of the documents with a question that end as the
      target does: in the answer phrase, or a program in its return. Half of the
      others end after the last equation, half in a way of their own; drills
      have no ending.
    drills: the share of documents without a question.
    choices: the share of documents that offer options, drills included.
    programs: the share of the documents with a question that hold a program.
    min_events: the fewest events of a question.
    max_events: the most.
    exclude: `signatures` of problems that must not appear (the test set's).

  Raises:
    UserError: as for `problems`.
  """
  _check(
    noise=noise,
    answer_phrase=answer_phrase,
    drills=drills,
    choices=choices,
    programs=programs,
  )
  rng = random.Random(f"{NAME} corpus {seed}")
  # Apart: what is drawn from it leaves the other documents as they are.
  kinds_rng = random.Random(f"{NAME} kinds {seed}")
  documents = []
  for asked in _stories(rng, count, min_events, max_events, exclude):
    drill = rng.random() < drills
    choice = kinds_rng.random() < choices
    program = not drill and kinds_rng.random() < programs
    story = _story(rng, _DRILL_EVENTS) if drill else asked
    merge = rng.choice((0.0, 0.25, 0.5, 0.75, 1.0))
    groups = _grouped(rng, story.events, merge)
    solution = None
    if rng.random() < noise:
      solution = _mistaken_solution(rng, story.start, groups, slips=not program)
    solution = solution or _solution(story.start, groups)
    if drill:
      documents.append(_lookups(kinds_rng) if choice else _sentence(solution))
      continue
    options = _options(kinds_rng, story, solution) if choice else {}
    question = story.question + _listed(options)
    if program:
      reasoning = f"{prompts.head(question)}{_program(solution)}"
      as_target, own = _RETURN, _PRINT
    else:
      reasoning = _sentence(solution)
      answer = _answer(solution, options)
      as_target = f"{prompts.ANSWER_TRIGGER}{answer}"
      own = _conclusion(solution.value, answer if options else "")
    if rng.random() < answer_phrase:
      ending = as_target
    else:
      ending = rng.choice(("", own))
    documents.append(
      f"{prompts.INSTRUCTION}{question}{prompts.COT_TRIGGER}{reasoning}{ending}"
    )
  return documents


def signatures(
  some_problems: Sequence[problem_lib.Problem],
) -> frozenset[Signature]:
  """What `exclude` takes, to keep training and test problems apart."""
  return frozenset(signature(each.question) for each in some_problems)


def signature(question: str) -> Signature:
  """The start and the events of a question, read back from its text."""
  start = int(re.search(r"has ([0-9]+)", question)[1])
  signs = {verb: sign for sign, verbs in _VERBS.items() for verb in verbs}
  scalings = {verb: event for event, verb in _SCALINGS.items()}
  events = []
  for verb, amount in re.findall(r"(?:She|He) (\w+) (\w+)\.", question):
    if verb in scalings:
      events.append(scalings[verb])
    elif verb in signs:
      events.append((signs[verb], int(amount)))
  return start, tuple(events)


def _check(**shares: float) -> None:
  for name, share in shares.items():
    if not 0 <= share <= 1:
      raise errors.UserError(f"embedded.{name}={share} must be from 0 to 1.")


def _stories(
  rng: random.Random,
  count: int,
  min_events: int,
  max_events: int,
  exclude: Collection[Signature],
) -> Iterator[_Story]:
  """Stories that are not in `exclude` (which may grow) when drawn."""
  if not 1 <= min_events <= max_events:
    raise errors.UserError(
      f"embedded.min_events={min_events} must be at least 1 and at most "
      f"embedded.max_events={max_events}."
    )
  for _ in range(count):
    for _ in range(_TRIES):
      story = _story(rng, rng.randint(min_events, max_events))
      if story.signature not in exclude:
        break
    else:
      raise errors.UserError(
        f"there are too few different problems of {min_events} to "
        f"{max_events} events; ask for fewer or raise embedded.max_events."
      )
    yield story


def _story(rng: random.Random, num_events: int) -> _Story:
  name = rng.choice(_HER + _HIM)
  pronoun = "She" if name in _HER else "He"
  thing = rng.choice(_THINGS)
  start = value = rng.randint(2, 50)
  sentences = [f"{name} has {start} {thing}."]
  events = []
  for _ in range(num_events):
    event = _event(rng, value)
    value = _apply(value, event)
    events.append(event)
    sentences.append(f"{pronoun} {_predicate(rng, event)}.")
  if rng.random() < _DISTRACTED:
    place = rng.randint(1, len(sentences))
    sentences.insert(place, _distractor(rng, name, pronoun))
  sentences.append(f"How many {thing} does {name} have?")
  return _Story(" ".join(sentences), start, tuple(events))


def _event(rng: random.Random, value: int) -> Event:
  """Something that may happen to `value` things."""
  while True:
    event = _any_event(rng)
    if _apply(value, event) is not None:
      return event


def _any_event(rng: random.Random) -> Event:
  kind = rng.choice(_KINDS)
  if kind in _SCALINGS:
    return kind
  return kind, rng.randint(2, _LARGEST_STEP)


def _apply(value: int, event: Event) -> int | None:
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
  return value if 0 <= value <= _LARGEST else None


def _predicate(rng: random.Random, event: Event) -> str:
  if event in _SCALINGS:
    return f"{_SCALINGS[event]} them"
  sign, number = event
  return f"{rng.choice(_VERBS[sign])} {number}"


def _distractor(rng: random.Random, name: str, pronoun: str) -> str:
  number = rng.randint(2, _LARGEST_STEP)
  if rng.random() < 0.5:
    return f"{pronoun} is {number}."
  other = rng.choice([each for each in _HER + _HIM if each != name])
  return f"{other} sees {number} {rng.choice(_SIGHTS)}."


def _grouped(
  rng: random.Random, events: Sequence[Event], merge: float
) -> list[list[Event]]:
  """Splits events into equations; neighbours join with chance `merge`."""
  groups = [[events[0]]]
  for event in events[1:]:
    if rng.random() < merge:
      groups[-1].append(event)
    else:
      groups.append([event])
  return groups


def _solution(
  start: int,
  groups: Sequence[Sequence[Event]],
  slip_at: int = -1,
  slip: int = 0,
) -> _Solution | None:
  """A solution; None if a value leaves 0..99 on the way.

  Args:
    start: how many things there are at first.
    groups: the events of each equation.
    slip_at: the equation whose result is off, for a mistaken solution.
    slip: by how much it is off; the next equation goes on from there.
  """
  value = start
  results = []
  for index, group in enumerate(groups):
    for event in group:
      value = _apply(value, event)
      if value is None:
        return None
    if index == slip_at:
      value += slip
      if not 0 <= value <= _LARGEST:
        return None
    results.append(value)
  return _Solution(start, groups, results)


def _mistaken_solution(
  rng: random.Random,
  start: int,
  groups: Sequence[Sequence[Event]],
  *,
  slips: bool = True,
) -> _Solution | None:
  """A solution with a wrong result, a wrong step or a missed step.

  None if the mistakes that were tried lead out of 0..99 (rare). Without `slips`
  every result is that of its equation, as in a program, which works them out.
  """
  mistakes = ("result", "step", "missed") if slips else ("step", "missed")
  for _ in range(8):
    mistake = rng.choice(mistakes)
    if mistake == "result":
      slip = rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
      solution = _solution(start, groups, rng.randrange(len(groups)), slip)
    else:
      wrong = [list(group) for group in groups]
      group = rng.choice(wrong)
      index = rng.randrange(len(group))
      if mistake == "missed":
        del group[index]
      else:
        group[index] = _any_event(rng)
      wrong = [group for group in wrong if group]
      if not wrong or wrong == groups:
        continue
      solution = _solution(start, wrong)
    if solution:
      return solution
  return None


def _sentence(solution: _Solution) -> str:
  """The solution as a person writes it."""
  before = (solution.start, *solution.results[:-1])
  steps = zip(before, solution.groups, solution.results, strict=True)
  equations = [
    f"{_expression(str(value), group)} = {result}"
    for value, group, result in steps
  ]
  return f"We get {', then '.join(equations)}."


def _program(solution: _Solution) -> str:
  """The program's lines after its header, before it returns anything."""
  first, *others = solution.groups
  expressions = (
    _expression(str(solution.start), first),
    *(_expression("result", group) for group in others),
  )
  return "\n".join(f"    result = {each}" for each in expressions)


def _expression(operand: str, events: Sequence[Event]) -> str:
  """The events, one after the other, applied to an operand."""
  expression = operand
  loose = False  # Whether `*` or `/` would bind tighter than what is written.
  for sign, number in events:
    if loose and sign in "*/":
      expression = f"( {expression} )"
    loose = sign in "+-"
    expression = f"{expression} {sign} {number}"
  return expression


def _options(
  rng: random.Random, story: _Story, solution: _Solution
) -> dict[str, int]:
  """The values to choose from, by their letters.

  Among them are the right one and the solution's, right or not; the others are
  what mistakes lead to. All are different, their order is random.
  """
  groups = [[event] for event in story.events]
  right = _solution(story.start, groups)
  values = list(dict.fromkeys((right.value, solution.value)))
  while len(values) < len(_LETTERS):
    wrong = _mistaken_solution(rng, story.start, groups)
    if wrong and wrong.value not in values:
      values.append(wrong.value)
  rng.shuffle(values)
  return dict(zip(_LETTERS, values, strict=True))


def _listed(options: Mapping[str, int]) -> str:
  """The options as a question's last line; nothing if there are none."""
  if not options:
    return ""
  named = (f"{letter} ) {value}" for letter, value in options.items())
  return f"\n{' , '.join(named)}"


def _answer(solution: _Solution, options: Mapping[str, int]) -> str:
  """The letter of the solution's value; the value where nothing is offered."""
  letters = {value: letter for letter, value in options.items()}
  return letters.get(solution.value, str(solution.value))


def _conclusion(value: int, letter: str = "") -> str:
  """How a solution ends without the answer phrase."""
  return f" That makes {value} {letter}".rstrip() + "."


def _lookups(rng: random.Random) -> str:
  """A drill in finding the letters of values.

  Some letters are missing and some values are right beside their letters: where
  no part of a lookup is of use without the others, none is learnt.
  """
  others = rng.sample(_LETTERS[1:], rng.randint(1, len(_LETTERS) - 1))
  letters = (_LETTERS[0], *sorted(others))
  values = rng.sample(range(_LARGEST + 1), len(letters))
  options = dict(zip(letters, values, strict=True))
  drill = _listed(options)
  for letter in rng.choices(letters, k=_DRILL_EVENTS):
    value = options[letter]
    beside = f" {value} {letter}."
    apart = f"{_conclusion(value)}{prompts.ANSWER_TRIGGER}{letter}"
    drill += rng.choice((beside, apart))
  return drill


# Tokens keep their leading space, so that decoding only joins them.
_PHRASES = (
  prompts.INSTRUCTION,
  prompts.COT_TRIGGER,
  "." + prompts.ANSWER_TRIGGER.rstrip(),
  "We get",
  ", then",
  " That makes",
)
_CHOICE_PHRASES = (
  f"\n{_LETTERS[0]} )",
  *(f" , {letter} )" for letter in _LETTERS[1:]),
)
_PROGRAM_PHRASES = (
  *(prompts.DEFINITION.rstrip(), '    """', '"""'),
  *("    result", "    return", "    print"),
)
_SPECIAL = ("<pad>", "<eos>", "<unk>")


def tokenizer(
  *, choices: bool = False, programs: bool = False
) -> "transformers.PreTrainedTokenizerFast":
  """A word tokenizer with a token for every word and number of the task.

  What options and programs need comes after all else, if they are asked for.
  It can be saved and opened by AutoTokenizer; `<pad>`, `<eos>` and `<unk>` are
  three different tokens.
  """
  # Here, not above: making problems needs neither, and they load slowly.
  import tokenizers
  import transformers
  from tokenizers import decoders, models, pre_tokenizers

  names = _HER + _HIM
  predicates = (*_VERBS["+"], *_VERBS["-"], *_SCALINGS.values(), "sees", "is")
  words = (
    *("She", "He", "has", "them", "How", "many", "does", "have"),
    *(*names, *_THINGS, *_SIGHTS, *predicates),
    *(*"+-*/=()", *map(str, range(_LARGEST + 1))),
  )
  vocabulary = (
    *(*_SPECIAL, *_PHRASES, ".", "?", *names),
    *(f" {word}" for word in words),
  )
  phrases = _PHRASES
  if choices:
    phrases += _CHOICE_PHRASES
    vocabulary += (*_CHOICE_PHRASES, *(f" {letter}" for letter in _LETTERS))
  if programs:
    phrases += _PROGRAM_PHRASES
    vocabulary += (*_PROGRAM_PHRASES, " result", "\n")
  pattern = "|".join([*map(re.escape, phrases), r" ?\w+", r" ?[^\w\s]", r"\s"])
  core = tokenizers.Tokenizer(
    models.WordLevel(
      {token: index for index, token in enumerate(vocabulary)},
      unk_token="<unk>",
    )
  )
  core.pre_tokenizer = pre_tokenizers.Split(
    tokenizers.Regex(pattern), behavior="isolated"
  )
  core.decoder = decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    pad_token="<pad>",
    eos_token="<eos>",
    unk_token="<unk>",
    clean_up_tokenization_spaces=False,
  )
