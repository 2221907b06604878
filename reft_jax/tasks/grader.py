"""From completions to grades; where they are programs, these are run."""

import concurrent.futures
import dataclasses

from reft_jax.tasks import programs
from reft_jax.tasks.answers import grade as grade_lib
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import executor as executor_lib
from reft_jax.tasks.sandbox import results


@dataclasses.dataclass(frozen=True)
class Grader:
  """How the completions of a run are graded.

  Attributes:
    reasoning: `nl` or `python`.
    mode: `strict` or `official`.
    executor: runs programs; needed where reasoning is `python`.
  """

  reasoning: str = "nl"
  mode: str = "strict"
  executor: executor_lib.Executor | None = None

  def start(self, problem: Problem, completion: str) -> "Started":
    """Sends a completion's program off to be run, if it is one."""
    program = None
    if self.reasoning == "python":
      program = self.executor.submit(
        programs.source(completion, problem, mode=self.mode),
        scopes="two" if self.mode == "official" else "one",
      )
    return Started(self, problem, completion, program)


@dataclasses.dataclass(frozen=True)
class Started:
  """A completion whose program, if it has one, may still run."""

  grader: Grader
  problem: Problem
  completion: str
  program: concurrent.futures.Future[results.Result] | None

  def result(self) -> results.Result | None:
    """Waits for the program. Raises LostWorkerError if it cannot be run."""
    return self.program and self.program.result()

  def grade(self) -> grade_lib.Grade:
    """Waits for the program and judges what it returned."""
    return grade_lib.grade(
      self.completion,
      self.problem,
      reasoning=self.grader.reasoning,
      mode=self.grader.mode,
      result=self.result(),
    )
