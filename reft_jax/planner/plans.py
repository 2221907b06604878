"""One target's plan: memory by phase, time by phase, and what would fit."""

import contextlib
import dataclasses
import logging
import logging.handlers
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reft_jax.data import batches
from reft_jax.errors import UserError
from reft_jax.models import config as configs
from reft_jax.models import partition
from reft_jax.planner import advice, hardware, measuring, programs, roofline
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib

# The phases of a step, by the stage that samples as it learns.
_STEPS = {
  "online_st": ("online sample", "online update"),
  "reft": ("sample", "score", "update"),
}
PHASES = ("supervised", *_STEPS["online_st"], *_STEPS["reft"], "evaluate")


def make(
  subject: subjects.Subject,
  target: hardware.Target,
  *,
  compiled: bool,
  search: bool,
) -> dict[str, Any]:
  """A plan as JSON knows it; sizes are bytes of one device, times seconds.

  Args:
    subject: what is planned.
    target: for which hardware.
    compiled: whether programs are compiled; if not it is arithmetic alone.
    search: whether a change is looked for where it does not fit.

  Raises:
    UserError: the mesh or a batch does not fit the target's devices.
  """
  with _warnings() as warnings:
    measured = measure(subject, target, PHASES if compiled else ())
  phases = by_phase(measured)
  if not phases:
    raise UserError(
      f"stages={list(subject.config.stages)}: none of them is planned; plans"
      " are of supervised stages, online_st and reft."
    )
  worst = max(phases.values(), key=lambda m: m.total)
  over = {name for name, m in phases.items() if too_large(m, target)}
  laid_out = measuring.laid_out(subject, target)
  total, learnt = parameters(subject, target)
  return {
    "target": target.name,
    "devices": target.devices,
    "mesh": {axis: getattr(laid_out, axis) for axis in layout.AXES},
    "gather": laid_out.gather,
    "sampler_tensor": laid_out.sampler_tensor,
    "compiled": compiled,
    "unplanned": subject.unplanned,
    "warnings": warnings,
    "parameters": total,
    "learnt": learnt,
    "memory": {
      "capacity": target.chip.memory,
      "usable": target.usable,
      "peak": worst.total,
      "phase": worst.phase,
      "fits": not over,
      "phases": {
        name: {
          "program": m.name,
          **m.kinds,
          "rest": m.rest,
          "total": m.total,
          "fits": name not in over,
        }
        for name, m in phases.items()
      },
    },
    "programs": [dataclasses.asdict(m) | {"total": m.total} for m in measured],
    "time": times(subject, target, measured, total=total, learnt=learnt),
    "advice": searched(subject, target, over, worst.total if compiled else None)
    if over and search
    else None,
  }


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
  """What models.partition warns of meanwhile, filled in at the end."""
  logger = logging.getLogger(partition.__name__)
  handler = logging.handlers.BufferingHandler(capacity=1000)
  found: list[str] = []
  logger.addHandler(handler)
  try:
    yield found
  finally:
    logger.removeHandler(handler)
    found += [record.getMessage() for record in handler.buffer]


def measure(
  subject: subjects.Subject,
  target: hardware.Target,
  phases: Collection[str],
  limit: int | None = None,
) -> list[measuring.Measured]:
  """Every program of the run; those of `phases` are compiled.

  Raises:
    TooLargeError: one of them needs more than `limit` bytes.
    UserError: as `make`.
  """
  open_ = measuring.open_meshes if phases else measuring.abstract_meshes
  meshes = open_(subject, target)
  gather = measuring.laid_out(subject, target).gather
  recorder = measuring.Recorder(target, phases=phases, limit=limit)
  programs.all_of(programs.Shapes(subject, *meshes, gather), recorder)
  return recorder.measured


def by_phase(
  measured: Sequence[measuring.Measured],
) -> dict[str, measuring.Measured]:
  """The program of each phase that needs the most memory."""
  found = {}
  for phase in PHASES:
    some = [m for m in measured if m.phase == phase]
    if some:
      found[phase] = max(some, key=lambda m: m.total)
  return found


def too_large(m: measuring.Measured, target: hardware.Target) -> bool:
  """Whether a program does not fit."""
  return m.total > target.usable or not m.fits_alone


def parameters(
  subject: subjects.Subject, target: hardware.Target
) -> tuple[int, int]:
  """Numbers in the policy, and those of them that are learnt."""
  mesh, _ = measuring.abstract_meshes(subject, target)
  shapes = programs.Shapes(subject, mesh)
  learner = shapes.learner(optax.identity(), critic=False)
  learnt = programs.count(learner.state.params)
  return programs.count(learner.policy), learnt


# Time ------------------------------------------------------------------------


def times(
  subject: subjects.Subject,
  target: hardware.Target,
  measured: Sequence[measuring.Measured],
  *,
  total: int,
  learnt: int,
) -> dict[str, Any]:
  """The roofline of a step's phases, of a step and of an epoch, in seconds.

  What collectives send is the compiler's where it is known.
  """
  config = subject.config
  dtype = config.model.compute_dtype
  works = work(subject, target, total=total, learnt=learnt)
  phases = {}
  for phase, formula in works.items():
    some = [m for m in measured if m.phase == phase]
    done = formula
    if some and all(m.traffic is not None for m in some):
      done = dataclasses.replace(
        formula,
        near=sum(m.times * t.near for m in some for t in m.traffic),
        far=sum(m.times * t.far for m in some for t in m.traffic),
      )
    took = roofline.time(done, target, dtype)
    phases[phase] = {
      **dataclasses.asdict(done),
      "compute_s": took.compute,
      "memory_s": took.memory,
      "network_s": took.network,
      "seconds": took.seconds,
      "bound": took.bound,
    }
  found: dict[str, Any] = {"phases": phases}
  for name, parts in _STEPS.items():
    if name in config.stages:
      stage = getattr(config, name)
      step = sum(phases[part]["seconds"] for part in parts)
      questions = stage.batch_size // stage.samples_per_question
      found[name] = _stage(stage, step, subject.problems, questions)
  if subject.supervised:
    stage = getattr(config, subject.supervised)
    step = phases["supervised"]["seconds"]
    found[subject.supervised] = _stage(
      stage, step, subject.problems, stage.batch_size
    )
  return found


def _stage(stage, step, problems, batch) -> dict[str, Any]:
  """Seconds of a step, an epoch and all of a stage, as far as known."""
  found = {"step": step, "epoch": None, "all": None}
  steps = getattr(stage, "steps", None)
  if problems is not None:
    found["epoch"] = step * -(-problems // batch)
    found["all"] = found["epoch"] * stage.epochs
  if steps:
    found["all"] = step * steps
  return found


def work(
  subject: subjects.Subject,
  target: hardware.Target,
  *,
  total: int,
  learnt: int,
) -> dict[str, roofline.Work]:
  """What one device does in each phase of one step, by formula."""
  config = subject.config
  meshes = measuring.abstract_meshes(subject, target)
  learning, sampling = (
    roofline.Layout(**mesh.shape, node=target.chip.node) for mesh in meshes
  )
  model, sampling_model = (
    roofline.Model.of(
      subject.shape,
      total=total,
      learnt=learnt,
      compute_dtype=config.model.compute_dtype,
      remat=config.model.remat,
      tensor=each.tensor,
      whole=whole(subject.shape, each.tensor),
    )
    for each in (learning, sampling)
  )
  P, T, S = subject.prompt_slots, subject.response_slots, subject.row_slots
  gather = measuring.laid_out(subject, target).gather

  def rows(of: int, micro: int) -> dict[str, int]:
    micro, filled = batches.micro_batches(of, micro, learning.ways)
    return {"rows": filled, "micro": micro}

  def sample(stage) -> roofline.Work:
    samples = stage.samples_per_question
    questions = mesh_lib.pad_to_shards(
      meshes[1], stage.batch_size // samples, samples
    )
    # As long as the longest answer may be: some row nearly always is.
    return (
      roofline.publish(model, learning)
      + roofline.prefill(sampling_model, sampling, questions, P)
      + roofline.decode(sampling_model, sampling, questions * samples, P + T)
      * T
    )

  found = {}
  if subject.supervised:
    stage = getattr(config, subject.supervised)
    found["supervised"] = roofline.learn(
      model,
      learning,
      slots=S,
      predicted=S - 1,
      gather=gather,
      **rows(stage.batch_size, stage.micro_batch_size or stage.batch_size),
    )
  if subject.online:
    stage = config.online_st
    minibatch = stage.minibatch_size or stage.batch_size
    parts = 2 if stage.gold_share else 1
    shared = rows(minibatch, stage.micro_batch_size or minibatch)
    found["online sample"] = sample(stage)
    found["online update"] = roofline.learn(
      model,
      learning,
      slots=P + T,
      predicted=P + T - 1,
      gather=gather,
      rows=parts * shared["rows"],
      micro=shared["micro"],
    ) * (stage.passes * (stage.batch_size // minibatch))
  if subject.reinforced:
    stage = config.reft
    own_trunk = stage.has_critic and config.model.value == "separate"
    found["sample"] = sample(stage)
    slots = {"slots": P + T, "predicted": T}
    found["score"] = roofline.read(
      model,
      learning,
      **slots,
      **rows(stage.batch_size, stage.micro_batch),
    ) * (2 + own_trunk)
    updates = stage.ppo_epochs * (stage.batch_size // stage.minibatch)
    found["update"] = roofline.learn(
      model,
      learning,
      gather=gather,
      **slots,
      **rows(stage.minibatch, stage.micro_batch),
    ) * (updates * (1 + own_trunk))
  return found


def whole(shape: configs.ModelConfig, tensor: int) -> set[str]:
  """Which of the letters N, K, F and V a tensor axis of some size leaves whole.

  Those that models.partition does not split in the weights that have them.
  """
  names = ("q_DNH", "k_DKH", "down_FD", shape.embed_name)
  weights = {
    name: jax.ShapeDtypeStruct(shape.shape(name), jnp.float32) for name in names
  }
  split = {
    letter
    for name, spec in partition.specs(weights, {"tensor": tensor}).items()
    for letter, axis in zip(configs.letters(name), spec, strict=False)
    if axis
  }
  return set("NKFV") - split


# Advice ----------------------------------------------------------------------


def searched(
  subject: subjects.Subject,
  target: hardware.Target,
  over: Collection[str],
  peak: int | None,
) -> dict[str, Any]:
  """The smallest changes that make it fit.

  Args:
    subject: what is planned.
    target: for which hardware.
    over: the phases that do not fit.
    peak: what the fullest needs as it is; None where nothing is compiled
      and what fits by arithmetic is not either.

  Returns:
    `settings` that fit, `lora`, settings with adapters that do (looked for
    where others do not help), and `target`, a larger one of the same kind
    that fits without changes; None for what there is not.
  """
  phases = over if peak else ()

  def needs(settings: Mapping[str, Any]) -> float:
    return _needs(subject.changed(dict(settings)), target, phases)

  laid_out = measuring.laid_out(subject, target)
  knobs = advice.knobs(subject, target, laid_out, over)
  settings = advice.smallest(knobs, needs, target.usable, peak or math.inf)
  adapted = larger = None
  if settings is None:
    lora = advice.lora(subject)
    if lora:
      adapted = advice.smallest([*lora, *knobs], needs, target.usable)
    larger = _first(
      advice.larger(target),
      lambda other: _needs(subject, other, phases) <= other.usable,
    )
  return {
    "settings": settings,
    "lora": adapted,
    "target": larger and larger.name,
  }


def _first(some: Sequence[Any], holds: Callable[[Any], bool]) -> Any:
  return next((each for each in some if holds(each)), None)


def _needs(subject, target, phases) -> float:
  """Bytes that the fullest phase needs.

  Those of `phases` are compiled, and where they fit all are. inf where
  arithmetic alone refuses, or a batch does not divide.
  """
  try:
    found = measure(subject, target, (), limit=target.usable)
    for compiled in (phases, PHASES) if phases else ():
      found = measure(subject, target, compiled)
      if any(too_large(m, target) for m in found):
        break
  except (measuring.TooLargeError, UserError):
    return math.inf
  return max(m.total for m in found)
