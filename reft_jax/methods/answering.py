"""Questions to graded completions: what evaluation and rollouts share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from reft_jax import batching, devices, rollout, selection, terminal, types
from reft_jax.methods.run import Run
from reft_jax.tasks import answers


@dataclasses.dataclass(frozen=True)
class Answer:
  """One completion of a question and what it is worth."""

  example: batching.Example
  completion: str
  grade: answers.Grade
  ended: bool

  @property
  def correct(self) -> bool:
    """Whether the final answer is right."""
    return self.grade.verdict is answers.Verdict.CORRECT

  def solution(self) -> terminal.Solution:
    """As the terminal shows it."""
    return terminal.Solution(
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
      "verdict": self.grade.verdict.value,
      "value": self.grade.value,
      "answer": problem.answer,
      "ended": self.ended,
    }


def grade(
  run: Run, examples: Sequence[batching.Example], sampled: types.Rollout
) -> list[Answer]:
  """Grades the first rows of a rollout, one for each example."""
  response_BT, lengths_B, ended_B = jax.device_get(
    (sampled.response_BT, sampled.response_lengths_B, sampled.ended_B)
  )
  graded = []
  for row, example in enumerate(examples):
    completion = run.tokenizer.decode(response_BT[row, : lengths_B[row]])
    verdict = answers.grade(
      completion,
      example.problem,
      reasoning=run.config.data.reasoning,
      mode=run.config.data.answers,
    )
    graded.append(Answer(example, completion, verdict, bool(ended_B[row])))
  return graded


def accuracy(graded: Sequence[Answer]) -> float:
  """Share of answers that are correct; nan without any."""
  if not graded:
    return float("nan")
  return sum(answer.correct for answer in graded) / len(graded)


def majority_accuracy(groups: Sequence[Sequence[Answer]]) -> float:
  """Share of questions whose most frequent answer is correct."""
  right = 0
  for group in groups:
    chosen = selection.majority([answer.grade.value for answer in group])
    right += any(
      answer.correct and selection.same(answer.grade.value, chosen)
      for answer in group
    )
  return right / len(groups) if groups else float("nan")


class Answerer:
  """Answers any number of questions, a batch of one shape at a time.

  A batch holds at most `evaluation.batch_size` rows, samples counted (or a row
  for each device).

  Args:
    run: the run.
    samples: completions a question.
    temperature: 0 decodes greedily.
  """

  def __init__(self, run: Run, *, samples: int, temperature: float):
    self._run = run
    ways = devices.batch_ways(run.mesh)
    rows = max(run.config.evaluation.batch_size, ways)
    # So many samples at a time that they fit a batch, in equal passes.
    at_once = max(
      n for n in range(1, samples + 1) if samples % n == 0 and n * ways <= rows
    )
    self._passes = samples // at_once
    self._batch = rows // at_once // ways * ways
    self._sample = rollout.Sampler(
      run.networks,
      response_tokens=run.config.data.max_response_tokens,
      eos_ids=run.tokenizer.eos_ids,
      pad_id=run.tokenizer.pad_id,
      temperature=temperature,
      samples=at_once,
    )

  def __call__(
    self, policy: Any, examples: Sequence[batching.Example], key: jax.Array
  ) -> list[list[Answer]]:
    """`samples` answers for each example, in their order."""
    published = self._run.publish(policy)
    groups: list[list[Answer]] = [[] for _ in examples]
    for start in range(0, len(examples), self._batch):
      some = range(start, min(start + self._batch, len(examples)))
      for number in range(self._passes):
        requests = [index * self._passes + number for index in some]
        prompts = self._run.prompts(
          [examples[index] for index in some], requests, self._batch
        )
        sampled = self._sample(published, prompts, key)
        rows = [each for each in some for _ in range(self._sample.samples)]
        graded = grade(self._run, [examples[row] for row in rows], sampled)
        for row, answer in zip(rows, graded, strict=True):
          groups[row].append(answer)
    return groups
