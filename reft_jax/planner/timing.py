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
  parameters: tuple[int, int],
) -> dict[str, Any]:
  """The least seconds of a step's phases, of a step and of an epoch.

  The bytes that collectives send are the compiler's where it has compiled all
  programs of a phase. `parameters` are the numbers of all parameters and of the
  trainable ones.
  """
  config = subject.config
  phases = {}
  for phase, formula in work(subject, target, parameters).items():
    done = formula
    some = [m for m in measured if m.phase == phase]
    if some and all(m.traffic is not None for m in some):
      traffic = [(m.times, t) for m in some for t in m.traffic or ()]
      done = dataclasses.replace(
        done,
        near=sum(often * t.near for often, t in traffic),
        far=sum(often * t.far for often, t in traffic),
      )
    took = roofline.seconds(done, target, config.model.compute_dtype)
    bound = max(took, key=lambda resource: took[resource])
    phases[phase] = {
      **dataclasses.asdict(done),
      **{f"{resource}_s": seconds for resource, seconds in took.items()},
      "seconds": took[bound],
      "bound": bound,
    }
  steps: dict[str, tuple[str, ...]] = {
    name: parts for name, parts in STEP_PHASES.items() if name in config.stages
  }
  if subject.supervised:
    steps[subject.supervised] = ("supervised",)
  found: dict[str, Any] = {"phases": phases}
  for name, parts in steps.items():
    stage = getattr(config, name)
    step = sum(phases[part]["seconds"] for part in parts)
    epoch = whole = None
    if subject.problems is not None:
      problems = stage.batch_size // getattr(stage, "samples_per_question", 1)
      epoch = step * -(-subject.problems // problems)
      whole = epoch * stage.epochs
    if limit := getattr(stage, "steps", None):
      whole = step * limit
    found[name] = {"step": step, "epoch": epoch, "all": whole}
  return found


def work(
  subject: subjects.Subject,
  target: hardware.Target,
  parameters: tuple[int, int],
) -> dict[str, roofline.Work]:
  """The work of one device in each phase of one step, by formula."""
  config = subject.config
  P, T, S = subject.prompt_slots, subject.response_slots, subject.row_slots
  gather = measuring.laid_out(subject, target).gather
  mesh, sampling_mesh = measuring.meshes(subject, target, compiled=False)

  def sizes(mesh: Any) -> tuple[roofline.Model, roofline.Layout]:
    tensor = mesh.shape["tensor"]
    model = roofline.Model.of(
      subject.shape,
      *parameters,
      compute_dtype=config.model.compute_dtype,
      remat=config.model.remat,
      tensor=tensor,
      unsplit=unsplit_letters(subject.shape, tensor),
    )
    return model, roofline.Layout(**mesh.shape, node=target.chip.node)

  model, layout = sizes(mesh)
  sampling = sizes(sampling_mesh)

  def rows(batch: int, micro: int, **slots: int) -> roofline.Rows:
    micro, padded = batches.micro_batches(batch, micro, layout.num_shards)
    return roofline.Rows(padded, micro, **slots)

  def sample(stage: schema.RolloutsConfig) -> roofline.Work:
    """Publishing the policy and sampling a step's rollouts."""
    samples = stage.samples_per_question
    questions = mesh_lib.pad_to_shards(
      sampling_mesh, stage.batch_size // samples, samples
    )
    # All T slots: some row of a batch nearly always reaches the last one.
    return (
      roofline.publish(model, layout)
      + roofline.prefill(*sampling, questions, P)
      + roofline.decode(*sampling, questions * samples, P + T) * T
    )

  found = {}
  if subject.supervised:
    stage = getattr(config, subject.supervised)
    batch = rows(stage.batch_size, stage.micro_batch, slots=S, predicted=S - 1)
    found["supervised"] = roofline.learn(model, layout, batch, gather)
  if "online_st" in config.stages:
    online = config.online_st
    batch = rows(
      online.minibatch, online.micro_batch, slots=P + T, predicted=P + T - 1
    )
    if online.gold_share:  # The annotations beside the correct samples.
      batch = dataclasses.replace(batch, number=2 * batch.number)
    updates = online.passes * (online.batch_size // online.minibatch)
    found["online sample"] = sample(online)
    found["online update"] = (
      roofline.learn(model, layout, batch, gather) * updates
    )
  if "reft" in config.stages:
    reft = config.reft
    # A critic with its own trunk is one more model in each pass.
    own_trunk = reft.has_critic and config.model.value == "separate"
    updates = reft.ppo_epochs * (reft.batch_size // reft.minibatch)
    scored, learnt = (
      rows(size, reft.micro_batch, slots=P + T, predicted=T)
      for size in (reft.batch_size, reft.minibatch)
    )
    found["sample"] = sample(reft)
    found["score"] = roofline.read(model, layout, scored) * (2 + own_trunk)
    found["update"] = roofline.learn(model, layout, learnt, gather) * (
      updates * (1 + own_trunk)
    )
  return found


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
