"""Supervised fine-tuning (paper section 3.1): imitate annotated solutions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from reft_jax import types
from reft_jax.data import batches, encode
from reft_jax.learning import supervised
from reft_jax.run import context
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import mesh as mesh_lib

# The ids of a prompt, and those of the answer to be imitated.
Row = tuple[Sequence[int], Sequence[int]]


def train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """Fine-tunes a policy on the annotated solutions.

  Deviation: a warm-up has a schedule of its own length; the released scripts
  take an early checkpoint of the 40-epoch schedule.
  """
  return train_on(run, stage, annotated(run.train))


def train_on(
  run: context.Run, stage: context.StageRun, rows: Sequence[Row]
) -> context.Trained:
  """Fine-tunes a policy on rows; the best learning rate on dev is kept."""
  return loop_lib.sweep(run, stage, functools.partial(_train_at, rows=rows))


def annotated(examples: Sequence[encode.Example]) -> list[Row]:
  """The annotated solutions of those examples that have one."""
  return [
    (example.prompt, example.target)
    for example in examples
    if example.target is not None
  ]


def _train_at(
  run: context.Run, stage: context.StageRun, *, rows: Sequence[Row]
) -> context.Trained:
  epoch = -(-len(rows) // stage.config.batch_size)
  batch = epoch_batches(run, rows, stage.config.batch_size)
  return run_epochs(run, stage, supervised.SupervisedLearner, batch, epoch)


def run_epochs(
  run: context.Run,
  stage: context.StageRun,
  make_learner: Callable[..., Any],
  batch: Callable[[int], Any],
  epoch: int,
) -> context.Trained:
  """Trains for the stage's epochs of `epoch` steps; `batch(step)` has its rows.

  Each step is one update; dev is asked at the ends of epochs.
  """
  config = stage.config
  steps = epoch * config.epochs
  learner = make_learner(
    *run.learner_arguments(),
    name=stage.name,
    policy=stage.start_policy(),
    optimizer=config.optimizer,
    updates=steps,
    micro_batch=config.micro_batch,
  )
  evaluate_every = epoch * config.evaluate_every
  with loop_lib.Loop(
    run, stage, learner, steps=steps, evaluate_every=evaluate_every
  ) as loop:
    for step in loop:
      metrics = learner.update(batch(step))
      loop.end_step(step, metrics | learner.learning_rate(step))
    return loop.result()


def epoch_batches(
  run: context.Run, rows: Sequence[Row], batch: int
) -> Callable[[int], types.SupervisedBatch]:
  """A step's rows, on the devices; an epoch's last batch is padded.

  A batch is as wide as its longest row, in steps of `data.length_bucket`.
  """
  lengths = [len(prompt) + len(ids) for prompt, ids in rows]
  most = batches.round_up(max(lengths))

  def at(step: int) -> types.SupervisedBatch:
    chosen = batches.epoch_rows(
      len(rows), seed=run.config.seed, step=step, batch=batch
    )
    host = batches.supervised(
      [rows[index] for index in chosen],
      batch=batch,
      slots=batches.width(
        (lengths[index] for index in chosen),
        bucket=run.config.data.length_bucket,
        most=most,
      ),
      pad_id=run.engine.tokenizer.pad_id,
    )
    return mesh_lib.put_batch(run.engine.mesh, host)

  return at
