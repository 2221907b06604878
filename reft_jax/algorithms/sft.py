"""Supervised fine-tuning (paper section 3.1): imitate annotated solutions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches as batches_lib
from reft_jax.data import encode
from reft_jax.learning import optim, steps
from reft_jax.models import lora
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.runtime import mesh as mesh_lib

# The ids of a prompt, and those of the answer to be learnt.
Row = tuple[Sequence[int], Sequence[int]]


def train(
  run: Run,
  name: str,
  policy: Callable[[], Any],
  config: schema.SupervisedConfig,
  evaluate_fn: loop_lib.EvaluateFn | None,
  *,
  rows: Sequence[Row] | None = None,
  keep: str = "best",
) -> loop_lib.Trained:
  """Fine-tunes a policy; with several learning rates, the best on dev stays.

  Args:
    run: the run.
    name: the stage's.
    policy: gives the one it starts from, for each learning rate.
    config: the stage's.
    evaluate_fn: as `Loop`'s.
    rows: what is learnt; the annotated solutions if None.
    keep: which policy of a training run stays: the best on dev, or the last,
      as for a warm-up of a given number of epochs.

  Deviation: a warm-up has a schedule of its own length; the released scripts
  take an early checkpoint of the 40-epoch schedule.
  """
  rows = annotated(run.train) if rows is None else rows
  train_at = functools.partial(
    _train_at, run, name, policy, evaluate_fn, rows, keep
  )
  return loop_lib.sweep(run, name, config, train_at)


def annotated(examples: Sequence[encode.Example]) -> list[Row]:
  """The annotated solutions of those examples that have one."""
  return [
    (example.prompt, example.target)
    for example in examples
    if example.target is not None
  ]


def _train_at(
  run, name, policy, evaluate_fn, rows, keep, part, config
) -> loop_lib.Trained:
  """Fine-tunes at one learning rate."""
  epoch = -(-len(rows) // config.batch_size)
  total = epoch * config.epochs

  batch = batches(run, rows, config.batch_size)
  optimizer = optim.build(config.optimizer, total)
  update = steps.supervised(
    run.networks,
    optimizer,
    micro_batch_size=config.micro_batch_size or config.batch_size,
    logit_chunk=run.config.model.logit_chunk,
  )
  schedule = optim.schedule(config.optimizer, total)
  frozen, learnt = run.split_trainable(policy(), name)
  params = {"policy": learnt}
  base = lora.frozen_base(frozen, params)
  with loop_lib.Loop(
    run,
    part,
    steps=total,
    evaluate_every=epoch * config.evaluate_every,
    evaluate_fn=evaluate_fn,
    keep=keep,
    base=base,
  ) as loop:
    state = run.start(params, optimizer)
    del learnt, params  # The state has its own.
    state, start = loop.restore(state)
    for step in range(start, total):
      state, metrics = update(state, batch(step), base=base)
      metrics["learning_rate"] = types.Mean.of(schedule(step))
      loop.end_step(step + 1, state, metrics)
    return loop.result(state, config.optimizer.learning_rate)


def batches(
  run: Run, rows: Sequence[Row], batch: int
) -> Callable[[int], types.SupervisedBatch]:
  """A step's rows, on the devices; an epoch's last batch is filled up.

  A batch is as wide as its longest row, in steps of `data.length_bucket`.
  """
  lengths = [len(prompt) + len(ids) for prompt, ids in rows]
  most = batches_lib.round_up(max(lengths))

  def at(step: int) -> types.SupervisedBatch:
    chosen = batches_lib.epoch_rows(
      len(rows), seed=run.config.seed, step=step, batch=batch
    )
    host = batches_lib.supervised(
      [rows[index] for index in chosen],
      batch=batch,
      slots=batches_lib.width(
        (lengths[index] for index in chosen),
        bucket=run.config.data.length_bucket,
        most=most,
      ),
      pad_id=run.tokenizer.pad_id,
    )
    return mesh_lib.put_batch(run.mesh, host)

  return at
