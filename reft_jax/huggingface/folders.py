"""Writes models as Hugging Face folders: weights, configs and tokenizer."""

import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import config as configs
from reft_jax.models.hf import peft
from reft_jax.models.hf import write as writer
from reft_jax.runtime import multihost


def write(
  folder: pathlib.Path,
  shape: configs.ModelConfig,
  tokenizer: tokenizer_lib.Tokenizer,
  model: Any,
  *,
  classifier: bool = False,
  adapter: peft.Adapter | None = None,
  texts: Mapping[str, str],
) -> None:
  """Writes a complete folder or none: it appears in one move.

  All processes call this with their shards of the model, and the lead writes.

  Args:
    folder: replaced if it exists.
    shape: the architecture.
    tokenizer: the model's.
    model: a policy, or a classifier.
    classifier: whether it is one.
    adapter: the adapter that is merged into it, written to a folder inside.
    texts: further files, by name.
  """
  head_DC = None
  if adapter is not None:
    adapter = adapter._replace(params=multihost.allgather(adapter.params))
    if classifier:
      head_DC = multihost.allgather(model[f"score_{shape.outer}C"])
  if not multihost.is_lead():
    writer.hand_over(shape, model, classifier=classifier)
    multihost.barrier("model written")
    return
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
    new = pathlib.Path(scratch) / folder.name
    fill(new, shape, tokenizer, model, classifier=classifier)
    if adapter is not None:
      peft.save(new / peft.FOLDER, shape, adapter, head_DC=head_DC)
    for name, text in texts.items():
      (new / name).write_text(text, encoding="utf-8")
    if folder.exists():
      shutil.rmtree(folder)
    new.rename(folder)
  multihost.barrier("model written")


def fill(
  folder: pathlib.Path,
  shape: configs.ModelConfig,
  tokenizer: tokenizer_lib.Tokenizer,
  model: Any,
  *,
  classifier: bool = False,
  value: Any = None,
  **options: Any,
) -> None:
  """Writes a model's files into a folder.

  Args:
    folder: made if missing; other files in it stay.
    shape: the architecture.
    tokenizer: the model's.
    model: a policy, or a classifier.
    classifier: whether it is one.
    value: a value function to write beside a policy.
    **options: `dtype` and `max_shard_bytes` of the weights.
  """
  save = writer.save_classifier if classifier else writer.save
  special = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": list(tokenizer.eos_ids),
    "pad_token_id": tokenizer.pad_id,
  }
  save(folder, shape, model, extra=special, **options)
  if value is not None:
    writer.save_value(folder, shape, value, **options)
  tokenizer.save(folder)


def merge(new: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves a model's files into a folder, and replaces the model there.

  Other files stay, such as the .git of a clone.
  """
  if not folder.exists():
    new.rename(folder)
    return
  writer.remove(folder)
  for file in sorted(new.rglob("*")):
    if file.is_file():
      place = folder / file.relative_to(new)
      place.parent.mkdir(parents=True, exist_ok=True)
      file.replace(place)
