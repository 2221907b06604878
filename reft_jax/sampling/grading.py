"""Grading: completions to answers, answers to rewards and metrics."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.evaluation import votes
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import multihost
from reft_jax.sampling import sampler as sampler_lib
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks.answers import choices
from reft_jax.tasks.answers import grade as grade_lib
from reft_jax.tasks.answers.grade import Verdict
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import results

# The share of right letters that come from another value.
UNREACHED = "choice/unreached"


@dataclasses.dataclass(frozen=True)
class Answer:
  """One completion of a question and what it is worth.

  `result` is how its program ended, where chains of thought are programs; what
  the program returned is left out of one that was `recalled`.
  """

  example: encode.Example
  completion: str
  grade: grade_lib.Grade
  ended: bool
  result: results.Result | None = None

  @property
  def correct(self) -> bool:
    """Whether the final answer is right."""
    return self.grade.verdict is Verdict.CORRECT

  @property
  def choice(self) -> bool:
    """Whether the question is multiple choice."""
    return grade_lib.kind(self.example.problem.task) == "letter"

  def solution(self) -> console_lib.Solution:
    """As the terminal shows it."""
    return console_lib.Solution(
      completion=self.completion,
      verdict=self.grade.verdict.value,
      value=self.grade.value,
    )

  def row(self) -> dict[str, Any]:
    """As a file of samples holds it."""
    problem = self.example.problem
    return {
      "uid": problem.uid,
      "question": problem.question,
      "completion": self.completion,
      **self.to_json(),
      "answer": problem.answer,
      "ended": self.ended,
    }

  def to_json(self) -> dict[str, Any]:
    """The grade, and how the program ended, as JSON knows them."""
    grade, result = self.grade, self.result
    ran = result and {
      "program": result.status.value,
      "tier": result.tier,
      "reason": result.reason,
    }
    return {
      "verdict": grade.verdict.value,
      "value": grade.value,
      "reached": grade.reached,
      "supported": grade.supported,
      **(ran or {}),
    }

  @classmethod
  def from_json(
    cls,
    example: encode.Example,
    completion: str,
    ended: bool,
    judgement: Mapping[str, Any],
  ) -> "Answer":
    """The answer whose `judgement` was kept."""
    grade = grade_lib.Grade(
      Verdict(judgement["verdict"]),
      judgement["value"],
      judgement["reached"],
      judgement["supported"],
    )
    result = None
    if "program" in judgement:
      status = results.Status(judgement["program"])
      result = results.Result(
        status, judgement["tier"], reason=judgement["reason"]
      )
    return cls(example, completion, grade, ended, result)


class PendingGrades:
  """The grades of one rollout's completions, while they are worked out.

  A sampler calls `start` as rows end: their programs run while other rows are
  sampled and, until `answers` is called, while the device does something else.
  With several processes each grades its share.

  Args:
    grader: completions to grades.
    tokenizer: ids to completions.
    examples: one for each row; further rows of the rollout are ignored.
  """

  def __init__(
    self,
    grader: grader_lib.Grader,
    tokenizer: tokenizer_lib.Tokenizer,
    examples: Sequence[encode.Example],
  ):
    self._grader = grader
    self._tokenizer = tokenizer
    self._examples = examples
    self._own_rows = multihost.own_rows(len(examples))
    self._started: dict[int, grader_lib.Started] = {}

  def start(self, rows: Sequence[int], sampled: sampler_lib.Progress) -> None:
    """Starts to grade rows that have ended."""
    response_BT, lengths_B = jax.device_get(
      (sampled.response_BT, sampled.lengths_B)
    )
    self._start(rows, response_BT, lengths_B)

  def answers(self, sampled: types.Rollout) -> list[Answer]:
    """One answer for each example; waits for programs that still run."""
    response_BT, lengths_B, ended_B = multihost.allgather(
      (sampled.response_BT, sampled.response_lengths_B, sampled.ended_B)
    )
    self._start(self._own_rows, response_BT, lengths_B)
    mine = {
      row: Answer(
        self._examples[row],
        started.completion,
        started.grade(),
        bool(ended_B[row]),
        started.result(),
      )
      for row, started in self._started.items()
    }
    judgements = multihost.allgather_rows(
      {row: answer.to_json() for row, answer in mine.items()},
      len(self._examples),
    )
    return [
      mine[row]
      if row in mine
      else Answer.from_json(
        example,
        self._completion(row, response_BT, lengths_B),
        bool(ended_B[row]),
        judgements[row],
      )
      for row, example in enumerate(self._examples)
    ]

  def _completion(
    self, row: int, response_BT: np.ndarray, lengths_B: np.ndarray
  ) -> str:
    return self._tokenizer.decode(response_BT[row, : lengths_B[row]])

  def _start(
    self, rows: Sequence[int], response_BT: np.ndarray, lengths_B: np.ndarray
  ) -> None:
    for row in rows:
      if row in self._own_rows and row not in self._started:
        self._started[row] = self._grader.start(
          self._examples[row].problem,
          self._completion(row, response_BT, lengths_B),
        )


def accuracy(graded: Sequence[Answer]) -> float:
  """Share of answers that are correct; nan without any."""
  if not graded:
    return float("nan")
  return sum(answer.correct for answer in graded) / len(graded)


def majority_accuracy(
  groups: Sequence[Sequence[Answer]], mode: votes.Mode = "strict"
) -> float:
  """Share of questions whose most frequent answer is correct."""
  right = 0
  for group in groups:
    chosen = votes.majority([a.grade.value for a in group], mode)
    right += any(
      answer.correct and votes.same(answer.grade.value, chosen, mode)
      for answer in group
    )
  return right / len(groups) if groups else float("nan")


def rewards(
  answered: Sequence[Answer], config: schema.ReftConfig
) -> np.ndarray:
  """Terminal scores, by `worth`."""
  worths = [reward(a.example.problem, a.grade, config) for a in answered]
  return np.array(worths, np.float32)


def reward(
  problem: Problem, grade: grade_lib.Grade, config: schema.ReftConfig
) -> float:
  """What an answer earns: 1 right, `partial_reward` wrong, 0 if there is none.

  With choice_reward=value a right letter whose value the reasoning does not
  reach is worth as much as a wrong one. A letter without a value, such as
  `none of these`, is paid as it is.

  Deviation: the paper gives partial credit to wrong numbers only, its code to
  wrong letters too, as here.
  """
  if grade.verdict is Verdict.NONE:
    return 0.0
  if grade.verdict is Verdict.WRONG:
    return config.partial_reward
  if config.choice_reward == "value" and grade.supported is not True:
    option = choices.options(problem.question).get(str(grade.value))
    if option is not None and option.value is not None:
      return config.partial_reward
  return 1.0


def verdict_metrics(
  answered: Sequence[Answer], config: schema.ReftConfig
) -> dict[str, types.Mean]:
  """The share of each verdict, and of the reward that is partial credit.

  On multiple choice also the share of right letters, of those where it can be
  told, that come with a value that is not the letter's; of programs also the
  share that ended in each way.
  """
  rows = len(answered)
  metrics = {
    f"verdict/{verdict.value}": types.Mean.of(
      sum(answer.grade.verdict is verdict for answer in answered), rows
    )
    for verdict in Verdict
  }
  scores_B = rewards(answered, config)
  partial = scores_B[scores_B < 1].sum()
  metrics["reward/partial"] = types.Mean.of(partial, scores_B.sum())
  if any(answer.choice for answer in answered):
    told = [a.grade.supported for a in answered if a.correct]
    told = [supported for supported in told if supported is not None]
    metrics[UNREACHED] = types.Mean.of(told.count(False), len(told))
  ran = [a.result.status for a in answered if a.result is not None]
  if ran:
    metrics |= {
      f"program/{status.name.lower()}": types.Mean.of(ran.count(status), rows)
      for status in results.Status
    }
  return metrics
