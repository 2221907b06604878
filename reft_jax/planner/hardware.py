"""The hardware that a plan can be made for: its numbers and its names.

All numbers are per device: a GPU, or a TPU chip (v4 and v5p have two cores,
which jax shows as one device). Peaks are of dense products.

Sources: NVIDIA's data sheets of the A100, H100, H200, L4 and T4; the GPU
descriptions in openxla/xla, xla/backends/gpu/target_config/specs; deviceQuery
for a T4's memory, the least that PyTorch reports for an L4's;
docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; for the bandwidth of a TPU's
link in one direction, the tables of jax-ml.github.io/scaling-book/tpus.
"""

import dataclasses
import functools
import math
import os
import re
from typing import Any

from reft_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device."""

  platform: str  # In jax's words: cpu, cuda or tpu.
  memory: int  # Bytes that its driver, or its compiler, reports.
  peak: float  # FLOP/s of matrix products in bfloat16.
  # The same in float32 at jax's default precision, which is TF32 on NVIDIA GPUs
  # that have it and bfloat16 on TPUs.
  peak_float32: float
  bandwidth: float  # Bytes/s of its memory.
  # Bytes/s that it can send to its neighbours in a collective.
  link: float = 0.0
  network: float = 0.0  # Bytes/s that it can send to devices of another node.
  # The rest of what the compiler of a GPU knows (`description`).
  kernel: tuple[Any, ...] = ()
  node: int = 0  # Devices that share the fast links; 0: all of a slice do.
  # Bytes that programs cannot use: the context, libraries' handles, the
  # runtime's own memory.
  reserve: int = 0
  # Further bytes for collectives, with several devices.
  reserve_shared: int = 0


# The share of the rest that is lost between the allocator's blocks.
FRAGMENTS = 0.03
# The share of a GPU's memory that jax allocates by default.
GPU_FRACTION = 0.75


_gpu = functools.partial(
  Chip,
  "cuda",
  node=8,
  # The CUDA context with cuBLAS's and cuDNN's kernels, then NCCL's buffers.
  reserve=int(0.75 * GIB),
  reserve_shared=GIB,
)


def _tpu(memory: float, peak: float, bandwidth: float, link: float) -> Chip:
  # `memory` is the compiler's limit, which leaves out the runtime's own.
  return Chip("tpu", int(memory), peak, peak, bandwidth, link)


# The name, its compute capability, cores, float32 units of each, GHz, MiB of L2
# cache, and a core's KiB of shared memory and threads.
_A100 = ("NVIDIA A100-SXM4", 8, 0, 108, 64, 1.41, 40, 164, 2048)
_H100 = ("NVIDIA H100 80GB HBM3", 9, 0, 132, 128, 1.98, 50, 228, 2048)
_H200 = ("NVIDIA H200", *_H100[1:])
_L4 = ("NVIDIA L4", 8, 9, 58, 128, 2.04, 48, 100, 1536)
_T4 = ("Tesla T4", 7, 5, 40, 64, 1.59, 4, 64, 1024)

GPUS = {
  # NVLink 3: 600 GB/s both ways; 8 x 200 Gbit/s between nodes.
  "a100-80g": _gpu(85100068864, 312e12, 156e12, 2.039e12, 300e9, 25e9, _A100),
  "a100-40g": _gpu(42331013120, 312e12, 156e12, 1.555e12, 300e9, 25e9, _A100),
  # NVLink 4: 900 GB/s both ways; 8 x 400 Gbit/s between nodes.
  "h100": _gpu(84942979072, 989e12, 494e12, 3.35e12, 450e9, 50e9, _H100),
  "h200": _gpu(151397597184, 989e12, 494e12, 4.8e12, 450e9, 50e9, _H200),
  # PCIe 4.0 x16 and no NVLink; 100 Gbit/s between nodes.
  "l4": _gpu(22 * GIB, 121e12, 60e12, 300e9, 32e9, 12.5e9, _L4),
  # PCIe 3.0 x16. Turing has no bfloat16: products are in float32 instead.
  "t4": _gpu(15843721216, 8.1e12, 8.1e12, 320e9, 16e9, 12.5e9, _T4),
}

# A link has 45 GB/s one way in v4 and v5e and 90 GB/s in v5p and v6e; a ring
# uses two of a chip's links. Slices of one axis or without wrap-around are
# slower, collectives over several axes are faster.
TPUS = {
  "v4": _tpu(30.75 * GIB, 275e12, 1.228e12, 90e9),
  "v5e": _tpu(15.75 * GIB, 197e12, 819e9, 90e9),
  "v5p": _tpu(95.74 * GIB, 459e12, 2.765e12, 180e9),
  "v6e": _tpu(31.25 * GIB, 918e12, 1.638e12, 180e9),
}


def _by_chips(shapes: str) -> dict[int, str]:
  """Shapes of slices by the number of their chips."""
  return {math.prod(map(int, x.split("x"))): x for x in shapes.split()}


_FLAT = _by_chips("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16")
_CUBIC = _by_chips("2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8")
# Google's names of accelerator types that are not the generation's.
_TYPES = {"v5litepod": "v5e"}
# Generations whose slices are named by cores, of which a chip has two.
_BY_CORES = ("v4", "v5p")


@dataclasses.dataclass(frozen=True)
class Target:
  """Some devices of one kind."""

  name: str  # Its name, such as "h100 x8" or "v5e-8".
  kind: str  # Its row of GPUS or TPUS, or "cpu".
  chip: Chip  # Its numbers.
  devices: int  # How many.
  # For the compiler: hosts x processes x GPUs, or the shape of a slice.
  topology: str = ""

  @property
  def usable(self) -> int:
    """Bytes of a device that a run's arrays and programs can use."""
    chip = self.chip
    left = chip.memory - chip.reserve
    if self.devices > 1:
      left -= chip.reserve_shared
    return int(left * (1 - FRAGMENTS))


def target(text: str) -> Target:
  """Reads the name of a target.

  Raises:
    UserError: there is no such target; the message lists the targets.
  """
  words = text.strip().lower()
  counted = re.fullmatch(r"([a-z0-9-]+?)(?:\s*x\s*(\d+))?", words)
  kind, count = counted.groups() if counted else (words, None)
  if kind == "cpu":
    devices = int(count or 1)
    if not devices:
      raise UserError(f"--target {text}: take 1 device or more.")
    name = f"cpu x{devices}" if devices > 1 else "cpu"
    return Target(name, "cpu", _this_cpu(devices), devices)
  if kind in GPUS:
    devices = int(count or 1)
    node = GPUS[kind].node
    if not devices or (devices > node and devices % node):
      raise UserError(
        f"--target {text}: GPUs come {node} to a node; take 1 to {node}, or a"
        f" multiple of {node}."
      )
    nodes = -(-devices // node)
    shape = f"{nodes}x1x{devices // nodes}"
    return Target(f"{kind} x{devices}", kind, GPUS[kind], devices, shape)
  tpu = re.fullmatch(r"(v\d+\w*)-(\d+)", words)
  if tpu and (kind := _TYPES.get(tpu[1], tpu[1])) in TPUS:
    return _slice(text, kind, int(tpu[2]))
  known = ", ".join([*(f"{x} x8" for x in GPUS), *(f"{x}-8" for x in TPUS)])
  raise UserError(
    f"--target {text}: not known; a target is cpu, a GPU and how many, or a TPU"
    f" slice: cpu, {known} and so on."
  )


def _slice(text: str, kind: str, size: int) -> Target:
  halved = kind in _BY_CORES
  shapes = _CUBIC if halved else _FLAT
  chips, odd = divmod(size, 2) if halved else (size, 0)
  if odd or chips not in shapes:
    sizes = ", ".join(f"{kind}-{n * (1 + halved)}" for n in shapes)
    counts = " (it counts cores, two a chip)" if halved else ""
    raise UserError(f"--target {text}: {kind} slices{counts} are {sizes}.")
  return Target(f"{kind}-{size}", kind, TPUS[kind], chips, shapes[chips])


def larger(than: Target) -> list[Target]:
  """The next four sizes of the same kind."""
  kind, devices = than.kind, than.devices
  if kind in TPUS:
    halved = kind in _BY_CORES
    more = [chips for chips in (_CUBIC if halved else _FLAT) if chips > devices]
    return [_slice("", kind, chips * (1 + halved)) for chips in more[:4]]
  sizes = (2, 4, 8, 16, 32, 64, 128) if kind in GPUS else ()
  more = [size for size in sizes if size > devices]
  return [target(f"{kind} x{size}") for size in more[:4]]


def _this_cpu(devices: int) -> Chip:
  """This machine's memory and cores, shared by simulated devices.

  The speed is a guess: 3 GHz, 32 float32 operations a cycle and core (AVX2),
  20 GB/s. bfloat16 is not faster.
  """
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices
  peak = (os.cpu_count() or 1) * 3e9 * 32 / devices
  speed = 20e9 / devices
  return Chip(
    "cpu", memory, peak, peak, speed, speed, speed, reserve=GIB // devices
  )


def description(chip: Chip) -> str:
  """XLA's description of a GPU that is not here: a GpuTargetConfigProto."""
  name, major, minor, cores, fpus, clock, l2, shared, threads = chip.kernel
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared << 10}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {l2 << 20}
  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {(shared << 10) - (1024 if major > 7 else 0)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
