"""The reward model (paper section 4.2): is this solution right?

A classifier of two classes on the trunk of an early checkpoint, trained on
solutions drawn from the warmed-up model and used to choose among samples.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.evaluation import votes
from reft_jax.learning import optim, steps
from reft_jax.models import lora
from reft_jax.models import networks as networks_lib
from reft_jax.models.hf import pretrained
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost
from reft_jax.sampling.grading import Answer
from reft_jax.tasks import prompts

Groups = Sequence[Sequence[Answer]]


def train(
  run: Run,
  name: str,
  policy: Callable[[], Any],
  config: schema.SupervisedConfig,
  draws: Groups,
  dev_draws: Groups,
) -> loop_lib.Trained:
  """Trains a classifier that starts from a policy's trunk.

  Each solution is one row, those of a question that are alike one together;
  the loss is the cross-entropy at its last token, classes as they come (the
  released code's; the paper's batch is 48).

  Args:
    run: the run.
    name: the stage's.
    policy: gives the one whose trunk is copied, for each learning rate.
    config: the stage's.
    draws: graded solutions of training questions.
    dev_draws: those of dev questions. The classifier by which the right ones
      are chosen most often stays; the last one without any.
  """
  rows, labels = labelled(run, draws)
  train_at = functools.partial(
    _train_at, run, name, policy, rows, labels, dev_draws
  )
  return loop_lib.sweep(run, name, config, train_at)


def _train_at(
  run, name, policy, rows, labels, dev_draws, part, config
) -> loop_lib.Trained:
  """Trains it at one learning rate."""
  epoch = -(-len(rows) // config.batch_size)
  total = epoch * config.epochs
  optimizer = optim.build(config.optimizer, total)
  schedule = optim.schedule(config.optimizer, total)
  update = steps.classify(
    run.networks,
    optimizer,
    micro_batch_size=config.micro_batch_size or config.batch_size,
  )
  judge = Judge(run, run.networks)

  frozen, learnt = run.split_trainable(policy(), name)
  params = {
    "scorer": run.init_sharded(
      run.networks.init_scorer, learnt, run.key(name, "init")
    )
  }
  del learnt  # The scorer has its own.
  base = lora.frozen_base(frozen, params)
  with loop_lib.Loop(
    run,
    part,
    steps=total,
    evaluate_every=epoch * config.evaluate_every,
    evaluate_fn=functools.partial(_preferred, run, judge, dev_draws)
    if dev_draws
    else None,
    model="scorer",
    base=base,
  ) as loop:
    state = run.start(params, optimizer)
    del params  # The state has its own.
    state, start = loop.restore(state)
    for step in range(start, total):
      chosen = batches.epoch_rows(
        len(rows), seed=run.config.seed, step=step, batch=config.batch_size
      )
      some = [rows[index] for index in chosen]
      batch = batches.labelled(
        some,
        [labels[index] for index in chosen],
        batch=config.batch_size,
        slots=_width(run, some),
        pad_id=run.tokenizer.pad_id,
      )
      batch = mesh_lib.put_batch(run.mesh, batch)
      state, metrics = update(state, batch, base=base)
      metrics["learning_rate"] = types.Mean.of(schedule(step))
      loop.end_step(step + 1, state, metrics)
    return loop.result(state, config.optimizer.learning_rate)


def _preferred(
  run: Run, judge: "Judge", groups: Groups, scorer: Any
) -> list[Answer]:
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


def labelled(run: Run, groups: Groups) -> tuple[list[list[int]], list[int]]:
  """Rows of ids and whether each is right, alike ones of a question once."""
  answers = [each for group in groups for each in _once(run, group).values()]
  return _ids(run, answers), [int(answer.correct) for answer in answers]


def _width(run: Run, rows: Sequence[Sequence[int]]) -> int:
  """S: at most a prompt and a response; what is longer is cut."""
  data = run.config.data
  return batches.width(
    map(len, rows),
    bucket=data.length_bucket,
    most=run.prompt_slots + data.max_response_tokens,
  )


class Judge:
  """Asks a classifier about solutions, a batch of one shape at a time.

  Args:
    run: the run.
    networks: the classifier's.
  """

  def __init__(self, run: Run, networks: networks_lib.Networks):
    self._run = run
    ways = mesh_lib.num_batch_shards(run.mesh)
    size = max(run.config.evaluation.batch_size, ways)
    self._batch = size // ways * ways
    self._score = steps.scores(networks)

  def __call__(self, scorer: Any, groups: Groups) -> list[list[float]]:
    """The probability of being right, for each answer of each group."""
    asked = [_once(self._run, group) for group in groups]
    flat = [answer for group in asked for answer in group.values()]
    found = iter(self._probabilities(scorer, flat))
    known = [{text: next(found) for text in group} for group in asked]
    return [
      [texts[_text(self._run, answer)] for answer in group]
      for texts, group in zip(known, groups, strict=True)
    ]

  def _probabilities(self, scorer: Any, flat: Sequence[Answer]) -> list[float]:
    run = self._run
    found: list[float] = []
    for start in range(0, len(flat), self._batch):
      some = _ids(run, flat[start : start + self._batch])
      batch = batches.labelled(
        some,
        [0] * len(some),
        batch=self._batch,
        slots=_width(run, some),
        pad_id=run.tokenizer.pad_id,
      )
      batch = mesh_lib.put_batch(run.mesh, batch)
      scores_B = self._score(scorer, batch.tokens_BS, batch.lengths_B)
      found += multihost.allgather(scores_B)[: len(some)].tolist()
    return found


def check(run: Run, folder: pathlib.Path) -> None:
  """Finds out whether `open_judge` will do, without reading the weights.

  Raises:
    UserError: there is no model, or it reads other tokens than the run's model
      writes.
    UnsupportedModelError: it is a language model, or its tensors are missing
      or of other shapes.
  """
  where = f"evaluation.reward_model={folder}"
  if not (folder / "config.json").is_file():
    raise UserError(
      f"{where}: no reward model there (a folder with config.json, "
      "*.safetensors and tokenizer.json)."
    )
  if not pretrained.is_classifier(folder):
    raise pretrained.UnsupportedModelError(
      f"{where}: a language model, which cannot judge; give a run's "
      "models/reward_model."
    )
  pretrained.check(folder)
  theirs = tokenizer_lib.for_run(run.config, folder)
  if theirs.fingerprint != run.tokenizer.fingerprint:
    raise UserError(
      f"{where}: its tokenizer is another than the model's; take a reward "
      "model that was trained beside this model."
    )


def open_judge(
  run: Run, folder: pathlib.Path
) -> Callable[[Groups], list[list[float]]]:
  """The judge of a reward model's folder; raises as `check` does."""
  check(run, folder)
  shape, scorer = pretrained.load_classifier(
    folder, mesh_lib.placement(run.mesh)
  )
  networks = dataclasses.replace(run.networks, config=shape)
  return functools.partial(Judge(run, networks), scorer)


def _once(run: Run, group: Sequence[Answer]) -> dict[str, Answer]:
  """A question's solutions by their texts, each once."""
  return {_text(run, answer): answer for answer in group}


def _text(run: Run, answer: Answer) -> str:
  return prompts.tidy(answer.completion, run.config.data.reasoning)


def _ids(run: Run, answers: Sequence[Answer]) -> list[list[int]]:
  """Each question with its solution and without EOS, as released."""
  texts = [_text(run, answer) for answer in answers]
  return [
    [*answer.example.prompt, *ids]
    for answer, ids in zip(
      answers, run.tokenizer.encode_all(texts), strict=True
    )
  ]
