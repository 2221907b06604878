"""Hugging Face folders to parameters and back.

A folder holds config.json and weights: safetensors or pickles, in one file or
in shards that an index lists. It is a language model, or a classifier of the
solutions that one writes. Weights are read a tensor at a time, and can go
straight to the shards of a mesh: the host never holds a whole model.
"""

import functools
import json
import logging
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from reft_jax.models import config as configs
from reft_jax.models import errors, layers
from reft_jax.models.hf import families, tensor_files
from reft_jax.models.hf.families import kinds, rope_fields, table

UnsupportedModelError = errors.UnsupportedModelError

# A tree of jax.ShapeDtypeStruct to the same tree of shardings.
Place = Callable[[Any], Any]

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
VALUE_HEAD = "value_head.safetensors"
VALUE_TRUNK = "value"

_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_CLASSIFIER = "ForSequenceClassification"
_logger = logging.getLogger(__name__)
# What threads do together: tensors of so many elements or more.
_SMALL = 2**20
_THREADS = min(16, os.cpu_count() or 1)
_LISTED = 5  # Problems an error message spells out before it counts the rest.


def read_config(path: str | pathlib.Path) -> configs.ModelConfig:
  """The architecture of the model in a folder.

  Raises:
    UnsupportedModelError: no readable config.json, or one that asks for
      something these networks do not do.
  """
  file = pathlib.Path(path) / _CONFIG
  fields = tensor_files.read_json(file)
  family = _family(fields, file)
  if fields.get("quantization_config"):
    raise UnsupportedModelError(
      f"{file}: quantized weights cannot be trained; use the original model."
    )
  try:
    kinds.demand(fields, family.FIXED)
    config = family.read_config(fields)
  except KeyError as missing:
    raise UnsupportedModelError(
      f"{file}: the field {missing} is missing."
    ) from None
  except UnsupportedModelError as error:
    raise UnsupportedModelError(f"{file}: {error}") from None
  if config.activation not in layers.ACTIVATIONS:
    raise UnsupportedModelError(
      f"{file}: hidden_act {config.activation!r} is not one of "
      f"{', '.join(layers.ACTIVATIONS)}."
    )
  known = {*family.KINDS, *family.FIXED, *rope_fields.KINDS}
  unknown = kinds.unknown(fields, known)
  if unknown:
    _tell_unknown(file, tuple(unknown))
  return config


@functools.cache
def _tell_unknown(file: pathlib.Path, names: tuple[str, ...]) -> None:
  """Once for each file: the cache is what makes it so."""
  _logger.warning(
    "%s: not known here, and taken to change nothing that is computed: %s.",
    file,
    ", ".join(names),
  )


# Reading ---------------------------------------------------------------------


def load(
  path: str | pathlib.Path, place: Place | None = None
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """Reads a model: its architecture and its policy in fp32.

  Stored fp16 and bf16 weights are widened, which is exact.

  Args:
    path: the folder.
    place: says where each parameter goes, such as
      `functools.partial(devices.shardings, mesh)`: it takes the policy's tree
      of jax.ShapeDtypeStruct, or the one of a single layer's, and returns the
      tree of their shardings. Each tensor is read, put on its shards and
      forgotten, so that a device holds its part only and the host little more
      than one tensor. None: the policy is made of numpy arrays.

  Raises:
    UnsupportedModelError: as `read_config`; or a file is missing or damaged;
      or tensors are missing, unexpected, of another shape or of no known type,
      listed by the checkpoint's names and ours.
  """
  config, rows = _language_model(pathlib.Path(path))
  return config, _read(pathlib.Path(path), config, rows, place)


def load_classifier(
  path: str | pathlib.Path, place: Place | None = None
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """Reads a scorer, as `load` reads a policy.

  Raises:
    UnsupportedModelError: as `load`; or the folder holds a language model.
  """
  config = read_config(path)
  folder = pathlib.Path(path)
  if not is_classifier(folder):
    raise UnsupportedModelError(
      f"{folder} holds no classifier; give the folder of a reward model, such "
      "as a run's models/reward_model."
    )
  return config, _read(folder, config, _classifier_tensors(config), place)


def check(path: str | pathlib.Path) -> None:
  """Raises what `load` or `load_classifier` would, but reads no weights.

  Raises:
    UnsupportedModelError: as they do, except for a model of the other kind.
  """
  config = read_config(path)
  folder = pathlib.Path(path)
  rows = families.BY_TYPE[config.family].tensors(config)
  if is_classifier(folder):
    rows = _classifier_tensors(config)
  _checked(folder, config, rows)


def check_policy(path: str | pathlib.Path) -> None:
  """Raises what `load` would, but reads no weights."""
  _checked(pathlib.Path(path), *_language_model(pathlib.Path(path)))


def is_classifier(folder: pathlib.Path) -> bool:
  """Whether config.json says so; one that says nothing is a language model."""
  architectures = tensor_files.read_json(folder / _CONFIG).get("architectures")
  return isinstance(architectures, list) and any(
    str(name).endswith(_CLASSIFIER) for name in architectures
  )


def _language_model(folder):
  """The architecture and the table of a folder's language model."""
  config = read_config(folder)
  if is_classifier(folder):
    raise UnsupportedModelError(
      f"{folder} holds a classifier, such as a reward model, where a language "
      "model is needed; give the folder of one."
    )
  return config, families.BY_TYPE[config.family].tensors(config)


def _classifier_tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a classifier: a family's trunk below a head of its own."""
  outer = config.outer
  head = table.Tensor("score.weight", f"score_{outer}C", f"C {outer}")
  return [*_trunk_tensors(config), head]


def _trunk_tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  rows = families.BY_TYPE[config.family].tensors(config)
  return [row for row in rows if row.path.startswith("trunk/")]


def _read(folder, config, rows, place) -> dict[str, Any]:
  """The parameters that the rows of a family's table name."""
  stored = _checked(folder, config, rows)
  filling = _placed(config, rows, place) if place else _on_host(config, rows)
  for group in _by_stored_name(config, rows):
    for layer, name in enumerate(group[0].names(config.layers)):
      array = stored[name].read()
      for row in group:
        filling[row.path].put(layer, row.from_stored(array, config.sizes))
      del array  # Or it would lie beside the next.
  params: dict[str, Any] = {}
  for row in rows:
    table.put(params, row.path, filling.pop(row.path).array)
  return params


def _by_stored_name(config, rows) -> list[list[table.Tensor]]:
  """The rows that share tensors, together.

  Tables and heads come first, the largest of all: nothing else fills the memory
  yet.
  """
  groups: dict[str, list[table.Tensor]] = {}
  for row in rows:
    groups.setdefault(row.stored, []).append(row)
  return sorted(
    groups.values(),
    key=lambda group: (
      group[0].stacked,
      -int(np.prod(group[0].stored_shape(config.sizes))),
    ),
  )


class _HostArray:
  """A parameter that is filled layer by layer, in numpy's memory."""

  def __init__(self, shape: Sequence[int], layers: int | None):
    self._layers = np.empty((layers or 1, *shape), np.float32)
    self._stacked = layers is not None

  def put(self, layer: int, piece: np.ndarray) -> None:
    self._layers[layer] = piece

  @property
  def array(self) -> np.ndarray:
    return self._layers if self._stacked else self._layers[0]


class _PlacedArray:
  """A parameter that is filled layer by layer, on its shards."""

  def __init__(
    self, shape: Sequence[int], sharding: Any, of_layer: Any, layers: int | None
  ):
    self._shape = tuple(shape)
    self._sharding = sharding
    self._of_layer = of_layer
    self._layers = layers
    self.array: Any = None

  def put(self, layer: int, piece: np.ndarray) -> None:
    made = jax.make_array_from_callback(
      self._shape, self._of_layer, lambda index: _widened(piece[index])
    )
    if self._layers is None:
      self.array = made
      return
    if self.array is None:  # Not before: all at once would fill the memory.
      self.array = _zeros(self._sharding, (self._layers, *self._shape))()
    self.array = _put_layer(self._sharding)(self.array, made, np.int32(layer))


def _widened(piece: np.ndarray) -> np.ndarray:
  """A copy in fp32 whose axes lie in memory in their order.

  By several threads: turning axes round is what loading spends its time on. Not
  by numpy's own conversion of bf16, which holds up the other threads.
  """
  made = np.empty(piece.shape, np.float32)

  def fill(rows: slice) -> None:
    if piece.dtype == jnp.bfloat16:
      bits = piece[rows].view(np.uint16)
      np.left_shift(bits, 16, out=made[rows].view(np.uint32), dtype=np.uint32)
    else:
      made[rows] = piece[rows]

  if piece.size < _SMALL:
    fill(...)
    return made
  count = -(-len(piece) // _THREADS)
  starts = range(0, len(piece), count)
  list(_pool().map(fill, (slice(at, at + count) for at in starts)))
  return made


@functools.cache
def _pool() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(_THREADS, "widen")


@functools.cache
def _put_layer(sharding):
  """Jitted: an array with one of its layers replaced, in place."""

  def put(layers, layer, index):
    return jax.lax.dynamic_update_index_in_dim(layers, layer, index, 0)

  return jax.jit(put, donate_argnums=0, out_shardings=sharding)


@functools.cache
def _zeros(sharding, shape):
  """Jitted: an array of zeros."""
  zeros = functools.partial(jnp.zeros, shape, np.float32)
  return jax.jit(zeros, out_shardings=sharding)


def _on_host(config, rows) -> dict[str, _HostArray]:
  return {
    row.path: _HostArray(
      config.shape(row.path), config.layers if row.stacked else None
    )
    for row in rows
  }


def _placed(config, rows, place) -> dict[str, _PlacedArray]:
  whole: dict[str, Any] = {}
  layer: dict[str, Any] = {}
  for row in rows:
    shape = config.shape(row.path)
    stacked = (config.layers, *shape) if row.stacked else shape
    table.put(whole, row.path, jax.ShapeDtypeStruct(stacked, np.float32))
    table.put(layer, row.path, jax.ShapeDtypeStruct(shape, np.float32))
  shardings = dict(table.walk(place(whole)))
  of_layers = dict(table.walk(place(layer)))
  return {
    row.path: _PlacedArray(
      config.shape(row.path),
      shardings[row.path],
      of_layers[row.path],
      config.layers if row.stacked else None,
    )
    for row in rows
  }


def _family(fields: Mapping[str, Any], file: pathlib.Path) -> types.ModuleType:
  """Of the `model_type` that a config.json names."""
  model_type = fields.get("model_type")
  if model_type not in list(families.BY_TYPE):  # It need not be hashable.
    raise UnsupportedModelError(
      f"{file}: model_type {model_type!r} is not supported; "
      f"supported: {', '.join(families.BY_TYPE)}."
    )
  return families.BY_TYPE[model_type]


def _checked(folder, config, rows) -> dict[str, tensor_files.Stored]:
  """The tensors by the tables' names; an error lists all that is wrong."""
  # Of the folder, which need not be that of the config that it was read into.
  file = folder / _CONFIG
  family = _family(tensor_files.read_json(file), file)
  expected: dict[str, table.Tensor] = {}
  for row in rows:
    for name in row.names(config.layers):
      expected.setdefault(name, row)
  stored = _named(tensor_files.find(folder), expected, family)
  problems = [
    *_problems(config, expected, stored),
    *(
      f"{name} is unexpected"
      for name in sorted(stored.keys() - expected.keys())
      if not re.fullmatch(family.IGNORED, name)
      # Some tied checkpoints store the head all the same.
      and not (config.tied_head and name == family.HEAD)
    ),
  ]
  if problems:
    more = len(problems) - _LISTED
    listed = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
    raise UnsupportedModelError(
      f"{folder}: the tensors do not fit config.json: {'; '.join(listed)}."
    )
  return stored


def _named(stored, expected, family) -> dict[str, tensor_files.Stored]:
  """The tensors by the tables' names.

  A bare trunk's lack the family's prefix; some families' are wrapped in another
  model's.
  """
  for before, after in getattr(family, "RENAMED", {}).items():
    stored = {
      after + name.removeprefix(before)
      if name.startswith(before)
      else name: one
      for name, one in stored.items()
    }
  if any(name.startswith(family.PREFIX) for name in stored):
    return stored
  return {
    name if name in expected else family.PREFIX + name: one
    for name, one in stored.items()
  }


def _problems(config, expected, stored) -> Iterator[str]:
  for name, row in expected.items():
    if name not in stored:
      yield f"{name} ({row.path}) is missing"
      continue
    tensor = stored[name]
    shape = row.stored_shape(config.sizes)
    if tensor.shape != shape:
      yield f"{name} ({row.path}) has shape {tensor.shape} and not {shape}"
    elif tensor.dtype not in tensor_files.DTYPES:
      yield (
        f"{name} ({row.path}) has type {tensor.dtype} and not one of "
        f"{', '.join(tensor_files.DTYPES)}"
      )


# Writing ---------------------------------------------------------------------


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
    path: the folder, made if need be; its model files are replaced, and those
      in other formats removed.
    config: the architecture.
    policy: the parameters, in host or device memory. A tensor is fetched when
      it is written; the host holds one at a time. If several processes hold
      them, one calls this and the others `hand_over`.
    extra: more fields of config.json; the tokenizer's `bos_token_id`,
      `eos_token_id` and `pad_token_id` belong here, and are null otherwise.
      generation_config.json repeats these.
    dtype: of the file, one of DTYPES; config.json tells it.
    max_shard_bytes: a larger model is written in several files with an index.
    generation: more fields of generation_config.json.
  """
  folder = _cleared(path)
  rows = families.BY_TYPE[config.family].tensors(config)
  _write(folder, config, rows, policy, dtype, max_shard_bytes)
  fields = _config_fields(config, dtype, extra)
  special = {name: fields[name] for name in _SPECIAL}
  _write_json(folder / _GENERATION, special | dict(generation or {}))
  _write_json(folder / _CONFIG, fields)


def hand_over(
  config: configs.ModelConfig,
  params: Mapping[str, Any],
  *,
  classifier: bool = False,
  dtype: str = "float32",
) -> None:
  """What a process does while another one saves what all of them hold.

  Arguments are as those of `save` or, with `classifier`, `save_classifier`.
  """
  rows = (
    _classifier_tensors(config)
    if classifier
    else families.BY_TYPE[config.family].tensors(config)
  )
  shapes, array_of = _tensors(config, rows, params, dtype)
  for name in shapes:
    array_of(name)


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

  Arguments are as those of `save`. transformers finds a row's last token by
  `pad_token_id`, so `extra` should name it; here it follows from the row's
  length.
  """
  folder = _cleared(path)
  rows = _classifier_tensors(config)
  _write(folder, config, rows, scorer, dtype, max_shard_bytes)
  fields = {
    "architectures": [families.BY_TYPE[config.family].CLASSIFIER],
    "num_labels": len(configs.CLASSES),
    "id2label": dict(enumerate(configs.CLASSES)),
    "label2id": {name: label for label, name in enumerate(configs.CLASSES)},
    **(extra or {}),
  }
  _write_json(folder / _CONFIG, _config_fields(config, dtype, fields))


def save_value(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  value: Mapping[str, Any],
  *,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a value function beside the policy that `save` wrote in a folder.

  Its head is value_head.safetensors, always in fp32: a weight `w_D` (`w_E`
  where embeddings are projected) and a bias `b`; the value at a token is
  w . hidden + b, of the hidden state after the final norm. A value function
  with a trunk of its own reads that one's hidden states: it is written to the
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
  trunk = _cleared(folder / VALUE_TRUNK)
  rows = _trunk_tensors(config)
  _write(trunk, config, rows, value, dtype, max_shard_bytes)
  fields = _config_fields(config, dtype, None)
  fields["architectures"] = [
    re.sub("(ForCausalLM|LMHeadModel)$", "Model", name)
    for name in fields["architectures"]
  ]
  _write_json(trunk / _CONFIG, fields)


def remove(folder: pathlib.Path) -> None:
  """Removes the files of a model, and of its value function, from a folder."""
  tensor_files.remove(folder)
  for name in (_CONFIG, _GENERATION, VALUE_HEAD):
    (folder / name).unlink(missing_ok=True)
  trunk = folder / VALUE_TRUNK
  if trunk.is_dir():
    remove(trunk)
    if not any(trunk.iterdir()):
      trunk.rmdir()


def _cleared(path) -> pathlib.Path:
  folder = pathlib.Path(path)
  folder.mkdir(parents=True, exist_ok=True)
  remove(folder)
  return folder


def _config_fields(config, dtype, extra) -> dict[str, Any]:
  return {
    **families.BY_TYPE[config.family].write_config(config),
    "dtype": dtype,
    **dict.fromkeys(_SPECIAL),
    **(extra or {}),
  }


def _write_json(file: pathlib.Path, fields: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _write(folder, config, rows, params, dtype, max_shard_bytes) -> None:
  """The weights that the rows of a family's table name."""
  shapes, array_of = _tensors(config, rows, params, dtype)
  tensor_files.write(folder, shapes, DTYPES[dtype], array_of, max_shard_bytes)


def _tensors(config, rows, params, dtype):
  """The shapes of the stored tensors, and what fetches one by its name.

  Tables first, then layer by layer, as readers go through them.
  """
  params = dict(table.walk(params))
  parts: dict[str, list[tuple[table.Tensor, int | None]]] = {}
  for row in rows:
    if not row.stacked:
      parts.setdefault(row.stored, []).append((row, None))
  for layer in range(config.layers):
    for row in rows:
      if row.stacked:
        parts.setdefault(row.stored.format(layer), []).append((row, layer))

  def array_of(name: str) -> np.ndarray:
    shape = parts[name][0][0].stored_shape(config.sizes)
    array = np.zeros(shape, tensor_files.DTYPES[DTYPES[dtype]])
    for row, layer in parts[name]:
      piece = _fetched(params[row.path], layer, array.dtype)
      row.to_stored(piece, config.sizes, array)
    return array

  shapes = {
    name: some[0][0].stored_shape(config.sizes) for name, some in parts.items()
  }
  return shapes, array_of


def _fetched(param, layer, dtype) -> np.ndarray:
  """A parameter, or one layer of it, in the host's memory."""
  if isinstance(param, jax.Array):
    copied = _copied(param, layer, dtype)
    if not copied.is_fully_addressable:  # Other processes hold some of it.
      return multihost_utils.process_allgather(copied, tiled=True)
    return np.asarray(copied)
  return np.asarray(param if layer is None else param[layer], dtype)


@functools.partial(jax.jit, static_argnums=2)
def _copied(param, layer, dtype):
  """An array of its own: what is fetched is kept as long as its array."""
  if layer is not None:
    param = jax.lax.dynamic_index_in_dim(param, layer, keepdims=False)
  return jnp.array(param, dtype)
