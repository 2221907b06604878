"""The mesh, and where batches and parameters lie on it.

Three axes: `data` and `fsdp` split the batch, `fsdp` also splits parameters
and optimizer state, `tensor` splits heads, feed-forward and vocabulary. One
device is a mesh of one. The number of devices changes speed, not results.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reft_jax.errors import UserError
from reft_jax.models import partition

AXES = ("data", "fsdp", "tensor")
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
  sizes = axis_sizes(data=data, fsdp=fsdp, tensor=tensor, count=len(devices))
  shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
  except NotImplementedError:
    # A TPU's axes, such as 4 x 4 x 4, that no axis of 8 is a product of.
    split = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
    return Mesh(split, AXES, axis_types=kinds)


def axis_sizes(
  *, data: int, fsdp: int, tensor: int, count: int
) -> dict[str, int]:
  """The size of each axis of a mesh over `count` devices, with no -1 left.

  Raises:
    UserError: as `make_mesh`.
  """
  sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  free = [name for name, size in sizes.items() if size == -1]
  given = int(np.prod([size for size in sizes.values() if size != -1]))
  if len(free) > 1:
    raise UserError(f"mesh: only one axis may be -1, not {' and '.join(free)}.")
  if free and given and count % given == 0:
    sizes[free[0]] = count // given
  if int(np.prod(list(sizes.values()))) != count:
    shape = " x ".join(f"{name}={size}" for name, size in sizes.items())
    raise UserError(
      f"mesh: {shape} does not use all of the {count} devices; set one axis "
      "to -1 to give it the rest."
    )
  return sizes


def batch_ways(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_divides(mesh: Mesh, sizes: Mapping[str, int]) -> None:
  """Raises a UserError for the first batch size the mesh cannot split."""
  ways = batch_ways(mesh)
  for name, size in sizes.items():
    if size % ways:
      raise UserError(
        f"{name}={size} must be a multiple of the {ways} devices that share "
        f"a batch (mesh data x fsdp); try {-(-size // ways) * ways}."
      )


def shardings(mesh: Mesh, tree: Any) -> Any:
  """NamedShardings of parameters or optimizer state, by their letters."""
  specs = partition.specs(tree, mesh.shape)
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def put(mesh: Mesh, tree: Any) -> Any:
  """Parameters or state onto their shards."""
  return jax.device_put(tree, shardings(mesh, tree))


def place(mesh: Mesh) -> Callable[[Any], Any]:
  """Has `pretrained.load` read parameters straight onto their shards."""
  return functools.partial(shardings, mesh)


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """Host rows onto the devices that share a batch."""
  return jax.device_put(batch, NamedSharding(mesh, BATCH))
