"""Annotated problems, and the documents to pretrain a base model on."""

import random
from collections.abc import Collection, Mapping

from reft_jax import errors
from reft_jax.tasks import prompts
from reft_jax.tasks.embedded import solutions, stories
from reft_jax.tasks.problem import Problem

NAME = "embedded"
CHOICE = "embedded-choice"
TASKS = (NAME, CHOICE)
LETTERS = "abcde"

_MERGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_RETURN = "\n    return result"
_PRINT = "\n    print ( result )"
_DRILL_LENGTH = 9  # Events or lookups: as many as fill a document.


def problems(
  count: int,
  seed: int,
  *,
  merge: float = 0.0,
  reasoning: str = "nl",
  choice: bool = False,
  min_events: int = 3,
  max_events: int = 4,
  exclude: Collection[stories.Signature] = frozenset(),
) -> list[Problem]:
  """Annotated problems with distinct signatures, none of them in `exclude`.

  A seed gives the same stories with the same equations for every `reasoning`
  and `choice`: problems without options are the numeric conversion of those
  with options.

  Args:
    count: the number of problems.
    seed: the same seed gives the same problems.
    merge: the probability that an event joins the equation of the event before
      it; 0 is one equation per event, 1 a single equation.
    reasoning: the rationales are sentences ("nl") or programs ("python").
    choice: whether questions have options; the answer is then a letter.
    min_events: the smallest number of events in a question.
    max_events: the largest.
    exclude: `signatures` of problems that must not appear again.

  Raises:
    UserError: numbers out of range, or not enough different problems exist.
  """
  _check_rates(merge=merge)
  prompts.check_reasoning(reasoning)
  task = CHOICE if choice else NAME
  rng = random.Random(f"{NAME} problems {seed}")
  options_rng = random.Random(f"{NAME} options {seed}")
  taken = set(exclude)
  made: list[Problem] = []
  for story in stories.draw(rng, count, min_events, max_events, taken):
    taken.add((story.start, story.events))
    groups = solutions.group(rng, story.events, merge)
    solution = solutions.solve(story.start, groups)
    options = _options(options_rng, story, solution) if choice else {}
    question = story.question + _options_line(options)
    if reasoning == "python":
      program = solutions.program(solution)
      rationale = f"{prompts.head(question)}{program}{_RETURN}"
    else:
      rationale = solutions.sentence(solution)
    answer = _answer(solution, options)
    uid = f"{task}_{len(made)}"
    made.append(Problem(uid, task, question, rationale, answer))
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
  exclude: Collection[stories.Signature] = frozenset(),
) -> list[str]:
  """Documents that stand in for the web: a question, then a solution.

  Each document merges its equations with a probability of its own. Some
  documents are drills: a long row of equations without a question, from which
  most arithmetic is learnt, or of values and the letters of their options.
  Options always include the value of the document's solution, right or wrong,
  and the document names that value's letter.

  Args:
    count: the number of documents; they may repeat each other.
    seed: the same seed gives the same documents.
    noise: the fraction of solutions with a mistake: a wrong result, a wrong
      step or a missed one.
    answer_phrase: the fraction of documents with a question that end as the
      target does: in the answer phrase, or in a return statement. Half of the
      others end after the last equation, half in another ending; drills have
      no ending.
    drills: the fraction of documents without a question.
    choices: the fraction of documents with options, drills included.
    programs: the fraction of documents with a question that hold a program.
    min_events: the smallest number of events in a question.
    max_events: the largest.
    exclude: `signatures` of problems that must not appear (the test set's).

  Raises:
    UserError: as for `problems`.
  """
  _check_rates(
    noise=noise,
    answer_phrase=answer_phrase,
    drills=drills,
    choices=choices,
    programs=programs,
  )
  rng = random.Random(f"{NAME} corpus {seed}")
  # A generator of its own: options and programs leave other documents alone.
  kinds_rng = random.Random(f"{NAME} kinds {seed}")
  documents = []
  for asked in stories.draw(rng, count, min_events, max_events, exclude):
    is_drill = rng.random() < drills
    has_options = kinds_rng.random() < choices
    is_program = not is_drill and kinds_rng.random() < programs
    story = stories.make(rng, _DRILL_LENGTH) if is_drill else asked
    solution = _attempt(rng, story, noise, slips=not is_program)
    if is_drill and has_options:
      document = _lookup_drill(kinds_rng)
    elif is_drill:
      document = solutions.sentence(solution)
    else:
      options = _options(kinds_rng, story, solution) if has_options else {}
      question = story.question + _options_line(options)
      document = _document(
        rng, question, solution, options, is_program, answer_phrase
      )
    documents.append(document)
  return documents


def _attempt(
  rng: random.Random, story: stories.Story, noise: float, *, slips: bool
) -> solutions.Solution:
  """A document's solution, wrong with probability `noise`."""
  groups = solutions.group(rng, story.events, rng.choice(_MERGES))
  wrong = None
  if rng.random() < noise:
    wrong = solutions.solve_wrongly(rng, story.start, groups, slips=slips)
  return wrong or solutions.solve(story.start, groups)


def _document(
  rng: random.Random,
  question: str,
  solution: solutions.Solution,
  options: Mapping[str, int],
  is_program: bool,
  answer_phrase: float,
) -> str:
  """A question, its solution and an ending, the target's or another."""
  if is_program:
    reasoning = f"{prompts.head(question)}{solutions.program(solution)}"
    as_target, other = _RETURN, _PRINT
  else:
    reasoning = solutions.sentence(solution)
    answer = _answer(solution, options)
    as_target = f"{prompts.ANSWER_TRIGGER}{answer}"
    other = _conclusion(solution.value, answer if options else "")
  is_target = rng.random() < answer_phrase
  ending = as_target if is_target else rng.choice(("", other))
  asked = f"{prompts.INSTRUCTION}{question}{prompts.COT_TRIGGER}"
  return f"{asked}{reasoning}{ending}"


def _options(
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


def _options_line(options: Mapping[str, int]) -> str:
  """The options as a question's last line; empty without options."""
  items = (f"{letter} ) {value}" for letter, value in options.items())
  return f"\n{' , '.join(items)}" if options else ""


def _answer(solution: solutions.Solution, options: Mapping[str, int]) -> str:
  """The letter of the solution's value; the value itself without options."""
  letters = {value: letter for letter, value in options.items()}
  return letters.get(solution.value, str(solution.value))


def _conclusion(value: int, letter: str = "") -> str:
  """An ending other than the answer phrase."""
  return f" That makes {value} {letter}".rstrip() + "."


def _lookup_drill(rng: random.Random) -> str:
  """A line of options and the letters of some of their values.

  Letters may be missing and the value may stand next to its letter: a model
  learns the lookup only if parts of it help on their own.
  """
  others = rng.sample(LETTERS[1:], rng.randint(1, len(LETTERS) - 1))
  letters = (LETTERS[0], *sorted(others))
  values = rng.sample(range(stories.LARGEST + 1), len(letters))
  options = dict(zip(letters, values, strict=True))
  drill = _options_line(options)
  for letter in rng.choices(letters, k=_DRILL_LENGTH):
    value = options[letter]
    adjacent = f" {value} {letter}."
    apart = f"{_conclusion(value)}{prompts.ANSWER_TRIGGER}{letter}"
    drill += rng.choice((adjacent, apart))
  return drill


def _check_rates(**rates: float) -> None:
  for name, rate in rates.items():
    if not 0 <= rate <= 1:
      raise errors.UserError(f"embedded.{name}={rate} must be from 0 to 1.")
