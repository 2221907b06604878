"""Programs compiled for a target: their memory and their collectives."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType

from reft_jax.planner import hardware, hlo, programs, shapes
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib

KINDS = ("weights", "optimizer", "reference", "published", "cache")

# The memory of a program that a TPU's compiler refuses: all, or temporaries.
_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
  """The memory and collectives of a program. Bytes are those of one device."""

  name: str
  phase: str  # The part of a step that it belongs to.
  times: float  # How often a step runs it.
  kinds: Mapping[str, int]  # Bytes of the resident arrays, by KINDS.
  # Bytes of temporaries, batches and results; without a compiler those of the
  # gradients alone, if there are any.
  rest: int
  # The collectives of one run; None if it is not compiled.
  traffic: list[hlo.Traffic] | None = None
  seconds: float = 0.0  # The time of its compilation.
  fits_alone: bool = True  # False if the compiler refused it for its memory.

  @property
  def total(self) -> int:
    """Bytes on the device while it runs."""
    return sum(self.kinds.values()) + self.rest

  def fits(self, target: hardware.Target) -> bool:
    """Whether a target's devices can hold it."""
    return self.fits_alone and self.total <= target.usable


class TooLargeError(Exception):
  """A program needs more memory than the limit."""


def measure(
  subject: subjects.Subject,
  target: hardware.Target,
  phases: Collection[str],
  limit: float = math.inf,
) -> list[Measured]:
  """Measures every program of the run; those of `phases` are compiled.

  Raises:
    TooLargeError: by arithmetic, a program needs more than `limit` bytes.
    UserError: the settings of the mesh do not use all of its devices.
  """
  measured = []

  def handle(program: programs.Program) -> Any:
    counted, outputs = count(program)
    if counted.total > limit:
      raise TooLargeError(program.name)
    if program.phase in phases:
      counted, outputs = _compile(program, counted, outputs, target)
    measured.append(counted)
    return outputs

  mesh, sampling_mesh = meshes(subject, target, compiled=bool(phases))
  gather = laid_out(subject, target).gather
  of_run = shapes.Shapes(subject, mesh, sampling_mesh, gather=gather)
  programs.all_of(of_run, handle)
  return measured


def meshes(
  subject: subjects.Subject, target: hardware.Target, *, compiled: bool
) -> tuple[Any, Any]:
  """The run's meshes to learn and to sample on.

  They have a target's devices, which need not be here, if `compiled`, else
  none.
  """
  chosen, chip = laid_out(subject, target), target.chip
  if not compiled:
    kinds = (AxisType.Auto,) * len(layout.AXES)
    open_mesh = functools.partial(
      AbstractMesh, axis_names=layout.AXES, axis_types=kinds
    )
    return open_mesh(chosen.learner), open_mesh(chosen.sampler)
  if chip.platform == "cpu":
    found = jax.devices()[: target.devices]
  else:
    more: dict[str, Any] = {}
    if chip.platform == "cuda":
      description = hardware.description(chip)
      more = {"target_config": description, "topology": target.topology}
    else:
      more = {"topology_name": f"{target.kind}:{target.topology}"}
      if target.devices == 1:  # A host has more chips than this slice.
        more["chips_per_host_bounds"] = [1, 1, 1]
    found = topologies.get_topology_desc(platform=chip.platform, **more).devices
  return mesh_lib.make_meshes(chosen, found)


def laid_out(
  subject: subjects.Subject, target: hardware.Target
) -> layout.Layout:
  """The layout of the run on a target.

  Raises:
    UserError: the settings of the mesh do not use all of its devices.
  """
  chip, count = target.chip, target.devices
  memory: float | None = chip.memory
  if chip.platform == "cpu":
    memory = None
  elif chip.platform == "cuda":
    memory = chip.memory * hardware.GPU_FRACTION
  return layout.choose(
    subject.config.mesh,
    subject.shape,
    parameters=subject.parameters,
    compute_dtype=subject.config.model.compute_dtype,
    devices=layout.Devices(count, min(chip.node or count, count), memory),
  )


def _compile(
  program: programs.Program,
  counted: Measured,
  guessed: Any,
  target: hardware.Target,
) -> tuple[Measured, Any]:
  """Compiles a program, of which arithmetic has `counted` what it can."""
  begin = time.monotonic()
  with jax.set_mesh(program.mesh):
    traced = program.function.trace(*program.arguments, **program.keywords)
    lowered = traced.lower(lowering_platforms=(target.chip.platform,))
  inputs = (program.arguments, program.keywords)
  given = shapes.device_bytes(inputs)
  outside = shapes.device_bytes(program.resident, but=inputs)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = refused(str(error), given)
    if needed is None:
      raise
    kept = sum(counted.kinds.values())
    counted = dataclasses.replace(
      counted,
      rest=max(outside + needed - kept, counted.rest),
      seconds=time.monotonic() - begin,
      fits_alone=False,
    )
    return counted, guessed
  memory = compiled.memory_analysis()
  total = (
    outside
    # Compilers pad arguments, and leave out unused ones.
    + max(memory.argument_size_in_bytes, given)
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  outputs = jax.tree.map(
    shapes.struct, lowered.out_info, compiled.output_shardings
  )
  kinds = dict(counted.kinds)
  if program.result_kind:
    kinds[program.result_kind] = shapes.device_bytes(outputs)
  module = hlo.parse(compiled.as_text())
  found = hlo.collectives(module, open_loop=program.open_loop)
  measured = dataclasses.replace(
    counted,
    kinds=kinds,
    rest=total - sum(kinds.values()),
    traffic=hlo.by_kind(found, target.chip.node),
    seconds=time.monotonic() - begin,
  )
  return measured, outputs


def refused(message: str, given: int) -> int | None:
  """Bytes that a program needs, by its compiler's message that refuses it.

  They are those `given` as arguments if the message has none; None if the
  reason was not memory.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  if found := _NEEDED.search(message):
    return int(float(found[1]) * _UNITS[found[2]])
  if found := _TEMPORARIES.search(message):
    return given + int(float(found[1]) * _UNITS[found[2]])
  return given


def count(program: programs.Program) -> tuple[Measured, Any]:
  """Counts by arithmetic alone: resident arrays and gradients."""
  seen: list[Any] = []
  kinds = {}
  for kind, tree in program.resident.items():
    kinds[kind] = shapes.device_bytes(tree, but=seen)
    seen.append(tree)
  outputs = None
  if program.guess_shardings:
    result = jax.eval_shape(
      program.function, *program.arguments, **program.keywords
    )
    outputs = program.guess_shardings(result)
    kinds[program.result_kind] = shapes.device_bytes(outputs)
  gradients = 0
  if program.phase in ("supervised", "online update", "update"):
    gradients = shapes.device_bytes(program.arguments[0].params)
  measured = Measured(
    program.name, program.phase, program.times, kinds, gradients
  )
  return measured, outputs
