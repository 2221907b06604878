"""Axis letters to PartitionSpecs: a parameter's name decides its sharding.

The mesh has the axes "data", which shards rows; "fsdp", which shards rows and
parameters; and "tensor", which shards heads, feed-forward and vocabulary.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from reft_jax.models import config as configs

P = jax.sharding.PartitionSpec

# Those of weights whole along "fsdp", as they are used.
GATHERED_RULES = dict.fromkeys("NKFV", "tensor")
DEFAULT_RULES = dict.fromkeys("DE", "fsdp") | GATHERED_RULES
_ROWS = ("data", "fsdp")

_logger = logging.getLogger(__name__)


def specs(
  params: Any,
  axis_sizes: Mapping[str, int],
  rules: Mapping[str, str] = DEFAULT_RULES,
) -> Any:
  """The PartitionSpec of every leaf of parameters or optimizer state.

  The last dictionary key on a leaf's path is its name. Leaves without axis
  letters, vectors, and leaves whose rank does not match the letters are
  replicated. One more leading axis is that of stacked layers, and not sharded.

  Args:
    params: a tree of arrays or jax.ShapeDtypeStruct.
    axis_sizes: sizes of the mesh axes by name (`mesh.shape`).
    rules: the mesh axis of each letter; other letters are not sharded.

  Returns:
    The same tree with a PartitionSpec for each leaf.
  """

  def leaf_spec(path: tuple[Any, ...], leaf: Any) -> P:
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    name = str(names[-1]) if names else ""
    return _spec(name, leaf.shape, axis_sizes, rules)

  return jax.tree_util.tree_map_with_path(leaf_spec, params)


def pin(x: jax.Array) -> jax.Array:
  """Keeps the leading batch axis of an activation sharded over data and fsdp.

  Without it the partitioner may follow the sharded weights instead and gather
  the activations. The other axes are left to the partitioner: heads stay where
  the weights put them. The identity without a mesh (`jax.set_mesh`), and where
  the batch does not divide.
  """
  if _mesh() is None or x.ndim == 0 or x.shape[0] % num_shards():
    return x
  rest = [P.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, P(_ROWS, *rest))


def pin_heads(x_BKSH: jax.Array) -> jax.Array:
  """`pin` for keys and values, whose heads are sharded as their weights' are.

  Without it a cache of zeros would be replicated along "tensor", and each
  token's keys would be gathered into it. Heads that do not divide are
  replicated.
  """
  mesh = _mesh()
  if mesh is None:
    return x_BKSH
  B, K = x_BKSH.shape[:2]
  rows = None if B % num_shards() else _ROWS
  heads = None if K % mesh.shape["tensor"] else "tensor"
  return jax.lax.with_sharding_constraint(x_BKSH, P(rows, heads))


def pin_or_replicate(x: jax.Array) -> jax.Array:
  """`pin` for a program's results: replicated where rows do not divide.

  The partitioner would be free to shard such rows unevenly, which arrays
  outside a program do not allow.
  """
  if x.ndim and x.shape[0] % num_shards():
    return replicate(x)
  return pin(x)


def num_shards() -> int:
  """The number of shards of a batch on the current mesh; 1 without one."""
  mesh = _mesh()
  if mesh is None:
    return 1
  return math.prod(mesh.shape[axis] for axis in _ROWS)


def replicate(x: jax.Array) -> jax.Array:
  """Replicates a small array on every device, for the host to read.

  The identity without a mesh.
  """
  if _mesh() is None:
    return x
  return jax.lax.with_sharding_constraint(x, P())


def gather(
  name: str, weight: jax.Array, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
  """All-gathers one layer's weight along "fsdp", just before its use.

  The counterpart of `pin`: devices exchange the weight in its compute dtype,
  and not partial sums of activations. Only a cast without a mesh.

  Args:
    name: the parameter's name, which decides its sharding.
    weight: the weight.
    dtype: cast to before the all-gather; the partitioner would gather first and
      cast afterwards, which sends twice as much.
  """
  mesh = _mesh()
  cast = weight if dtype is None else weight.astype(dtype)
  if mesh is None:
    return cast
  if cast.dtype != weight.dtype:
    cast = jax.lax.with_sharding_constraint(
      cast, _spec(name, cast.shape, mesh.shape, DEFAULT_RULES)
    )
  return jax.lax.with_sharding_constraint(
    cast, _spec(name, cast.shape, mesh.shape, GATHERED_RULES)
  )


def scatter(tree: Any) -> Any:
  """Reduce-scatters gradients to the shards of their parameters.

  The identity without a mesh.
  """
  mesh = _mesh()
  if mesh is None:
    return tree
  return jax.tree.map(
    jax.lax.with_sharding_constraint, tree, specs(tree, mesh.shape)
  )


def _mesh() -> jax.sharding.AbstractMesh | None:
  """The current mesh (`jax.set_mesh`), if it has the axes of rows."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if set(_ROWS) <= set(mesh.axis_names) else None


def _spec(
  name: str,
  shape: Sequence[int],
  axis_sizes: Mapping[str, int],
  rules: Mapping[str, str],
) -> P:
  letters = configs.letters(name)
  stacked = len(shape) - len(letters)
  # Sharding a vector would cost a collective and save next to nothing.
  if len(letters) < 2 or stacked not in (0, 1):
    return P()
  entries: list[str | None] = [None] * stacked
  for letter, size in zip(letters, shape[stacked:], strict=True):
    axis = rules.get(letter)
    if axis is None or axis_sizes.get(axis, 1) == 1 or axis in entries:
      entries.append(None)
    elif size % axis_sizes[axis]:
      _log_replicated(f"{name}: {letter}={size}", f"{axis}={axis_sizes[axis]}")
      entries.append(None)
    else:
      entries.append(axis)
  # jax's own results have no trailing None either. With another spec for the
  # same layout, a step would compile again when it gets its result back.
  while entries and entries[-1] is None:
    entries.pop()
  return P(*entries)


@functools.cache
def _log_replicated(size: str, axis: str) -> None:
  """Warns once for each case, which is what the cache is for."""
  _logger.warning(
    "%s does not divide by the mesh axis %s; replicated there.", size, axis
  )
