"""The mesh, and where batches and parameters lie on it.

Three axes: `data` and `fsdp` split the batch, `fsdp` also splits parameters
and optimizer state, `tensor` splits heads, feed-forward and vocabulary. One
device is a mesh of one. The number of devices changes speed, not results.
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
_KINDS = (AxisType.Auto,) * len(AXES)
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(
  *,
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all devices (or those given); one axis may be -1, the rest.

  Raises:
    UserError: if the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = layout.axis_sizes(
    data=data, fsdp=fsdp, tensor=tensor, count=len(devices)
  )
  shape = tuple(sizes.values())
  try:
    return jax.make_mesh(shape, AXES, axis_types=_KINDS, devices=devices)
  except NotImplementedError:
    # A TPU's axes, such as 4 x 4 x 4, that no axis of 8 is a product of.
    split = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
    return Mesh(split, AXES, axis_types=_KINDS)


def meshes(
  laid_out: layout.Layout, devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, Mesh]:
  """The mesh to learn on, and the one to sample on.

  They are one and the same where the sampler has no layout of its own; else
  they have the same devices in the same order, so that jitted functions take
  arrays from one to the other.
  """
  mesh = make_mesh(
    data=laid_out.data,
    fsdp=laid_out.fsdp,
    tensor=laid_out.tensor,
    devices=devices,
  )
  if laid_out.sampler == laid_out.learner:
    return mesh, mesh
  grid = mesh.devices.reshape(laid_out.sampler)
  return mesh, Mesh(grid, AXES, axis_types=_KINDS)


def present() -> layout.Devices:
  """The devices of this run, all processes together."""
  ours = jax.local_devices()
  told = ours[0].memory_stats() or {}
  # TPUs of a slice are all linked; GPUs are, inside of a machine.
  node = len(ours) if ours[0].platform == "gpu" else jax.device_count()
  return layout.Devices(jax.device_count(), node, told.get("bytes_limit"))


def num_batch_shards(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def pad_to_shards(mesh: Mesh, rows: int, samples: int = 1) -> int:
  """The least rows, not fewer than these, that the devices share alike.

  With several `samples` of each row it is these that are shared.
  """
  ways = num_batch_shards(mesh)
  multiple = ways // math.gcd(ways, samples)
  return -(-rows // multiple) * multiple


def shardings(mesh: Mesh, tree: Any) -> Any:
  """NamedShardings of parameters or optimizer state, by their letters."""
  specs = partition.specs(tree, mesh.shape)
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def put(mesh: Mesh, tree: Any) -> Any:
  """Parameters or state onto their shards.

  What lies on the host, or on one of its devices, is the same in all processes.
  """
  return jax.tree.map(_put, tree, shardings(mesh, tree))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
  ours = not isinstance(x, jax.Array) or x.is_fully_addressable
  if multihost.is_multiprocess() and ours:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
  return jax.device_put(x, sharding)


def placement(mesh: Mesh) -> Callable[[Any], Any]:
  """Has `pretrained.load` read parameters straight onto their shards."""
  return functools.partial(shardings, mesh)


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """Host rows onto the devices that share a batch.

  All processes have all rows, and each takes those of its devices. Rows that
  the devices cannot share alike lie whole on each of them: steps fill them up
  where they compute them.
  """

  def one(x):
    alike = x.shape[0] % num_batch_shards(mesh) == 0
    return _put(x, NamedSharding(mesh, BATCH if alike else PartitionSpec()))

  return jax.tree.map(one, batch)
