"""Programs compiled for a target, and what the compiler says of them."""

import dataclasses
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from reft_jax.planner import hardware, hlo, programs
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib

KINDS = ("weights", "optimizer", "reference", "published", "cache")

# What a program needs that a TPU's compiler refuses: all of it, or temporaries.
_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
  """What is known of a program. Bytes are those of one device.

  Attributes:
    name: the program's.
    phase: its part of a step.
    times: how often a step runs it.
    kinds: what is on the device meanwhile and stays, by KINDS.
    rest: what else it needs: temporaries, batches, results; without a compiler
      the gradients alone, so far as there are any.
    traffic: its collectives in one run; None: not known.
    seconds: that compiling it took.
    fits_alone: False where the compiler refused it for its memory.
  """

  name: str
  phase: str
  times: float
  kinds: Mapping[str, int]
  rest: int
  traffic: list[hlo.Traffic] | None = None
  seconds: float = 0.0
  fits_alone: bool = True

  @property
  def total(self) -> int:
    """Bytes on the device while it runs."""
    return sum(self.kinds.values()) + self.rest


def open_meshes(
  subject: subjects.Subject, target: hardware.Target
) -> tuple[Mesh, Mesh]:
  """The run's meshes over a target's devices, which need not be here."""
  match target.chip.platform:
    case "cpu":
      found = jax.devices()[: target.devices]
    case "cuda":
      found = topologies.get_topology_desc(
        platform="cuda",
        target_config=hardware.description(target.chip),
        topology=target.topology,
      ).devices
    case "tpu":
      single = target.devices == 1  # A host has more chips than this slice.
      bounds = {"chips_per_host_bounds": [1, 1, 1]} if single else {}
      found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{target.kind}:{target.topology}",
        **bounds,
      ).devices
  return mesh_lib.make_meshes(laid_out(subject, target), found)


def abstract_meshes(
  subject: subjects.Subject, target: hardware.Target
) -> tuple[AbstractMesh, AbstractMesh]:
  """Their axes alone, for arithmetic."""
  chosen = laid_out(subject, target)
  kinds = (AxisType.Auto,) * len(layout.AXES)
  return tuple(
    AbstractMesh(sizes, layout.AXES, axis_types=kinds)
    for sizes in (chosen.learner, chosen.sampler)
  )


def laid_out(
  subject: subjects.Subject, target: hardware.Target
) -> layout.Layout:
  """How the run would be laid out on a target.

  Raises:
    UserError: what is wanted does not use all of its devices.
  """
  chip, memory = target.chip, None
  if chip.platform != "cpu":
    memory = chip.memory
    if chip.platform == "cuda":
      memory *= hardware.GPU_FRACTION
  return layout.choose(
    subject.config.mesh,
    subject.shape,
    parameters=subject.parameters,
    compute_dtype=subject.config.model.compute_dtype,
    devices=layout.Devices(
      target.devices, min(chip.node or target.devices, target.devices), memory
    ),
  )


class Recorder:
  """Takes programs (programs.Handle): compiles them, or counts by arithmetic.

  Args:
    target: the hardware.
    phases: the phases whose programs are compiled; none on abstract meshes.
    limit: bytes of a device; a program above it ends the recording with
      TooLargeError. None: all are recorded.

  Attributes:
    measured: what is known of each program.
  """

  def __init__(
    self,
    target: hardware.Target,
    *,
    phases: Collection[str],
    limit: int | None = None,
  ):
    self.measured: list[Measured] = []
    self._target = target
    self._phases = phases
    self._limit = limit

  def __call__(self, program: programs.Program) -> Any:
    """Records a program; returns the shapes of what it makes."""
    counted, outputs = count(program)
    self._check(counted)
    if program.phase in self._phases:
      counted, outputs = self._compiled(program, counted, outputs)
      self._check(counted)
    self.measured.append(counted)
    return outputs

  def _check(self, measured: Measured) -> None:
    if self._limit is not None and measured.total > self._limit:
      raise TooLargeError(measured.name)

  def _compiled(self, program, counted, guessed) -> tuple[Measured, Any]:
    begin = time.monotonic()
    platform = self._target.chip.platform
    with jax.set_mesh(program.mesh):
      traced = program.function.trace(*program.arguments, **program.keywords)
      lowered = traced.lower(lowering_platforms=(platform,))
    given = programs.device_bytes((program.arguments, program.keywords))
    outside = programs.device_bytes(
      program.alive, but=(program.arguments, program.keywords)
    )
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
    # A compiler pads what it is given, and leaves out what it does not use.
    given = max(memory.argument_size_in_bytes, given)
    total = (
      outside
      + given
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
    )
    outputs = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      lowered.out_info,
      compiled.output_shardings,
    )
    kinds = dict(counted.kinds)
    if program.makes:
      kinds[program.makes] = programs.device_bytes(outputs)
    found = hlo.collectives(
      hlo.parse(compiled.as_text()), open_loop=program.open_loop
    )
    measured = dataclasses.replace(
      counted,
      kinds=kinds,
      rest=total - sum(kinds.values()),
      traffic=hlo.by_kind(found, self._target.chip.node),
      seconds=time.monotonic() - begin,
    )
    return measured, outputs


def refused(message: str, given: int) -> int | None:
  """Bytes that a program needs which was refused for its memory.

  Args:
    message: the compiler's.
    given: bytes of its arguments.

  Returns:
    As much as the message tells, at least `given`; None if it was refused for
    another reason.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  if found := _NEEDED.search(message):
    return int(float(found[1]) * _UNITS[found[2]])
  if found := _TEMPORARIES.search(message):
    return given + int(float(found[1]) * _UNITS[found[2]])
  return given


class TooLargeError(Exception):
  """A program needs more memory than it may."""


def count(program: programs.Program) -> tuple[Measured, Any]:
  """What arithmetic alone says: what stays, and gradients."""
  seen: list[Any] = []
  kinds = {}
  for kind, tree in program.alive.items():
    kinds[kind] = programs.device_bytes(tree, but=seen)
    seen.append(tree)
  outputs = None
  if program.makes:
    made = jax.eval_shape(
      program.function, *program.arguments, **program.keywords
    )
    outputs = program.guess(made)
    kinds[program.makes] = programs.device_bytes(outputs)
  gradients = 0
  if program.phase in ("supervised", "online update", "update"):
    gradients = programs.device_bytes(program.arguments[0].params)
  return (
    Measured(
      name=program.name,
      phase=program.phase,
      times=program.times,
      kinds=kinds,
      rest=gradients,
    ),
    outputs,
  )
