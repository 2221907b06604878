"""The reward model (paper section 4.2): is this solution right?

A classifier of two classes on the trunk of an early checkpoint, trained on
solutions sampled from the warmed-up model and used to choose among samples.
"""

import dataclasses
import functools
from typing import Any

from reft_jax import types
from reft_jax.algorithms import sft
from reft_jax.data import batches
from reft_jax.evaluation import votes
from reft_jax.learning import classifier
from reft_jax.run import context
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import grading
from reft_jax.sampling import judge as judge_lib

# Rows of ids, and the class of each.
Labelled = tuple[list[list[int]], list[int]]


def train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """Trains a classifier that starts from a policy's trunk.

  Each solution is one row, those of a question that are alike one together;
  the loss is the cross-entropy at its last token, classes as they come (the
  released code's; the paper's batch is 48). Kept is the classifier by which
  right samples of the dev questions are chosen most often, or the last one
  without any.
  """
  data = labelled_rows(run, stage.collected["train"])
  dev = stage.collected["dev"]
  if dev:
    judge = judge_lib.Judge(run.engine, run.engine.networks)
    evaluate_fn = functools.partial(_preferred, run, judge, dev)
    stage = dataclasses.replace(stage, evaluate_fn=evaluate_fn)
  else:
    stage = dataclasses.replace(stage, evaluate_fn=None)
  return loop_lib.sweep(run, stage, functools.partial(_train_at, data=data))


def _train_at(
  run: context.Run, stage: context.StageRun, *, data: Labelled
) -> context.Trained:
  rows, labels = data
  size = stage.config.batch_size

  def batch(step: int) -> types.LabelledBatch:
    chosen = batches.epoch_rows(
      len(rows), seed=run.config.seed, step=step, batch=size
    )
    some = [rows[index] for index in chosen]
    host = batches.labelled(
      some,
      [labels[index] for index in chosen],
      batch=size,
      slots=judge_lib.row_slots(run.engine, some),
      pad_id=run.engine.tokenizer.pad_id,
    )
    return mesh_lib.put_batch(run.engine.mesh, host)

  epoch = -(-len(rows) // size)
  return sft.run_epochs(run, stage, classifier.ClassifierLearner, batch, epoch)


def labelled_rows(run: context.Run, groups: context.Groups) -> Labelled:
  """Rows of ids and whether each is right; alike ones of a question once."""
  answers = [
    answer
    for group in groups
    for answer in judge_lib.by_text(run.engine, group).values()
  ]
  labels = [int(answer.correct) for answer in answers]
  return judge_lib.token_ids(run.engine, answers), labels


def _preferred(
  run: context.Run,
  judge: judge_lib.Judge,
  groups: context.Groups,
  scorer: Any,
) -> list[grading.Answer]:
  """Of each question, the answer that a classifier prefers.

  Where no sample holds an answer, the first one: it is none.
  """
  best = [
    votes.rerank(
      [answer.grade.value for answer in group],
      probabilities,
      run.config.data.answers,
    )
    for group, probabilities in zip(groups, judge(scorer, groups), strict=True)
  ]
  return [group[index or 0] for group, index in zip(groups, best, strict=True)]
