"""The texts that models read and write (the released code's templates)."""

import ast
import re
import warnings

from reft_jax import errors
from reft_jax.tasks import problem as problem_lib

INSTRUCTION = "Question:\n"
COT_TRIGGER = "\nAnswer reasoning:\n"
ANSWER_TRIGGER = "\nTherefore, the answer is: "
# Every program's first line.
DEFINITION = "def solution():\n"

REASONINGS = ("nl", "python")

_INDENT = " " * 4


def check_reasoning(reasoning: str) -> None:
  """Raises UserError unless chains of thought of this kind are understood."""
  if reasoning not in REASONINGS:
    known = ", ".join(REASONINGS)
    raise errors.UserError(
      f"data.reasoning={reasoning!r} is unknown; choose one of: {known}."
    )


def prompt(problem: problem_lib.Problem, reasoning: str = "nl") -> str:
  """What the model is given: the question, up to the start of its reasoning.

  A program's is under way: its first line and its docstring are there.
  """
  check_reasoning(reasoning)
  question = problem.question.strip()
  start = f"{INSTRUCTION}{question}{COT_TRIGGER}"
  if reasoning == "nl":
    return start
  return start + _head(question)


def target(problem: problem_lib.Problem, reasoning: str = "nl") -> str:
  """What supervised training teaches to write after the prompt.

  The rationale and the answer; of a program, what its prompt does not hold.
  Deviation: the released code trains on whole programs after a prompt without
  their start, so that its rollouts see other ids than its training did.

  Raises:
    UserError: the problem has no rationale, or one of the other kind.
  """
  check_reasoning(reasoning)
  if problem.rationale is None:
    raise errors.UserError(
      f"{problem.uid} has no chain of thought to learn from; supervised "
      "training needs rows with `answer_cot`."
    )
  if reasoning == "nl":
    return f"{problem.rationale.strip()}{ANSWER_TRIGGER}{problem.answer}"
  body = _body(problem.rationale, problem.question.strip())
  if body is None:
    raise errors.UserError(
      f"the chain of thought of {problem.uid} is not a Python program that "
      "defines solution(); correct the row or set data.reasoning=nl."
    )
  return body


def bare(problem: problem_lib.Problem, reasoning: str = "nl") -> str:
  """A completion that gives the known answer without any reasons."""
  check_reasoning(reasoning)
  answer = problem.answer
  if reasoning == "nl":
    return f"{answer}{ANSWER_TRIGGER}{answer}"
  try:
    value = float(answer.replace(",", ""))
  except ValueError:
    value = answer
  return f"{_INDENT}return {value!r}"


def continuation(text: str) -> str:
  """The completion within a decoded sequence (as the released code cuts it)."""
  return text.strip().split(COT_TRIGGER)[-1].strip()


def _head(question: str) -> str:
  """How every program starts: the end of its prompt."""
  return f'{DEFINITION}{_INDENT}"""{question}"""\n'


def _body(program: str, question: str) -> str | None:
  """What solution() does, as written, without its docstring; or None.

  Statements before its definition, such as imports, become its first ones;
  what comes after it is dropped. Blank lines are left out, because programs
  are not run past one.
  """
  head = _head(question)
  if program.startswith(head):  # The question's quotes may make it no Python.
    program = DEFINITION + program.removeprefix(head)
  tree = _parsed(program)
  functions = [
    node
    for node in (tree.body if tree else ())
    if isinstance(node, ast.FunctionDef) and node.name == "solution"
  ]
  if not functions:
    return None
  solution = functions[-1]
  documented = ast.get_docstring(solution, clean=False) is not None
  start = solution.body[0].end_lineno if documented else solution.lineno
  statements = solution.body[documented:]
  if not statements or statements[0].lineno <= start:
    return None
  lines = re.split("\r\n|\r|\n", program)
  first = statements[0]
  margin = lines[first.lineno - 1][: first.col_offset]
  written = [_INDENT + line for line in lines[: solution.lineno - 1]]
  for line in lines[start : solution.end_lineno]:
    written.append(re.sub(f"^{margin}", _INDENT, line))
  body = "\n".join(line for line in written if line.strip())
  return body if _parsed(f"{DEFINITION}{_INDENT}pass\n{body}") else None


def _parsed(program: str) -> ast.Module | None:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Invalid escapes, in docstrings mostly.
    try:
      return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      return None
