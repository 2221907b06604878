"""Questions to graded completions: what evaluation and rollouts share."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches as batches_lib
from reft_jax.data import encode
from reft_jax.learning import steps
from reft_jax.run.context import Run
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost
from reft_jax.sampling import grading
from reft_jax.sampling import sampler as sampler_lib


class BatchSampler:
  """Answers any number of questions, a batch of one shape at a time.

  A batch holds at most `evaluation.batch_size` rows, samples counted (or a row
  for each device).

  Args:
    run: the run.
    samples: completions a question.
    temperature: 0 decodes greedily.
    top_k: likeliest tokens drawn from; 0 draws from all.
  """

  def __init__(
    self, run: Run, *, samples: int, temperature: float, top_k: int = 0
  ):
    self._run = run
    ways = mesh_lib.num_batch_shards(run.sampling_mesh)
    rows = max(run.config.evaluation.batch_size, ways)
    # So many samples at a time that they fit a batch, in equal passes.
    at_once = max(
      n for n in range(1, samples + 1) if samples % n == 0 and n * ways <= rows
    )
    self._passes = samples // at_once
    self._batch = rows // at_once // ways * ways
    self._sample = sampler_lib.Sampler(
      run.networks,
      response_tokens=run.config.data.max_response_tokens,
      eos_ids=run.tokenizer.eos_ids,
      pad_id=run.tokenizer.pad_id,
      temperature=temperature,
      top_k=top_k,
      samples=at_once,
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
    published = self._run.publish(policy)
    for first in range(start, len(examples), self._batch):
      some = range(first, min(first + self._batch, len(examples)))
      groups: list[list[grading.Answer]] = [[] for _ in some]
      for number in range(self._passes):
        requests = [index * self._passes + number for index in some]
        prompts = self._run.prompts(
          [examples[index] for index in some], requests, self._batch
        )
        rows = [each for each in some for _ in range(self._sample.samples)]
        verdicts = grading.PendingGrades(
          self._run, [examples[row] for row in rows]
        )
        sampled = self._run.sample(
          self._sample, published, prompts, key, verdicts
        )
        for row, answer in zip(rows, verdicts.answers(sampled), strict=True):
          groups[row - first].append(answer)
      yield groups


class Rollouts:
  """What a stage that samples as it learns samples, step by step.

  Args:
    run: the run.
    name: the stage's; its random streams follow from it.
    config: how many questions and samples a step has.

  Attributes:
    steps: how many there are.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    config: schema.RolloutsConfig,
  ):
    self._run = run
    self._name = name
    self._rows = config.batch_size
    self._questions = config.batch_size // config.samples_per_question
    self.steps = config.steps or config.epochs * -(
      -len(run.train) // self._questions
    )
    self._sample = sampler_lib.Sampler(
      run.networks,
      response_tokens=run.config.data.max_response_tokens,
      eos_ids=run.tokenizer.eos_ids,
      pad_id=run.tokenizer.pad_id,
      temperature=config.temperature,
      samples=config.samples_per_question,
    )

  def __call__(
    self, policy: Any, step: int
  ) -> tuple[types.Rollout, list[encode.Example], grading.PendingGrades]:
    """A step's rollout, each row's question, and its verdicts under way.

    The rollout is as wide as its longest response, in steps of
    `data.length_bucket`.
    """
    run = self._run
    requests = batches_lib.stream_requests(
      len(run.train),
      seed=run.config.seed,
      step=step,
      batch=self._questions,
    )
    examples = [run.train[number % len(run.train)] for number in requests]
    batch = mesh_lib.pad_to_shards(
      run.sampling_mesh, self._questions, self._sample.samples
    )
    prompts = run.prompts(examples, requests, batch)
    rows = [each for each in examples for _ in range(self._sample.samples)]
    verdicts = grading.PendingGrades(run, rows)
    sampled = run.sample(
      self._sample,
      run.publish(policy),
      prompts,
      run.key(self._name, "sample", step),
      verdicts,
    )
    if batch > self._questions:
      sampled = steps.slice_rows(sampled, 0, self._rows)
    data = run.config.data
    slots = batches_lib.width(
      multihost.allgather(sampled.response_lengths_B).tolist(),
      bucket=data.length_bucket,
      most=data.max_response_tokens,
    )
    if slots < data.max_response_tokens:
      sampled = steps.trimmed(sampled, slots)
    return sampled, rows, verdicts
