"""Reads a model from a folder in the Hugging Face layout.

A folder holds config.json and weights: safetensors or pickles, in one file or
in shards that an index lists. It holds a language model, or a classifier of the
solutions that one writes. Weights are read a tensor at a time, and can go
straight to the shards of a mesh: the host never holds a whole model.
"""

import functools
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from reft_jax.models import config as configs
from reft_jax.models import errors
from reft_jax.models.hf import families, tensor_files
from reft_jax.models.hf.families import table

# A tree of jax.ShapeDtypeStruct to the same tree of shardings.
Place = Callable[[Any], Any]
# From a row, its parameter (None at first), the number of a layer and that
# layer's piece: the parameter with the piece in it.
Put = Callable[[table.Tensor, Any, int, np.ndarray], Any]

_CLASSIFIER = "ForSequenceClassification"
_logger = logging.getLogger(__name__)
_SMALL = 2**20  # Elements; threads share the work on larger tensors.
_THREADS = min(16, os.cpu_count() or 1)
_POOL = futures.ThreadPoolExecutor(_THREADS, "widen")
_LISTED = 5  # An error message spells out so many problems and counts the rest.


def read_config(path: str | pathlib.Path) -> configs.ModelConfig:
  """The architecture of the model in a folder.

  Raises:
    UnsupportedModelError: config.json is missing or damaged, or describes a
      model that these networks cannot compute.
  """
  file = pathlib.Path(path) / families.CONFIG
  fields = tensor_files.read_json(file)
  try:
    config = families.read_config(fields)
  except errors.UnsupportedModelError as error:
    raise errors.UnsupportedModelError(f"{file}: {error}") from None
  if unknown := families.unknown_fields(fields):
    _warn_unknown(file, tuple(unknown))
  return config


@functools.cache
def _warn_unknown(file: pathlib.Path, names: tuple[str, ...]) -> None:
  """Cached, so that a file is warned of once."""
  _logger.warning(
    "%s: not known here, and taken to change nothing that is computed: %s.",
    file,
    ", ".join(names),
  )


def load(
  path: str | pathlib.Path, place: Place | None = None
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """Reads a language model: its architecture, and its policy in fp32.

  Stored fp16 and bf16 weights are widened, which is exact.

  Args:
    path: the folder.
    place: gives each parameter its sharding, as `devices.place(mesh)` does. It
      takes the policy's tree of jax.ShapeDtypeStruct, or that of a single
      layer, and returns the tree of shardings. Each tensor is read, put on its
      shards and forgotten: a device holds its part only, and the host little
      more than one tensor. None: the policy is made of numpy arrays.

  Raises:
    UnsupportedModelError: as `read_config`; or the folder holds a classifier;
      or a file is missing or damaged; or tensors are missing, unexpected, or
      have a wrong shape or an unknown type, listed by the checkpoint's names
      and ours.
  """
  config, rows = _describe(pathlib.Path(path), classifier=False)
  return config, _read(pathlib.Path(path), config, rows, place)


def load_classifier(
  path: str | pathlib.Path, place: Place | None = None
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """Reads a classifier, as `load` reads a language model.

  Raises:
    UnsupportedModelError: as `load`; or the folder holds a language model.
  """
  config, rows = _describe(pathlib.Path(path), classifier=True)
  return config, _read(pathlib.Path(path), config, rows, place)


def check(path: str | pathlib.Path) -> None:
  """Checks a model of either kind without reading its weights.

  Raises:
    UnsupportedModelError: as `load` or `load_classifier`.
  """
  folder = pathlib.Path(path)
  _find_tensors(folder, *_describe(folder, classifier=is_classifier(folder)))


def check_policy(path: str | pathlib.Path) -> None:
  """Checks a language model without reading its weights.

  Raises:
    UnsupportedModelError: as `load`.
  """
  folder = pathlib.Path(path)
  _find_tensors(folder, *_describe(folder, classifier=False))


def is_classifier(folder: pathlib.Path) -> bool:
  """Whether config.json names a classifier's class."""
  names = tensor_files.read_json(folder / families.CONFIG).get("architectures")
  return isinstance(names, list) and any(
    str(name).endswith(_CLASSIFIER) for name in names
  )


def _describe(
  folder: pathlib.Path, *, classifier: bool
) -> tuple[configs.ModelConfig, list[table.Tensor]]:
  """A folder's architecture and tensors; it must hold a model of this kind."""
  config = read_config(folder)
  found = is_classifier(folder)
  if found and not classifier:
    raise errors.UnsupportedModelError(
      f"{folder} holds a classifier, such as a reward model, where a language "
      "model is needed; give the folder of one."
    )
  if classifier and not found:
    raise errors.UnsupportedModelError(
      f"{folder} holds no classifier; give the folder of a reward model, such "
      "as a run's models/reward_model."
    )
  make_rows = families.classifier_tensors if found else families.tensors
  return config, make_rows(config)


def _read(
  folder: pathlib.Path,
  config: configs.ModelConfig,
  rows: Sequence[table.Tensor],
  place: Place | None,
) -> dict[str, Any]:
  """The parameters that a family's rows describe."""
  stored = _find_tensors(folder, config, rows)
  put = _put_on_devices(config, rows, place) if place else _put_on_host(config)
  params: dict[str, Any] = dict.fromkeys(row.path for row in rows)
  for group in _by_stored_name(config, rows):
    for layer, name in enumerate(group[0].names(config.layers)):
      array = stored[name].read()
      for row in group:
        params[row.path] = put(
          row, params[row.path], layer, row.from_stored(array, config.sizes)
        )
      del array  # Free it before the next one is read.
  return traverse_util.unflatten_dict(params, sep="/")


def _by_stored_name(
  config: configs.ModelConfig, rows: Sequence[table.Tensor]
) -> list[list[table.Tensor]]:
  """The rows grouped by the tensors that they share.

  The largest, embeddings and heads, come first, while the memory is empty.
  """
  groups: dict[str, list[table.Tensor]] = {}
  for row in rows:
    groups.setdefault(row.stored, []).append(row)

  def order(group: list[table.Tensor]) -> tuple[bool, int]:
    size = math.prod(group[0].stored_shape(config.sizes))
    return group[0].stacked, -size

  return sorted(groups.values(), key=order)


def _shape(config: configs.ModelConfig, row: table.Tensor) -> tuple[int, ...]:
  """A parameter's shape, of all layers."""
  shape = config.shape(row.path)
  return (config.layers, *shape) if row.stacked else shape


def _put_on_host(config: configs.ModelConfig) -> Put:
  def put(
    row: table.Tensor, param: Any, layer: int, piece: np.ndarray
  ) -> np.ndarray:
    if param is None:
      param = np.empty(_shape(config, row), np.float32)
    param[layer if row.stacked else ...] = piece
    return param

  return put


def _put_on_devices(
  config: configs.ModelConfig, rows: Sequence[table.Tensor], place: Place
) -> Put:
  def shardings(shape_of: Callable[[table.Tensor], Any]) -> dict[str, Any]:
    shapes = {
      row.path: jax.ShapeDtypeStruct(shape_of(row), np.float32) for row in rows
    }
    tree = place(traverse_util.unflatten_dict(shapes, sep="/"))
    return traverse_util.flatten_dict(tree, sep="/")

  of_all = shardings(lambda row: _shape(config, row))
  of_layer = shardings(lambda row: config.shape(row.path))

  def put(
    row: table.Tensor, param: Any, layer: int, piece: np.ndarray
  ) -> jax.Array:
    made = jax.make_array_from_callback(
      piece.shape, of_layer[row.path], lambda index: _widen(piece[index])
    )
    if not row.stacked:
      return made
    sharding = of_all[row.path]
    if param is None:  # Not earlier: all parameters would fill the memory.
      param = _zeros(sharding, _shape(config, row))()
    return _put_layer(sharding)(param, made, np.int32(layer))

  return put


def _widen(piece: np.ndarray) -> np.ndarray:
  """A contiguous copy in fp32.

  Threads share the work, because loading spends most of its time on transposes.
  numpy's own conversion of bf16 would hold the GIL, hence the shift of bits.
  """
  made = np.empty(piece.shape, np.float32)

  def fill(rows: Any) -> None:
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
  list(_POOL.map(fill, (slice(at, at + count) for at in starts)))
  return made


@functools.cache
def _put_layer(sharding: Any) -> Any:
  """A jitted function that replaces one layer of an array in place."""

  def put(layers: Any, layer: Any, index: Any) -> Any:
    return jax.lax.dynamic_update_index_in_dim(layers, layer, index, 0)

  return jax.jit(put, donate_argnums=0, out_shardings=sharding)


@functools.cache
def _zeros(sharding: Any, shape: Sequence[int]) -> Any:
  """A jitted function that makes an array of zeros."""
  zeros = functools.partial(jnp.zeros, shape, np.float32)
  return jax.jit(zeros, out_shardings=sharding)


def _find_tensors(
  folder: pathlib.Path,
  config: configs.ModelConfig,
  rows: Sequence[table.Tensor],
) -> dict[str, tensor_files.Stored]:
  """The folder's tensors by the rows' names; an error lists all problems."""
  # Not config.family: a gemma3 model is read as a gemma3_text one.
  model_type = tensor_files.read_json(folder / families.CONFIG)["model_type"]
  names = families.BY_TYPE[model_type].NAMES
  expected: dict[str, table.Tensor] = {}
  for row in rows:
    for name in row.names(config.layers):
      expected.setdefault(name, row)
  stored = _rename(tensor_files.find(folder), expected, names)
  problems = [
    *_problems(config, expected, stored),
    *(
      f"{name} is unexpected"
      for name in sorted(stored.keys() - expected.keys())
      if not re.fullmatch(names.ignored, name)
      # Some checkpoints store a tied head all the same.
      and not (config.tied_head and name == names.head)
    ),
  ]
  if problems:
    more = len(problems) - _LISTED
    listed = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
    raise errors.UnsupportedModelError(
      f"{folder}: the tensors do not fit config.json: {'; '.join(listed)}."
    )
  return stored


def _rename(
  stored: dict[str, tensor_files.Stored],
  expected: Mapping[str, table.Tensor],
  names: table.Names,
) -> dict[str, tensor_files.Stored]:
  """The stored tensors by the names that a language model's tensors have.

  Other starts are replaced, and those of a bare trunk get the prefix.
  """
  for before, after in names.renamed.items():
    stored = {
      re.sub(f"^{re.escape(before)}", after, name): tensor
      for name, tensor in stored.items()
    }
  if any(name.startswith(names.prefix) for name in stored):
    return stored
  return {
    name if name in expected else names.prefix + name: tensor
    for name, tensor in stored.items()
  }


def _problems(
  config: configs.ModelConfig,
  expected: Mapping[str, table.Tensor],
  stored: dict[str, tensor_files.Stored],
) -> Iterator[str]:
  types = ", ".join(tensor_files.DTYPES)
  for name, row in expected.items():
    both, shape = f"{name} ({row.path})", row.stored_shape(config.sizes)
    tensor = stored.get(name)
    if tensor is None:
      yield f"{both} is missing"
    elif tensor.shape != shape:
      yield f"{both} has shape {tensor.shape} and not {shape}"
    elif tensor.dtype not in tensor_files.DTYPES:
      yield f"{both} has type {tensor.dtype} and not one of {types}"
