"""Questions to graded completions: what evaluation and rollouts share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from reft_jax import batching, rollout, selection, terminal, types
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

  Args:
    run: the run.
    samples: completions a question.
    temperature: 0 decodes greedily.
  """

  def __init__(self, run: Run, *, samples: int, temperature: float):
    self._run = run
    self._samples = samples
    self._batch = max(run.config.evaluation.batch_size // samples, 1)
    ways = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    self._batch = batching.round_up(self._batch, ways)
    self._sample = rollout.Sampler(
      run.networks,
      response_tokens=run.config.data.max_response_tokens,
      eos_ids=run.tokenizer.eos_ids,
      pad_id=run.tokenizer.pad_id,
      temperature=temperature,
      samples=samples,
    )

  def __call__(
    self, policy: Any, examples: Sequence[batching.Example], key: jax.Array
  ) -> list[list[Answer]]:
    """`samples` answers for each example, in their order."""
    published = self._run.publish(policy)
    answered = []
    for start in range(0, len(examples), self._batch):
      some = examples[start : start + self._batch]
      prompts = self._run.prompts(
        some, range(start, start + len(some)), self._batch
      )
      repeated = [each for each in some for _ in range(self._samples)]
      graded = grade(self._run, repeated, self._sample(published, prompts, key))
      answered += graded
    return [
      answered[start : start + self._samples]
      for start in range(0, len(answered), self._samples)
    ]
