"""From completions to grades, running those that are programs."""

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
    executor: runs programs; needed for reasoning `python`.
  """

  reasoning: str = "nl"
  mode: str = "strict"
  executor: executor_lib.Executor | None = None

  def start(self, problem: Problem, completion: str) -> "Started":
    """Starts to run a completion's program, if it is one."""
    program = None
    if self.reasoning == "python":
      if self.executor is None:
        raise ValueError("programs need an executor")
      program = self.executor.submit(
        programs.source(completion, problem, mode=self.mode),
        scopes="two" if self.mode == "official" else "one",
      )
    return Started(self, problem, completion, program)


@dataclasses.dataclass(frozen=True)
class Started:
  """A completion whose program, if it is one, may still be running."""

  grader: Grader
  problem: Problem
  completion: str
  program: concurrent.futures.Future[results.Result] | None

  def result(self) -> results.Result | None:
    """Waits for the program. Raises LostWorkerError if it cannot be run."""
    return self.program.result() if self.program else None

  def grade(self) -> grade_lib.Grade:
    """Waits for the program and grades the completion."""
    return grade_lib.grade(
      self.completion,
      self.problem,
      reasoning=self.grader.reasoning,
      mode=self.grader.mode,
      result=self.result(),
    )
