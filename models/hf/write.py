"""Writes a model to a folder that transformers opens.

A tensor is fetched from the devices when it is written: the host holds one at a
time.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from reft_jax.models import config as configs
from reft_jax.models.hf import families, tensor_files
from reft_jax.models.hf.families import table

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
VALUE_HEAD = "value_head.safetensors"
VALUE_TRUNK = "value"

_GENERATION = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  policy: Mapping[str, Any],
  *,
  extra: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
  generation: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that AutoModelForCausalLM.from_pretrained opens.

  Args:
    path: the folder, made if need be. The files of another model in it are
      removed.
    config: the architecture.
    policy: the parameters, in host or device memory. If several processes hold
      them, one process calls this and the others call `hand_over`.
    extra: more fields of config.json. The tokenizer's `bos_token_id`,
      `eos_token_id` and `pad_token_id` belong here and are null otherwise;
      generation_config.json repeats them.
    dtype: the stored type, one of DTYPES.
    max_shard_bytes: a larger model is written in several files with an index.
    generation: more fields of generation_config.json.
  """
  rows = families.tensors(config)
  folder = _write(path, config, rows, policy, dtype, max_shard_bytes)
  fields = _config_fields(config, dtype, extra)
  special = {name: fields[name] for name in _SPECIAL}
  _write_json(folder / _GENERATION, special | dict(generation or {}))
  _write_json(folder / families.CONFIG, fields)


def hand_over(
  config: configs.ModelConfig,
  params: Mapping[str, Any],
  *,
  classifier: bool = False,
  dtype: str = "float32",
) -> None:
  """Takes part in the all-gathers while another process saves a model.

  The arguments are those of its call of `save` or, with `classifier`, of
  `save_classifier`.
  """
  make_rows = families.classifier_tensors if classifier else families.tensors
  shapes, fetch = _stored_tensors(config, make_rows(config), params, dtype)
  for name in shapes:
    fetch(name)


def save_classifier(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  scorer: Mapping[str, Any],
  *,
  extra: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a folder that AutoModelForSequenceClassification opens.

  The arguments are those of `save`. `extra` should have the `pad_token_id`, by
  which transformers finds the last token of a row.
  """
  rows = families.classifier_tensors(config)
  folder = _write(path, config, rows, scorer, dtype, max_shard_bytes)
  fields = {
    "architectures": [families.BY_TYPE[config.family].NAMES.classifier],
    "num_labels": len(configs.CLASSES),
    "id2label": dict(enumerate(configs.CLASSES)),
    "label2id": {name: label for label, name in enumerate(configs.CLASSES)},
    **(extra or {}),
  }
  _write_json(folder / families.CONFIG, _config_fields(config, dtype, fields))


def save_value(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  value: Mapping[str, Any],
  *,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a value function into the folder of a policy that `save` wrote.

  The head is value_head.safetensors, always in fp32: a weight `w_D` (`w_E`
  where embeddings are projected) and a bias `b`. The value at a token is
  w . hidden + b, where hidden is the hidden state after the final norm. If the
  value function has a trunk of its own, hidden is that trunk's: it is in the
  folder `value`, which AutoModel.from_pretrained opens.
  """
  folder = pathlib.Path(path)
  head = {name: np.asarray(array) for name, array in value["head"].items()}
  tensor_files.write_file(
    folder / VALUE_HEAD,
    {name: array.shape for name, array in head.items()},
    DTYPES["float32"],
    head.__getitem__,
  )
  if "trunk" not in value:
    return
  trunk, rows = folder / VALUE_TRUNK, families.trunk_tensors(config)
  _write(trunk, config, rows, value, dtype, max_shard_bytes)
  fields = _config_fields(config, dtype, None)
  fields["architectures"] = [
    re.sub("(ForCausalLM|LMHeadModel)$", "Model", name)
    for name in fields["architectures"]
  ]
  _write_json(trunk / families.CONFIG, fields)


def remove(folder: pathlib.Path) -> None:
  """Removes the files of a model and its value function from a folder."""
  tensor_files.remove(folder)
  for name in (families.CONFIG, _GENERATION, VALUE_HEAD):
    (folder / name).unlink(missing_ok=True)
  trunk = folder / VALUE_TRUNK
  if trunk.is_dir():
    remove(trunk)
    if not any(trunk.iterdir()):
      trunk.rmdir()


def _config_fields(
  config: configs.ModelConfig, dtype: Any, extra: Mapping[str, Any] | None
) -> dict[str, Any]:
  return {
    **families.write_config(config),
    "dtype": dtype,
    **dict.fromkeys(_SPECIAL),
    **(extra or {}),
  }


def _write_json(file: pathlib.Path, fields: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _write(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  rows: Sequence[table.Tensor],
  params: Mapping[str, Any],
  dtype: str,
  max_shard_bytes: int,
) -> pathlib.Path:
  """Writes weights alone to a folder; the files of another model go."""
  folder = pathlib.Path(path)
  folder.mkdir(parents=True, exist_ok=True)
  remove(folder)
  shapes, fetch = _stored_tensors(config, rows, params, dtype)
  tensor_files.write(folder, shapes, DTYPES[dtype], fetch, max_shard_bytes)
  return folder


def _stored_tensors(
  config: configs.ModelConfig,
  rows: Sequence[table.Tensor],
  params: Mapping[str, Any],
  dtype: str,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
  """The shapes of the stored tensors, and a function that fetches one by name.

  Embeddings and heads come first, then layer by layer, as readers need them.
  """
  params = traverse_util.flatten_dict(params, sep="/")
  parts: dict[str, list[tuple[table.Tensor, int | None]]] = {}
  for layer in (None, *range(config.layers)):
    for row in rows:
      if row.stacked == (layer is not None):
        parts.setdefault(row.stored.format(layer), []).append((row, layer))

  shapes = {
    name: some[0][0].stored_shape(config.sizes) for name, some in parts.items()
  }

  def fetch(name: str) -> np.ndarray:
    array = np.zeros(shapes[name], tensor_files.DTYPES[DTYPES[dtype]])
    for row, layer in parts[name]:
      piece = _fetch(params[row.path], layer, array.dtype)
      row.to_stored(piece, config.sizes, array)
    return array

  return shapes, fetch


def _fetch(param: Any, layer: Any, dtype: Any) -> np.ndarray:
  """A parameter, or one layer of it, in the host's memory."""
  if isinstance(param, jax.Array):
    copied = _copy(param, layer, dtype)
    if not copied.is_fully_addressable:  # Other processes hold some of it.
      return multihost_utils.process_allgather(copied, tiled=True)
    return np.asarray(copied)
  return np.asarray(param if layer is None else param[layer], dtype)


@functools.partial(jax.jit, static_argnums=2)
def _copy(param: Any, layer: Any, dtype: Any) -> Any:
  """A new array: jax keeps the fetched copy as long as its array lives."""
  if layer is not None:
    param = jax.lax.dynamic_index_in_dim(param, layer, keepdims=False)
  return jnp.array(param, dtype)
