"""The mesh's axes for a model, where the settings leave them open.

Arithmetic on sizes alone: a run passes the devices that it has, a plan those of
its target, and both get the same layout.
"""

import dataclasses
import math
from typing import Literal

from reft_jax.config import schema
from reft_jax.errors import UserError
from reft_jax.models import config as configs

AXES = ("data", "fsdp", "tensor")

# Of one parameter in float32: its value, two moments and the reference policy.
_STATE_BYTES = 16
# The shares of a device's memory that the state, the copy of the weights to
# sample from, and the weights gathered for a step may take.
_STATE_SHARE, _COPY_SHARE, _GATHERED_SHARE = 0.4, 0.4, 0.25
# What a device reads from its memory in the time of one small all-reduce: 15 us
# at 3 TB/s. Each layer has two for each token.
_LATENCY_BYTES = 45e6
# The least part of a token's time that the sampler's own layout must save.
_LEAST_GAIN = 0.2


@dataclasses.dataclass(frozen=True)
class Devices:
  """The devices that a model is laid out on.

  Attributes:
    count: the number of devices.
    node: how many of them share fast links; it divides `count`.
    memory: bytes of one device that programs may use; None if not known, which
      counts as enough.
  """

  count: int
  node: int
  memory: float | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """Sizes of the mesh's axes, and when weights are gathered.

  Attributes:
    data: copies of the state, each with a part of the batch.
    fsdp: shards of the state, each with a part of the batch.
    tensor: shards of heads, feed-forward and vocabulary.
    gather: "step", an all-gather along fsdp of the blocks in the compute dtype
      once an optimizer step (ZeRO-2); "layer", an all-gather of each layer
      where it is used (FSDP), forward and backward of each micro-batch.
    sampler_tensor: the sampler's `tensor`; its other axis splits the batch
      only.
  """

  data: int
  fsdp: int
  tensor: int
  gather: Literal["step", "layer"]
  sampler_tensor: int

  @property
  def learner(self) -> tuple[int, int, int]:
    """The mesh to learn on, by AXES."""
    return self.data, self.fsdp, self.tensor

  @property
  def sampler(self) -> tuple[int, int, int]:
    """The mesh to sample on: the learner's, unless it has its own."""
    if self.sampler_tensor == self.tensor:
      return self.learner
    rows = math.prod(self.learner) // self.sampler_tensor
    return rows, 1, self.sampler_tensor


def choose(
  wanted: schema.MeshConfig,
  shape: configs.ModelConfig | None,
  *,
  parameters: int,
  compute_dtype: str,
  devices: Devices,
) -> Layout:
  """The layout of the settings; what they leave open follows from the sizes.

  Args:
    wanted: the settings, None where they are open.
    shape: the architecture; None, if it is not known, counts as small.
    parameters: the number of its parameters.
    compute_dtype: the dtype of the copies of weights.
    devices: the devices.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  copy = parameters * (2 if compute_dtype == "bfloat16" else 4)
  axes = {name: getattr(wanted, name) for name in AXES}
  if not any(axes.values()):
    axes = _axes(shape, copy, parameters, devices)
  elif -1 not in axes.values():
    axes["fsdp"] = axes["fsdp"] or -1
  axes = {name: size or 1 for name, size in axes.items()}
  sizes = axis_sizes(**axes, count=devices.count)
  gather = wanted.gather
  if gather == "auto":
    small = (
      devices.memory is not None
      and copy / sizes["tensor"] <= _GATHERED_SHARE * devices.memory
    )
    gather = "step" if small and sizes["fsdp"] > 1 else "layer"
  tensor = wanted.sampler_tensor
  if tensor is None:
    tensor = _sampler_tensor(shape, copy, sizes["tensor"], devices)
  if devices.count % tensor:
    raise UserError(
      f"mesh.sampler_tensor={tensor} does not divide the {devices.count} "
      "devices; give a size that does, or null."
    )
  return Layout(**sizes, gather=gather, sampler_tensor=tensor)


def axis_sizes(
  *, data: int, fsdp: int, tensor: int, count: int
) -> dict[str, int]:
  """The size of each axis of a mesh over `count` devices, with no -1 left.

  Raises:
    UserError: more than one is -1, or they do not multiply to `count`.
  """
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  given = {name: size for name, size in sizes.items() if size != -1}
  free = [name for name in AXES if name not in given]
  if len(free) > 1:
    raise UserError(f"mesh: only one axis may be -1, not {' and '.join(free)}.")
  if free:
    sizes[free[0]] = count // max(math.prod(given.values()), 1)
  if math.prod(sizes.values()) != count:
    shape = " x ".join(f"{name}={size}" for name, size in given.items())
    remedy = "set one axis to -1 to give it the rest"
    if free:
      remedy = f"give sizes that divide {count}"
    raise UserError(
      f"mesh: {shape} does not use all of the {count} devices; {remedy}."
    )
  return sizes


def _axes(
  shape: configs.ModelConfig | None,
  copy: int,
  parameters: int,
  devices: Devices,
) -> dict[str, int]:
  """The axes where the settings leave all of them open.

  `tensor` is the smallest at which a device can hold its part of the copy to
  sample from, `copy` bytes in all. `fsdp` shards the state over one node, or
  over more if it does not fit; `data` is the rest.
  """
  count, memory = devices.count, devices.memory or math.inf
  sizes = _divisors(shape, devices)
  fits = (size for size in sizes if copy / size <= _COPY_SHARE * memory)
  tensor = next(fits, sizes[-1])
  shards = max(devices.node, tensor)
  least = _STATE_BYTES * parameters / (_STATE_SHARE * memory)
  while shards < min(least, count):
    shards = min(2 * shards, count)
  if count % shards:
    shards = count
  return {"data": count // shards, "fsdp": shards // tensor, "tensor": tensor}


def _sampler_tensor(
  shape: configs.ModelConfig | None, copy: int, tensor: int, devices: Devices
) -> int:
  """The sampler's tensor axis: the fastest to decode a token of few rows.

  A token costs one read of a device's weights and, if they are sharded, the
  all-reduces of the layers. The KV caches cost the same in all layouts.
  """
  if devices.memory is None or shape is None:
    return tensor

  def cost(size: int) -> float:
    waits = 2 * shape.layers * _LATENCY_BYTES if size > 1 else 0.0
    return copy / size + waits

  sizes = (size for size in _divisors(shape, devices) if size % tensor == 0)
  best = min(sizes, key=cost, default=tensor)
  return best if cost(best) <= (1 - _LEAST_GAIN) * cost(tensor) else tensor


def _divisors(shape: configs.ModelConfig | None, devices: Devices) -> list[int]:
  """Sizes of a tensor axis within a node that divide heads and feed-forward."""
  if shape is None:
    return [1]
  most = math.gcd(devices.node, shape.heads, shape.kv_heads, shape.ffn)
  return [size for size in range(1, most + 1) if most % size == 0]
