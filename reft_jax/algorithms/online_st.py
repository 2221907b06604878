"""Online self-training (paper section 4.2): imitate while sampling.

ReFT's loop without rewards, critic and KL: of what the policy samples, it
imitates what is right, half and half with the annotations of the questions.
"""

from collections.abc import Sequence

import numpy as np

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches as batches_lib
from reft_jax.data import encode
from reft_jax.learning import means, microbatch, supervised
from reft_jax.run import context
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import grading, rollouts


def train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """Improves a warmed-up policy by its own right answers.

  The loss is CE(right samples) / 2 + CE(annotations) / 2, each a mean over its
  own tokens; without a right sample the second half is left (released code).
  `gold_share` is the weight of the second; at 0 this is expert iteration, a
  batch at a time.
  Deviation: no dropout, which the released code turns on here.
  """
  return loop_lib.sweep(run, stage, _train_at)


def _train_at(run: context.Run, stage: context.StageRun) -> context.Trained:
  config = stage.config
  rollout_source = rollouts.Rollouts(run.engine, run.train, stage.name, config)
  steps = rollout_source.steps
  minibatches = range(0, config.batch_size, config.minibatch)
  learner = supervised.SupervisedLearner(
    *run.learner_arguments(),
    name=stage.name,
    policy=stage.start_policy(),
    optimizer=config.optimizer,
    updates=steps * config.passes * len(minibatches),
    micro_batch=config.micro_batch,
    weights=loss_weights(config),
  )
  with loop_lib.Loop(
    run, stage, learner, steps=steps, evaluate_every=config.evaluate_every
  ) as loop:
    for step in loop:
      rollout = rollout_source.sample(learner.model(), step)
      annotated = []
      if config.gold_share:
        annotated = [annotations(run, rollout.examples)]
      answers = rollout.answers()
      correct_B = np.array([answer.correct for answer in answers])
      correct_B = mesh_lib.put_batch(run.engine.mesh, correct_B)
      batches = [supervised.imitations(rollout.tokens, correct_B), *annotated]
      metrics = _sample_metrics(answers, run.config.reft)
      metrics |= learner.learning_rate()
      for first in [*minibatches] * config.passes:
        rows = microbatch.slice_rows(batches, first, config.minibatch)
        metrics = means.merge(metrics, learner.update(*rows))
      loop.end_step(step, metrics, answers)
    return loop.result()


def loss_weights(config: schema.OnlineConfig) -> dict[str, float]:
  """What right samples and annotations weigh in the loss."""
  if not config.gold_share:
    return {"correct": 1.0}
  return {"correct": 1.0 - config.gold_share, "gold": config.gold_share}


def annotations(
  run: context.Run, examples: Sequence[encode.Example]
) -> types.SupervisedBatch:
  """The questions' annotated solutions."""
  rows = [(example.prompt, example.target or ()) for example in examples]
  data = run.config.data
  host = batches_lib.supervised(
    rows,
    batch=len(rows),
    slots=batches_lib.width(
      (len(prompt) + len(target) for prompt, target in rows),
      bucket=data.length_bucket,
      most=run.engine.prompt_slots + data.max_response_tokens,
    ),
    pad_id=run.engine.tokenizer.pad_id,
  )
  return mesh_lib.put_batch(run.engine.mesh, host)


def _sample_metrics(
  answers: Sequence[grading.Answer], config: schema.ReftConfig
) -> dict[str, types.Mean]:
  """Metrics of the samples, by ReFT's names, with the reward it would pay."""
  rewards_B = grading.rewards(answers, config)
  return grading.verdict_metrics(answers, config) | {
    "reward/mean": types.Mean.of(rewards_B.sum(), len(answers)),
  }
