"""One target's plan: memory by phase, time by phase, and settings that fit."""

import contextlib
import dataclasses
import logging
import logging.handlers
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import optax

from reft_jax.errors import UserError
from reft_jax.models import partition
from reft_jax.planner import advice, hardware, measuring, timing
from reft_jax.planner import shapes as shapes_lib
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout

PHASES = (
  "supervised",
  *timing.STEP_PHASES["online_st"],
  *timing.STEP_PHASES["reft"],
  "evaluate",
)


def make(
  subject: subjects.Subject,
  target: hardware.Target,
  *,
  compiled: bool,
  search: bool,
) -> dict[str, Any]:
  """A plan as JSON; sizes are bytes of one device, times are seconds.

  Args:
    subject: what is planned.
    target: the hardware.
    compiled: whether programs are compiled, or counted by arithmetic alone.
    search: whether to search for settings that fit, if these do not.

  Raises:
    UserError: the mesh or a batch does not fit the target's devices.
  """
  with _warnings() as warnings:
    measured = measuring.measure(subject, target, PHASES if compiled else ())
  # The program of each phase that needs the most memory.
  phases = {
    phase: max(some, key=lambda m: m.total)
    for phase in PHASES
    if (some := [m for m in measured if m.phase == phase])
  }
  if not phases:
    raise UserError(
      f"stages={list(subject.config.stages)}: none of them is planned; plans"
      " are of supervised stages, online_st and reft."
    )
  laid_out = measuring.laid_out(subject, target)
  numbers = parameters(subject, target)
  memory = _memory(phases, target)
  over = {name for name, x in memory["phases"].items() if not x["fits"]}
  advised = None
  if over and search:
    peak = memory["peak"] if compiled else None
    advised = searched(subject, target, over, peak)
  return {
    "target": target.name,
    "devices": target.devices,
    "mesh": {axis: getattr(laid_out, axis) for axis in layout.AXES},
    "gather": laid_out.gather,
    "sampler_tensor": laid_out.sampler_tensor,
    "compiled": compiled,
    "unplanned": subject.unplanned,
    "warnings": warnings,
    "parameters": numbers[0],
    "learnt": numbers[1],
    "memory": memory,
    "programs": [dataclasses.asdict(m) | {"total": m.total} for m in measured],
    "time": timing.times(subject, target, measured, numbers),
    "advice": advised,
  }


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
  """Collects the warnings of models.partition; complete at the end."""
  logger = logging.getLogger(partition.__name__)
  handler = logging.handlers.BufferingHandler(capacity=1000)
  found: list[str] = []
  logger.addHandler(handler)
  try:
    yield found
  finally:
    logger.removeHandler(handler)
    found += [record.getMessage() for record in handler.buffer]


def _memory(
  phases: Mapping[str, measuring.Measured], target: hardware.Target
) -> dict[str, Any]:
  worst = max(phases.values(), key=lambda m: m.total)
  return {
    "capacity": target.chip.memory,
    "usable": target.usable,
    "peak": worst.total,
    "phase": worst.phase,
    "fits": all(m.fits(target) for m in phases.values()),
    "phases": {
      name: {
        "program": m.name,
        **m.kinds,
        "rest": m.rest,
        "total": m.total,
        "fits": m.fits(target),
      }
      for name, m in phases.items()
    },
  }


def parameters(
  subject: subjects.Subject, target: hardware.Target
) -> tuple[int, int]:
  """The number of the policy's parameters, and of the trainable ones."""
  mesh, _ = measuring.meshes(subject, target, compiled=False)
  arrays = shapes_lib.Shapes(subject, mesh).stage_arrays(optax.identity())
  trainable = shapes_lib.count(arrays.state.params)
  return shapes_lib.count(arrays.policy), trainable


def searched(
  subject: subjects.Subject,
  target: hardware.Target,
  over: Collection[str],
  peak: int | None,
) -> dict[str, Any]:
  """The smallest changes that make the phases `over` fit.

  `peak` is the memory of the largest phase; None if nothing is compiled, and so
  what fits is decided by arithmetic too.

  Returns:
    `settings` that fit; where there are none, `lora`, settings with adapters
    that fit, and `target`, a larger one of the same kind that fits without
    changes. None for each that is not found.
  """
  phases = over if peak else ()

  def needs(settings: Mapping[str, Any]) -> float:
    return _needs(subject.changed(settings), target, phases)

  laid_out = measuring.laid_out(subject, target)
  knobs = advice.knobs(subject, target, laid_out, over)
  settings = advice.smallest(knobs, needs, target.usable, peak or math.inf)
  adapted = larger = None
  if settings is None:
    if not subject.config.lora.rank:
      adapted = advice.smallest({**advice.LORA, **knobs}, needs, target.usable)
    for other in hardware.larger(target):
      if _needs(subject, other, phases) <= other.usable:
        larger = other.name
        break
  return {"settings": settings, "lora": adapted, "target": larger}


def _needs(
  subject: subjects.Subject, target: hardware.Target, phases: Collection[str]
) -> float:
  """Bytes that the largest phase needs.

  The phases in `phases` are compiled, and if these fit, all are. inf where
  arithmetic alone shows that it does not fit, or a batch does not divide.
  """
  try:
    found = measuring.measure(subject, target, (), limit=target.usable)
    for compiled in (phases, PHASES) if phases else ():
      found = measuring.measure(subject, target, compiled)
      if not all(m.fits(target) for m in found):
        break
  except (measuring.TooLargeError, UserError):
    return math.inf
  return max(m.total for m in found)
