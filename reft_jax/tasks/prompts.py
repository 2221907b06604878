"""The texts that models read and write (the released code's templates)."""

from reft_jax import errors
from reft_jax.tasks import problem as problem_lib

INSTRUCTION = "Question:\n"
COT_TRIGGER = "\nAnswer reasoning:\n"
ANSWER_TRIGGER = "\nTherefore, the answer is: "

REASONINGS = ("nl",)


def check_reasoning(reasoning: str) -> None:
  """Raises UserError unless chains of thought of this kind are understood."""
  if reasoning not in REASONINGS:
    known = ", ".join(REASONINGS)
    hint = (
      " (program chains of thought are not available yet)"
      if reasoning == "python"
      else ""
    )
    raise errors.UserError(
      f"data.reasoning={reasoning!r} is unknown{hint}; choose one of: {known}."
    )


def prompt(problem: problem_lib.Problem, reasoning: str = "nl") -> str:
  """What the model is given: the question, up to the start of its reasoning."""
  check_reasoning(reasoning)
  return f"{INSTRUCTION}{problem.question.strip()}{COT_TRIGGER}"


def target(problem: problem_lib.Problem, reasoning: str = "nl") -> str:
  """What supervised training teaches: the rationale, then the answer.

  Raises:
    UserError: the problem has no rationale.
  """
  check_reasoning(reasoning)
  if problem.rationale is None:
    raise errors.UserError(
      f"{problem.uid} has no chain of thought to learn from; supervised "
      "training needs rows with `answer_cot`."
    )
  return f"{problem.rationale.strip()}{ANSWER_TRIGGER}{problem.answer}"
