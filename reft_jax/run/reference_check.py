"""Before a run: reference answers must earn what the policy is to earn."""

import dataclasses
from collections.abc import Mapping

from reft_jax import errors
from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.sampling import grading
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks import prompts
from reft_jax.tasks.answers.grade import Grade, Verdict
from reft_jax.tasks.problem import Problem


@dataclasses.dataclass(frozen=True)
class Failure:
  """A reference answer that is not graded as right."""

  split: str
  problem: Problem
  completion: str
  grade: Grade

  def row(self) -> dict[str, object]:
    """As a file holds it."""
    return {
      "split": self.split,
      "uid": self.problem.uid,
      "question": self.problem.question,
      "completion": self.completion,
      "answer": self.problem.answer,
      "verdict": self.grade.verdict.value,
      "value": self.grade.value,
    }


def check_reference_answers(
  grader: grader_lib.Grader,
  tokenizer: tokenizer_lib.Tokenizer,
  splits: Mapping[str, encode.Encoded],
  config: schema.ReftConfig,
) -> list[Failure]:
  """Grades every reference answer as if the policy had written it.

  An annotated solution goes through the tokenizer and back, its program is
  run, and it must earn 1. Where there is none, a completion of the bare answer
  is graded, which must be right; it cannot show a reasoning.

  Raises:
    UserError: no answer of a split is graded as right.
  """

  def completion(example: encode.Example) -> str:
    if example.target is not None:
      return tokenizer.decode(example.target)
    return prompts.bare(example.problem, grader.reasoning)

  def earns(example: encode.Example, grade: Grade) -> bool:
    if example.target is None:
      return grade.verdict is Verdict.CORRECT
    return grading.reward(example.problem, grade, config) == 1

  failures = []
  for name, split in splits.items():
    started = [
      grader.start(example.problem, completion(example))
      for example in split.examples
    ]
    wrong = [
      Failure(name, each.problem, each.completion, grade)
      for example, each in zip(split.examples, started, strict=True)
      if not earns(example, grade := each.grade())
    ]
    if wrong and len(wrong) == len(started):
      raise errors.UserError(
        f"no reference answer of the {name} split is graded as right: "
        f"{describe(wrong[0])}; are data.task and data.reasoning those of the "
        "data?"
      )
    failures += wrong
  return failures


def describe(failure: Failure) -> str:
  """One failure in a few words."""
  found, wanted = failure.grade.value, failure.problem.answer
  read = "no answer was found" if found is None else f"{found!r} was found"
  if failure.grade.verdict is Verdict.CORRECT:
    read += f", but the value reached is {failure.grade.reached}"
  return f"{failure.problem.uid} ({read}, the reference is {wanted!r})"
