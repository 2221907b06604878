"""Axis letters to PartitionSpecs: a parameter's name says how it is sharded.

The mesh has the axes "data" (rows), "fsdp" (rows, and parameters spread over
them) and "tensor" (heads, feed-forward and vocabulary).
"""

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax

from reft_jax.models import config as configs

P = jax.sharding.PartitionSpec

DEFAULT_RULES = {
  "D": "fsdp",
  "E": "fsdp",
  "N": "tensor",
  "K": "tensor",
  "F": "tensor",
  "V": "tensor",
}
_GATHERED_RULES = {
  letter: axis for letter, axis in DEFAULT_RULES.items() if axis != "fsdp"
}
_ROWS = ("data", "fsdp")

_logger = logging.getLogger(__name__)


def specs(
  params: Any,
  axis_sizes: Mapping[str, int],
  rules: Mapping[str, str] = DEFAULT_RULES,
) -> Any:
  """The PartitionSpec of every leaf of parameters or optimizer state.

  A leaf is judged by the last dictionary key of its path. Leaves without axis
  letters, vectors and leaves whose rank the letters do not explain are
  replicated. One more leading axis is that of the layers, and whole.

  Args:
    params: a tree of arrays or jax.ShapeDtypeStruct.
    axis_sizes: sizes of the mesh axes by name (`mesh.shape`).
    rules: the mesh axis of each letter; letters left out stay whole.

  Returns:
    The same tree with a PartitionSpec for each leaf.
  """

  def leaf_spec(path, leaf):
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    name = str(names[-1]) if names else ""
    return _spec(name, leaf.shape, axis_sizes, rules)

  return jax.tree_util.tree_map_with_path(leaf_spec, params)


def pin(x: jax.Array) -> jax.Array:
  """Keeps the leading batch axis of an activation spread over the rows' axes.

  Without it the partitioner may follow the sharded weights instead and gather
  the activations. The other axes are left to it: heads stay where the weights
  put them. The identity where no mesh is set (`jax.set_mesh`) or the batch does
  not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _has_rows(mesh) or x.ndim == 0 or x.shape[0] % num_shards():
    return x
  rest = [P.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, P(_ROWS, *rest))


def pin_heads(x_BKSH: jax.Array) -> jax.Array:
  """`pin` for keys and values, whose heads lie where their weights' do.

  Else a cache that starts as zeros would be whole along "tensor", and each
  token's keys would be gathered into it. Heads that do not divide are whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _has_rows(mesh):
    return x_BKSH
  B, K = x_BKSH.shape[:2]
  rows = None if B % num_shards() else _ROWS
  heads = None if K % mesh.shape["tensor"] else "tensor"
  return jax.lax.with_sharding_constraint(x_BKSH, P(rows, heads))


def pin_or_replicate(x: jax.Array) -> jax.Array:
  """`pin` for what a program returns: whole where the rows do not divide.

  The partitioner would be free to leave such rows unevenly spread, which no
  array outside a program can be.
  """
  if x.ndim and x.shape[0] % num_shards():
    return replicate(x)
  return pin(x)


def num_shards() -> int:
  """Into how many parts the mesh that is set splits a batch; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  if not _has_rows(mesh):
    return 1
  return math.prod(mesh.shape[axis] for axis in _ROWS)


def replicate(x: jax.Array) -> jax.Array:
  """Asks for a small array whole on every device, for the host to read.

  The identity where no mesh is set.
  """
  if not _has_rows(jax.sharding.get_abstract_mesh()):
    return x
  return jax.lax.with_sharding_constraint(x, P())


def gather(
  name: str, weight: jax.Array, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
  """Asks for one layer's weight whole along "fsdp", just before its use.

  The other half of `pin`: what travels is the weight in its compute dtype and
  never a partial sum of activations. The identity where no mesh is set.

  Args:
    name: its name, which says how it lies.
    weight: the weight.
    dtype: what it is cast to, where it lies: the partitioner would gather first
      and cast then, which sends twice as much.
  """
  mesh = jax.sharding.get_abstract_mesh()
  cast = weight if dtype is None else weight.astype(dtype)
  if not _has_rows(mesh):
    return cast
  if cast.dtype != weight.dtype:
    cast = jax.lax.with_sharding_constraint(
      cast, _spec(name, cast.shape, mesh.shape, DEFAULT_RULES)
    )
  return jax.lax.with_sharding_constraint(
    cast, _spec(name, cast.shape, mesh.shape, _GATHERED_RULES)
  )


def scatter(tree: Any) -> Any:
  """Asks for gradients where their parameters lie, which sums them there.

  The identity where no mesh is set.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _has_rows(mesh):
    return tree
  return jax.tree.map(
    jax.lax.with_sharding_constraint, tree, specs(tree, mesh.shape)
  )


def _has_rows(mesh: jax.sharding.AbstractMesh) -> bool:
  return not mesh.empty and set(_ROWS) <= set(mesh.axis_names)


def _spec(name, shape, axis_sizes, rules) -> P:
  letters = configs.letters(name)
  stacked = len(shape) - len(letters)
  # Vectors stay whole: sharded, each would cost a collective and save nothing.
  if len(letters) < 2 or stacked not in (0, 1):
    return P()
  entries: list[str | None] = [None] * stacked
  for letter, size in zip(letters, shape[stacked:], strict=True):
    axis = rules.get(letter)
    if axis_sizes.get(axis, 1) == 1 or axis in entries:
      entries.append(None)
    elif size % axis_sizes[axis]:
      _log_replicated(name, letter, size, axis, axis_sizes[axis])
      entries.append(None)
    else:
      entries.append(axis)
  # As jax writes what its programs return: the same array has the same spec,
  # and a step that gets it back is not compiled again.
  while entries and entries[-1] is None:
    entries.pop()
  return P(*entries)


@functools.cache
def _log_replicated(name, letter, size, axis, axis_size) -> None:
  """Once for each case: the cache is what makes it so."""
  _logger.warning(
    "%s: %s=%d does not divide by the mesh axis %s=%d; replicated there.",
    name,
    letter,
    size,
    axis,
    axis_size,
  )
