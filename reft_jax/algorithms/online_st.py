"""Online self-training (paper section 4.2): imitate while sampling.

ReFT's loop without rewards, critic and KL: of what the policy samples, it
imitates what is right, half and half with the annotations of the questions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches as batches_lib
from reft_jax.data import encode
from reft_jax.learning import optim, steps
from reft_jax.models import lora
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import grading
from reft_jax.sampling import rollouts as rollouts_lib


def train(
  run: Run,
  name: str,
  policy: Callable[[], Any],
  config: schema.OnlineConfig,
  evaluate_fn: loop_lib.EvaluateFn | None,
) -> loop_lib.Trained:
  """Improves a warmed-up policy by its own right answers.

  The loss is CE(right samples) / 2 + CE(annotations) / 2, each a mean over its
  own tokens; without a right sample the second half is left (released code).
  `gold_share` is the weight of the second; at 0 this is expert iteration, a
  batch at a time.
  Deviation: no dropout, which the released code turns on here.
  """
  train_at = functools.partial(_train_at, run, name, policy, evaluate_fn)
  return loop_lib.sweep(run, name, config, train_at)


def _train_at(run, name, policy, evaluate_fn, part, config) -> loop_lib.Trained:
  """Improves it at one learning rate; all of them draw by the same keys."""
  rollouts = rollouts_lib.Rollouts(run, name, config)
  minibatch = config.minibatch_size or config.batch_size
  starts = range(0, config.batch_size, minibatch)
  updates = rollouts.steps * config.passes * len(starts)
  optimizer = optim.build(config.optimizer, updates)
  schedule = optim.schedule(config.optimizer, updates)
  shares = {"correct": 1.0 - config.gold_share, "gold": config.gold_share}
  if not config.gold_share:
    del shares["gold"]
  update = steps.supervised(
    run.networks,
    optimizer,
    micro_batch_size=config.micro_batch_size or minibatch,
    logit_chunk=run.config.model.logit_chunk,
    parts=tuple(shares),
    shares=tuple(shares.values()),
  )
  frozen, learnt = run.split_trainable(policy(), name)
  params = {"policy": learnt}
  base = lora.frozen_base(frozen, params)
  whole = functools.partial(lora.join, base)
  with loop_lib.Loop(
    run,
    part,
    steps=rollouts.steps,
    evaluate_every=config.evaluate_every,
    evaluate_fn=evaluate_fn,
    base=base,
  ) as loop:
    state = run.start(params, optimizer)
    del learnt, params  # The state has its own.
    state, start = loop.restore(state)
    for step in range(start, rollouts.steps):
      sampled, examples, verdicts = rollouts(
        whole(state.params)["policy"], step
      )
      gold = [annotations(run, examples)] if "gold" in shares else []
      answered = verdicts.answers(sampled)
      correct_B = np.array([answer.correct for answer in answered])
      correct_B = mesh_lib.put_batch(run.mesh, correct_B)
      batches = [steps.imitations(sampled, correct_B), *gold]
      metrics = _facts(answered, run.config.reft)
      metrics["learning_rate"] = types.Mean.of(schedule(state.step))
      for first in [*starts] * config.passes:
        rows = steps.slice_rows(batches, first, minibatch)
        state, learned = update(state, *rows, base=base)
        metrics = loop_lib.merged(metrics, learned)
      loop.end_step(step + 1, state, metrics, answered)
    return loop.result(state, config.optimizer.learning_rate)


def annotations(
  run: Run, examples: Sequence[encode.Example]
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
      most=run.prompt_slots + data.max_response_tokens,
    ),
    pad_id=run.tokenizer.pad_id,
  )
  return mesh_lib.put_batch(run.mesh, host)


def _facts(
  answered: Sequence[grading.Answer], config: schema.ReftConfig
) -> dict[str, types.Mean]:
  """What is told of the samples, by the names that ReFT uses.

  The reward is the one that ReFT would be paid.
  """
  scores_B = grading.rewards(answered, config)
  return grading.verdict_metrics(answered, config) | {
    "reward/mean": types.Mean.of(scores_B.sum(), len(answered)),
  }
