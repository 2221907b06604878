"""A reward model's judgement of solutions: is this one right?"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from reft_jax.data import batches
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.learning import classifier
from reft_jax.models import errors
from reft_jax.models import networks as networks_lib
from reft_jax.models.hf import read as reader
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost
from reft_jax.sampling import engine as engine_lib
from reft_jax.sampling import grading
from reft_jax.tasks import prompts

Groups = Sequence[Sequence[grading.Answer]]


class Judge:
  """Asks a classifier about solutions, a batch of one shape at a time.

  Args:
    engine: the run's.
    networks: the classifier's.
  """

  def __init__(
    self, engine: engine_lib.Engine, networks: networks_lib.Networks
  ):
    self._engine = engine
    shards = mesh_lib.num_batch_shards(engine.mesh)
    size = max(engine.config.evaluation.batch_size, shards)
    self._batch = size // shards * shards
    self._scores = classifier.make_scores(networks)

  def __call__(self, scorer: Any, groups: Groups) -> list[list[float]]:
    """The probability of being right, for each answer of each group."""
    distinct = [by_text(self._engine, group) for group in groups]
    flat = [answer for group in distinct for answer in group.values()]
    found = iter(self._probabilities(scorer, flat))
    known = [{text: next(found) for text in group} for group in distinct]
    return [
      [texts[_text(self._engine, answer)] for answer in group]
      for texts, group in zip(known, groups, strict=True)
    ]

  def _probabilities(
    self, scorer: Any, flat: Sequence[grading.Answer]
  ) -> list[float]:
    engine = self._engine
    found: list[float] = []
    for start in range(0, len(flat), self._batch):
      rows = token_ids(engine, flat[start : start + self._batch])
      batch = batches.labelled(
        rows,
        [0] * len(rows),
        batch=self._batch,
        slots=row_slots(engine, rows),
        pad_id=engine.tokenizer.pad_id,
      )
      batch = mesh_lib.put_batch(engine.mesh, batch)
      scores_B = self._scores(scorer, batch.tokens_BS, batch.lengths_B)
      found += multihost.allgather(scores_B)[: len(rows)].tolist()
    return found


def check(engine: engine_lib.Engine, folder: pathlib.Path) -> None:
  """Finds out whether `load` will do, without reading the weights.

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
  if not reader.is_classifier(folder):
    raise errors.UnsupportedModelError(
      f"{where}: a language model, which cannot judge; give a run's "
      "models/reward_model."
    )
  reader.check(folder)
  theirs = tokenizer_lib.for_run(engine.config, folder)
  if theirs.fingerprint != engine.tokenizer.fingerprint:
    raise UserError(
      f"{where}: its tokenizer is another than the model's; take a reward "
      "model that was trained beside this model."
    )


def load(
  engine: engine_lib.Engine, folder: pathlib.Path
) -> Callable[[Groups], list[list[float]]]:
  """The judge of a reward model's folder; raises as `check` does."""
  check(engine, folder)
  placement = mesh_lib.placement(engine.mesh)
  shape, scorer = reader.load_classifier(folder, placement)
  networks = dataclasses.replace(engine.networks, config=shape)
  return functools.partial(Judge(engine, networks), scorer)


def by_text(
  engine: engine_lib.Engine, group: Sequence[grading.Answer]
) -> dict[str, grading.Answer]:
  """A question's solutions by their texts, each once."""
  return {_text(engine, answer): answer for answer in group}


def token_ids(
  engine: engine_lib.Engine, answers: Sequence[grading.Answer]
) -> list[list[int]]:
  """Each question with its solution and without EOS, as released."""
  texts = [_text(engine, answer) for answer in answers]
  return [
    [*answer.example.prompt, *ids]
    for answer, ids in zip(
      answers, engine.tokenizer.encode_all(texts), strict=True
    )
  ]


def row_slots(engine: engine_lib.Engine, rows: Sequence[Sequence[int]]) -> int:
  """S: at most a prompt and a response; what is longer is cut."""
  data = engine.config.data
  return batches.width(
    map(len, rows),
    bucket=data.length_bucket,
    most=engine.prompt_slots + data.max_response_tokens,
  )


def _text(engine: engine_lib.Engine, answer: grading.Answer) -> str:
  return prompts.tidy(answer.completion, engine.config.data.reasoning)
