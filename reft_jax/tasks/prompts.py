"""The texts that models read and write: the released code's templates."""

import ast
import re
import warnings
from typing import Any

from reft_jax import errors
from reft_jax.tasks.problem import Problem

INSTRUCTION = "Question:\n"
COT_TRIGGER = "\nAnswer reasoning:\n"
ANSWER_TRIGGER = "\nTherefore, the answer is: "
# Every program's first line.
DEFINITION = "def solution():\n"

REASONINGS = ("nl", "python")

_INDENT = " " * 4


def check_reasoning(reasoning: str) -> None:
  """Raises UserError for an unknown kind of reasoning."""
  if reasoning not in REASONINGS:
    known = ", ".join(REASONINGS)
    raise errors.UserError(
      f"data.reasoning={reasoning!r} is unknown; choose one of: {known}."
    )


def prompt(problem: Problem, reasoning: str = "nl") -> str:
  """The model's input: the question, and how its answer starts."""
  question = f"{INSTRUCTION}{problem.question.strip()}{COT_TRIGGER}"
  return question + start(problem, reasoning)


def start(problem: Problem, reasoning: str = "nl") -> str:
  """How every answer starts, as the end of the prompt; empty for words."""
  check_reasoning(reasoning)
  return "" if reasoning == "nl" else head(problem.question.strip())


def head(question: str) -> str:
  """How every program starts: its first line and its docstring."""
  return f'{DEFINITION}{_INDENT}"""{question}"""\n'


def target(problem: Problem, reasoning: str = "nl") -> str:
  """The text after the prompt in supervised training.

  The rationale and the answer, or the part of a program that its prompt lacks.
  Deviation: the released code trains on whole programs after a prompt without
  their start, so its rollouts see other ids than its training.

  Raises:
    UserError: the problem has no rationale, or one of the other kind, or a
      program that cannot follow its prompt.
  """
  check_reasoning(reasoning)
  if problem.rationale is None:
    raise errors.UserError(
      f"{problem.uid} has no chain of thought to learn from; supervised "
      "training needs rows with `answer_cot`."
    )
  if reasoning == "nl":
    rationale = problem.rationale.strip()
    if rationale.startswith("def solution("):
      raise errors.UserError(
        f"the chain of thought of {problem.uid} is a program; set "
        "data.reasoning=python."
      )
    return f"{rationale}{ANSWER_TRIGGER}{problem.answer}"
  try:
    return _body(problem.rationale, problem.question.strip())
  except ValueError as error:
    raise errors.UserError(
      f"the chain of thought of {problem.uid} is no program to learn from: "
      f"{error}; correct the row or set data.reasoning=nl."
    ) from error


def bare(problem: Problem, reasoning: str = "nl") -> str:
  """A completion that gives the reference answer without reasoning.

  The check of reference answers grades it for problems without a rationale.
  """
  check_reasoning(reasoning)
  answer = problem.answer
  if reasoning == "nl":
    return f"{answer}{ANSWER_TRIGGER}{answer}"
  try:
    value = repr(float(answer.replace(",", "")))
  except ValueError:
    value = repr(answer)
  return f"{_INDENT}return {value}"


def continuation(text: str) -> str:
  """The completion within a decoded sequence, cut as in the released code."""
  return text.strip().split(COT_TRIGGER)[-1].strip()


def tidy(completion: str, reasoning: str = "nl") -> str:
  """A completion without surrounding white space.

  A program keeps the indentation of its first line.
  """
  check_reasoning(reasoning)
  if reasoning == "nl":
    return completion.strip()
  return completion.rstrip().lstrip("\r\n")


def _body(program: str, question: str) -> str:
  """The body of solution() as written, without its docstring.

  Statements before the definition, such as imports, become its first ones;
  statements after it are dropped. So are blank lines, because a program ends at
  the first one. ValueError says why a program has no such body.
  """
  opening = head(question)
  if program.startswith(opening):  # The question's quotes may break Python.
    program = DEFINITION + program.removeprefix(opening)
  tree = _compiled(program, ast.PyCF_ONLY_AST)
  functions = [
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name == "solution"
  ]
  if not functions:
    raise ValueError("it does not define solution()")
  solution = functions[-1]
  _check_movable(tree, solution)
  documented = ast.get_docstring(solution, clean=False) is not None
  docstring = solution.body[0]
  start = (docstring.end_lineno if documented else None) or solution.lineno
  statements = solution.body[documented:]
  if not statements:
    raise ValueError("solution() has only a docstring")
  if statements[0].lineno <= start:
    raise ValueError("solution() is written on one line")
  lines = re.split("\r\n|\r|\n", program)
  first = statements[0]
  margin = lines[first.lineno - 1][: first.col_offset]
  written = [_INDENT + line for line in lines[: solution.lineno - 1]]
  for line in lines[start : solution.end_lineno]:
    written.append(re.sub(f"^{margin}", _INDENT, line))
  body = "\n".join(line for line in written if line.strip())
  _compiled(f"{DEFINITION}{_INDENT}pass\n{body}")
  return body


def _check_movable(tree: ast.Module, solution: ast.FunctionDef) -> None:
  """Raises ValueError if solution() needs parameters or a module of its own."""
  if any(isinstance(node, ast.arg) for node in ast.walk(solution.args)):
    raise ValueError("solution() takes parameters")
  nodes = list(ast.walk(solution))
  if any(isinstance(n, ast.Name) and n.id == "solution" for n in nodes):
    raise ValueError("solution() calls itself")
  if any(isinstance(node, ast.Global) for node in ast.walk(tree)):
    raise ValueError("it has a global statement")


def _compiled(program: str, flags: int = 0) -> Any:
  """Code, or a tree with PyCF_ONLY_AST; ValueError says what is wrong."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Invalid escapes, mostly in docstrings.
    try:
      return compile(program, "<program>", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
      reason = error.msg
    except (ValueError, RecursionError, MemoryError) as error:
      reason = str(error) or type(error).__name__
  raise ValueError(f"it does not compile ({reason})")
