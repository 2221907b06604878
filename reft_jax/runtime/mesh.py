"""The device mesh, and how batches and parameters are sharded over it.

Three axes: `data` and `fsdp` split the batch, `fsdp` also splits parameters
and optimizer state, `tensor` splits heads, feed-forward and vocabulary. The
number of devices changes speed, not results.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reft_jax.models import partition
from reft_jax.runtime import layout, multihost

AXES = layout.AXES
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(
  *,
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all devices, or over those given.

  Args:
    data: the size of this axis; -1, for one of the axes, takes the rest.
    fsdp: the same.
    tensor: the same.
    devices: None means all devices of all processes.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  axes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  shape = tuple(layout.axis_sizes(**axes, count=len(devices)).values())
  try:
    return jax.make_mesh(shape, AXES, axis_types=_AXIS_TYPES, devices=devices)
  except NotImplementedError:
    # A TPU slice of 4 x 4 x 4 chips has no whole axes for an axis of 8.
    split = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
    return Mesh(split, AXES, axis_types=_AXIS_TYPES)


def make_meshes(
  laid_out: layout.Layout, devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, Mesh]:
  """The mesh to learn on and the mesh to sample on.

  They are the same unless the sampler has its own layout. Both have the same
  devices in the same order: a jitted function takes arrays of either.
  """
  axes = dict(zip(AXES, laid_out.learner, strict=True))
  mesh = make_mesh(**axes, devices=devices)
  if laid_out.sampler == laid_out.learner:
    return mesh, mesh
  grid = mesh.devices.reshape(laid_out.sampler)
  return mesh, Mesh(grid, AXES, axis_types=_AXIS_TYPES)


def available_devices() -> layout.Devices:
  """The devices of this run, over all processes."""
  local = jax.local_devices()
  stats = local[0].memory_stats() or {}
  # Fast links join all TPUs of a slice, but only the GPUs of one machine.
  node = len(local) if local[0].platform == "gpu" else jax.device_count()
  return layout.Devices(jax.device_count(), node, stats.get("bytes_limit"))


def num_batch_shards(mesh: Mesh) -> int:
  """The number of parts into which a batch is split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def pad_to_shards(mesh: Mesh, rows: int, samples: int = 1) -> int:
  """Rounds rows up until rows * samples divide by the number of shards."""
  shards = num_batch_shards(mesh)
  multiple = shards // math.gcd(shards, samples)
  return -(-rows // multiple) * multiple


def shardings(mesh: Mesh, tree: Any) -> Any:
  """NamedShardings of parameters or optimizer state, from their names."""
  return jax.tree.map(
    functools.partial(NamedSharding, mesh),
    partition.specs(tree, mesh.shape),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def put(mesh: Mesh, tree: Any) -> Any:
  """Shards parameters or state over the mesh.

  Leaves on the host, or on its devices alone, must be equal in all processes.
  """
  return jax.tree.map(_put, tree, shardings(mesh, tree))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
  is_local = not isinstance(x, jax.Array) or x.is_fully_addressable
  if multihost.is_multiprocess() and is_local:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
  return jax.device_put(x, sharding)


def placement(mesh: Mesh) -> Callable[[Any], Any]:
  """For `models.hf.read.load`, which then reads each shard to its device."""
  return functools.partial(shardings, mesh)


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """Shards a batch by rows, which all processes hold on the host.

  A leaf whose rows do not divide by the number of shards is replicated; steps
  pad it where they compute it.
  """

  def put_rows(x: Any) -> jax.Array:
    divides = x.shape[0] % num_batch_shards(mesh) == 0
    return _put(x, NamedSharding(mesh, BATCH if divides else PartitionSpec()))

  return jax.tree.map(put_rows, batch)
