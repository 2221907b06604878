"""The least time of a run's phases, steps and epochs, from its settings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reft_jax.config import schema
from reft_jax.data import batches
from reft_jax.models import config as configs
from reft_jax.models import partition
from reft_jax.planner import hardware, measuring, roofline
from reft_jax.planner import subject as subjects
from reft_jax.runtime import mesh as mesh_lib

# The phases of a step, by the stage that samples as it learns.
STEP_PHASES = {
  "online_st": ("online sample", "online update"),
  "reft": ("sample", "score", "update"),
}


def times(
  subject: subjects.Subject,
  target: hardware.Target,
  measured: Sequence[measuring.Measured],
  *,
  total: int,
  trainable: int,
) -> dict[str, Any]:
  """The least seconds of a step's phases, of a step and of an epoch.

  The bytes that collectives send are the compiler's where it has compiled all
  programs of a phase.
  """
  config = subject.config
  formulas = work(subject, target, total=total, trainable=trainable)
  phases = {}
  for phase, formula in formulas.items():
    done = formula
    some = [m for m in measured if m.phase == phase]
    if some and all(m.traffic is not None for m in some):
      traffic = [(m.times, t) for m in some for t in m.traffic or ()]
      done = dataclasses.replace(
        done,
        near=sum(often * t.near for often, t in traffic),
        far=sum(often * t.far for often, t in traffic),
      )
    took = roofline.time(done, target, config.model.compute_dtype)
    phases[phase] = {
      **dataclasses.asdict(done),
      "compute_s": took.compute,
      "memory_s": took.memory,
      "network_s": took.network,
      "seconds": took.seconds,
      "bound": took.bound,
    }
  found: dict[str, Any] = {"phases": phases}
  for name, parts in STEP_PHASES.items():
    if name in config.stages:
      stage = getattr(config, name)
      step = sum(phases[part]["seconds"] for part in parts)
      questions = stage.batch_size // stage.samples_per_question
      found[name] = _stage_times(stage, step, subject.problems, questions)
  if subject.supervised:
    stage = getattr(config, subject.supervised)
    step = phases["supervised"]["seconds"]
    found[subject.supervised] = _stage_times(
      stage, step, subject.problems, stage.batch_size
    )
  return found


def _stage_times(
  stage: Any, step: float, problems: int | None, batch: int
) -> dict[str, float | None]:
  """Seconds of a step, of an epoch and of the stage, as far as known."""
  epoch = whole = None
  if problems is not None:
    epoch = step * -(-problems // batch)
    whole = epoch * stage.epochs
  if steps := getattr(stage, "steps", None):
    whole = step * steps
  return {"step": step, "epoch": epoch, "all": whole}


def work(
  subject: subjects.Subject,
  target: hardware.Target,
  *,
  total: int,
  trainable: int,
) -> dict[str, roofline.Work]:
  """The work of one device in each phase of one step, by formula."""
  config = subject.config
  formulas = _Formulas(subject, target, total=total, trainable=trainable)
  P, T, S = subject.prompt_slots, subject.response_slots, subject.row_slots
  found = {}
  if subject.supervised:
    stage = getattr(config, subject.supervised)
    found["supervised"] = formulas.learn(
      stage.batch_size, stage.micro_batch, slots=S, predicted=S - 1
    )
  if subject.online:
    online = config.online_st
    found["online sample"] = formulas.sample(online)
    found["online update"] = formulas.learn(
      online.minibatch,
      online.micro_batch,
      slots=P + T,
      predicted=P + T - 1,
      # The correct samples and, with a share of the loss, the annotations.
      parts=2 if online.gold_share else 1,
    ) * (online.passes * (online.batch_size // online.minibatch))
  if subject.reinforced:
    reft = config.reft
    # A critic with its own trunk is one more model in each pass.
    own_trunk = reft.has_critic and config.model.value == "separate"
    updates = reft.ppo_epochs * (reft.batch_size // reft.minibatch)
    found["sample"] = formulas.sample(reft)
    found["score"] = formulas.read(
      reft.batch_size, reft.micro_batch, slots=P + T, predicted=T
    ) * (2 + own_trunk)
    found["update"] = formulas.learn(
      reft.minibatch, reft.micro_batch, slots=P + T, predicted=T
    ) * (updates * (1 + own_trunk))
  return found


class _Formulas:
  """The formulas of roofline, for a run's model on a target's meshes."""

  def __init__(
    self,
    subject: subjects.Subject,
    target: hardware.Target,
    *,
    total: int,
    trainable: int,
  ):
    self._subject = subject
    self._gather = measuring.laid_out(subject, target).gather
    meshes: tuple[Any, Any] = measuring.abstract_meshes(subject, target)
    self._sampling_mesh = meshes[1]
    (
      (self._layout, self._model),
      (
        self._sampling_layout,
        self._sampling_model,
      ),
    ) = (
      (
        roofline.Layout(**mesh.shape, node=target.chip.node),
        roofline.Model.of(
          subject.shape,
          total=total,
          trainable=trainable,
          compute_dtype=subject.config.model.compute_dtype,
          remat=subject.config.model.remat,
          tensor=mesh.shape["tensor"],
          unsplit=unsplit_letters(subject.shape, mesh.shape["tensor"]),
        ),
      )
      for mesh in meshes
    )

  def sample(self, stage: schema.RolloutsConfig) -> roofline.Work:
    """Publishing the policy and sampling a step's rollouts."""
    P, T = self._subject.prompt_slots, self._subject.response_slots
    samples = stage.samples_per_question
    questions = mesh_lib.pad_to_shards(
      self._sampling_mesh, stage.batch_size // samples, samples
    )
    model, layout = self._sampling_model, self._sampling_layout
    # All T slots: some row of a batch nearly always reaches the last one.
    return (
      roofline.publish(self._model, self._layout)
      + roofline.prefill(model, layout, questions, P)
      + roofline.decode(model, layout, questions * samples, P + T) * T
    )

  def read(
    self, batch: int, micro_batch: int, *, slots: int, predicted: int
  ) -> roofline.Work:
    """One forward of a batch."""
    micro, rows = self._padded(batch, micro_batch)
    return roofline.read(
      self._model,
      self._layout,
      rows=rows,
      micro=micro,
      slots=slots,
      predicted=predicted,
    )

  def learn(
    self,
    batch: int,
    micro_batch: int,
    *,
    slots: int,
    predicted: int,
    parts: int = 1,
  ) -> roofline.Work:
    """One optimizer update, whose loss is that of `parts` batches."""
    micro, rows = self._padded(batch, micro_batch)
    return roofline.learn(
      self._model,
      self._layout,
      rows=parts * rows,
      micro=micro,
      slots=slots,
      predicted=predicted,
      gather=self._gather,
    )

  def _padded(self, batch: int, micro_batch: int) -> tuple[int, int]:
    return batches.micro_batches(batch, micro_batch, self._layout.num_shards)


def unsplit_letters(shape: configs.ModelConfig, tensor: int) -> set[str]:
  """Which of the letters N, K, F and V a tensor axis does not split.

  Those that models.partition replicates in the weights that have them.
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
