"""Questions to graded completions, for training or for evaluation."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches, encode
from reft_jax.learning import forward, microbatch
from reft_jax.runtime import keys, multihost
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import engine as engine_lib
from reft_jax.sampling import grading


@dataclasses.dataclass(frozen=True)
class PendingRollout:
  """A step's rollout, whose answers are still being graded.

  Attributes:
    tokens: the rollout, as wide as its longest response, in steps of
      `data.length_bucket`.
    examples: the question of each row.
    grades: the verdicts under way.
  """

  tokens: types.Rollout
  examples: Sequence[encode.Example]
  grades: grading.PendingGrades

  def answers(self) -> list[grading.Answer]:
    """One for each row; waits for what is still being graded."""
    return self.grades.answers(self.tokens)


class Rollouts:
  """Samples solutions of training questions, step by step.

  Args:
    engine: what samples.
    examples: the training questions.
    name: the stage's; its random streams follow from it.
    config: how many questions and samples a step has.

  Attributes:
    steps: how many there are.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    examples: Sequence[encode.Example],
    name: str,
    config: schema.RolloutsConfig,
  ):
    self._engine = engine
    self._examples = examples
    self._name = name
    self._rows = config.batch_size
    self._questions = config.batch_size // config.samples_per_question
    self.steps = config.steps or config.epochs * -(
      -len(examples) // self._questions
    )
    self._sampler = engine.make_sampler(
      temperature=config.temperature, samples=config.samples_per_question
    )

  def sample(self, policy: Any, step: int) -> PendingRollout:
    """A step's rollout; its answers are graded while the device goes on."""
    engine, train = self._engine, self._examples
    seed = engine.config.seed
    requests = batches.stream_requests(
      len(train), seed=seed, step=step, batch=self._questions
    )
    examples = [train[number % len(train)] for number in requests]
    samples = self._sampler.samples
    batch = mesh_lib.pad_to_shards(
      engine.sampling_mesh, self._questions, samples
    )
    prompts = engine.prompts(examples, requests, batch)
    rows = [each for each in examples for _ in range(samples)]
    grades = grading.PendingGrades(engine.grader, engine.tokenizer, rows)
    tokens = engine.sample(
      self._sampler,
      engine.publish(policy),
      prompts,
      keys.derive(seed, self._name, "sample", step),
      grades.start,
    )
    if batch > self._questions:
      tokens = microbatch.slice_rows(tokens, 0, self._rows)
    return PendingRollout(self._trimmed(tokens), rows, grades)

  def _trimmed(self, tokens: types.Rollout) -> types.Rollout:
    data = self._engine.config.data
    slots = batches.width(
      multihost.allgather(tokens.response_lengths_B).tolist(),
      bucket=data.length_bucket,
      most=data.max_response_tokens,
    )
    if slots < data.max_response_tokens:
      tokens = forward.trimmed(tokens, slots)
    return tokens


class BatchSampler:
  """Answers any number of questions, a batch of one shape at a time.

  A batch holds at most `evaluation.batch_size` rows, samples counted (or a row
  for each device).

  Args:
    engine: what samples.
    samples: completions a question.
    temperature: 0 decodes greedily.
    top_k: likeliest tokens sampled from; 0 samples from all.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    *,
    samples: int,
    temperature: float,
    top_k: int = 0,
  ):
    self._engine = engine
    shards = mesh_lib.num_batch_shards(engine.sampling_mesh)
    rows = max(engine.config.evaluation.batch_size, shards)
    # So many samples at a time that they fit a batch, in equal passes.
    at_once = max(
      n
      for n in range(1, samples + 1)
      if samples % n == 0 and n * shards <= rows
    )
    self._passes = samples // at_once
    self._batch = rows // at_once // shards * shards
    self._sampler = engine.make_sampler(
      temperature=temperature, top_k=top_k, samples=at_once
    )

  def __call__(
    self, policy: Any, examples: Sequence[encode.Example], key: jax.Array
  ) -> list[list[grading.Answer]]:
    """`samples` answers for each example, in their order."""
    return list(itertools.chain(*self.batches(policy, examples, key)))

  def batches(
    self,
    policy: Any,
    examples: Sequence[encode.Example],
    key: jax.Array,
    start: int = 0,
  ) -> Iterator[list[list[grading.Answer]]]:
    """The same a batch of examples at a time, from example `start` on."""
    engine = self._engine
    published = engine.publish(policy)
    for first in range(start, len(examples), self._batch):
      some = range(first, min(first + self._batch, len(examples)))
      groups: list[list[grading.Answer]] = [[] for _ in some]
      for number in range(self._passes):
        requests = [index * self._passes + number for index in some]
        prompts = engine.prompts(
          [examples[index] for index in some], requests, self._batch
        )
        rows = [each for each in some for _ in range(self._sampler.samples)]
        grades = grading.PendingGrades(
          engine.grader, engine.tokenizer, [examples[row] for row in rows]
        )
        tokens = engine.sample(
          self._sampler, published, prompts, key, grades.start
        )
        for row, answer in zip(rows, grades.answers(tokens), strict=True):
          groups[row - first].append(answer)
      yield groups
