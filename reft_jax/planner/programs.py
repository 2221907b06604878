"""The compiled programs of a run, built and called on shapes alone.

A program lists the arrays that are on the devices besides its arguments, so
that memory is counted as in the run: while ReFT's policy samples, its masters,
their moments and the reference are there too (algorithms/reft).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reft_jax import types
from reft_jax.algorithms import online_st
from reft_jax.learning import optim, ppo
from reft_jax.learning import supervised as supervised_lib
from reft_jax.models import lora as lora_lib
from reft_jax.planner import shapes as shapes_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import sampler as sampler_lib

# An optimizer's schedule needs the number of steps; its value changes no shape.
_STEPS = 1000
# Which ids end and pad rows changes nothing that is counted.
_EOS, _PAD = (2,), 0


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function of a run."""

  phase: str  # The part of a step that it belongs to.
  name: str
  mesh: Any  # The mesh that is set where it runs.
  function: Any  # The jitted function.
  arguments: tuple[Any, ...]  # Trees of jax.ShapeDtypeStruct with shardings.
  # What is on the devices before, while and after it runs, by kind; the same
  # objects as in `arguments` where these are arguments too.
  resident: Mapping[str, Any]
  times: float = 1  # How often a step runs it.
  # Further arguments.
  keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  result_kind: str = ""  # The kind of its result, if that stays on the devices.
  # Then shards the result's shapes where no compiler does.
  guess_shardings: Callable[[Any], Any] | None = None
  open_loop: int = 1  # How often a loop runs that may stop early.


# Compiles or counts a program, and returns the shapes of its result.
Handle = Callable[[Program], Any]


def all_of(shapes: shapes_lib.Shapes, handle: Handle) -> None:
  """Hands over every program of a run, in the order in which they run."""
  subject = shapes.subject
  stage = None
  if subject.supervised:
    stage = supervised(shapes, handle)
  if "online_st" in subject.config.stages:
    stage = online(shapes, handle)
  if "reft" in subject.config.stages:
    stage = reinforced(shapes, handle)
  if stage:
    stage.evaluate()


class Stage:
  """A stage's arrays on shapes, and the programs that several stages have.

  `handle` takes the programs; `kept` is what the stage keeps on the devices
  besides the weights (`Shapes.stage_arrays`).
  """

  def __init__(
    self, shapes: shapes_lib.Shapes, name: str, handle: Handle, **kept: bool
  ):
    self.settings = getattr(shapes.subject.config, name)
    self.optimizer = optim.build(self.settings.optimizer, _STEPS)
    self.arrays = shapes.stage_arrays(self.optimizer, **kept)
    self._name = name
    self._shapes = shapes
    self._handle = handle
    self._published: Any = None

  def run(
    self, phase: str, name: str, function: Any, *arguments: Any, **more: Any
  ) -> Any:
    """Hands over a program on the learner's mesh; returns its result."""
    usual = {"mesh": self._shapes.mesh, "resident": self.arrays.by_kind}
    return self._handle(
      Program(
        phase, name, function=function, arguments=arguments, **usual | more
      )
    )

  def update(
    self, phase: str, name: str, function: Any, *data: Any, times: int = 1
  ) -> None:
    """Hands over an update of the stage's state."""
    base = {"base": self.arrays.base}
    state = self.arrays.state
    self.run(phase, name, function, state, *data, keywords=base, times=times)

  def imitate(
    self,
    phase: str,
    *batches: types.SupervisedBatch,
    weights: dict[str, float] | None = None,
    times: int = 1,
  ) -> None:
    """Hands over a supervised update of batches, whose losses have weights."""
    function = supervised_lib.make_update(
      self._shapes.networks,
      self.optimizer,
      micro_batch=self.settings.micro_batch,
      logit_chunk=self._shapes.subject.config.model.logit_chunk,
      weights=weights,
    )
    self.update(phase, self._name, function, *batches, times=times)

  def rollouts(self, phase: str) -> None:
    """Publishes the policy and samples a step's rollouts from it."""
    samples = self.settings.samples_per_question
    questions = mesh_lib.pad_to_shards(
      self._shapes.sampling.mesh, self.settings.batch_size // samples, samples
    )
    self._sample(phase, questions, self.settings.temperature, samples)

  def evaluate(self) -> None:
    """Samples answers to dev questions, while the stage's arrays stay."""
    shards = mesh_lib.num_batch_shards(self._shapes.sampling.mesh)
    rows = max(self._shapes.subject.config.evaluation.batch_size, shards)
    self._sample("evaluate", rows // shards * shards, temperature=0.0)

  def _sample(
    self, phase: str, questions: int, temperature: float, samples: int = 1
  ) -> None:
    """Samples one batch; the policy is published unless it already is."""
    shapes, mesh = self._shapes.sampling, self._shapes.sampling.mesh
    if self._published is None:
      self._published = self.run(
        phase,
        "publish",
        jax.jit(shapes.networks.publish),
        self.arrays.policy,
        mesh=mesh,
        result_kind="published",
        guess_shardings=shapes.shard_published,
      )
    sampler = sampler_lib.Sampler(
      self._shapes.networks,
      response_tokens=shapes.subject.response_slots,
      eos_ids=_EOS,
      pad_id=_PAD,
      temperature=temperature,
      samples=samples,
    )
    resident = self.arrays.by_kind | {"published": self._published}
    cache = self.run(
      phase,
      "prefill",
      sampler.prefill,
      *(self._published, shapes.prompts(questions), shapes.key()),
      mesh=mesh,
      resident=resident,
      result_kind="cache",
      guess_shardings=shapes.shard_rows,
    )
    chunk = sampler_lib.CHUNK
    self.run(
      phase,
      "decode",
      sampler.decode,
      *(self._published, cache, shapes.array(jnp.int32)),
      mesh=mesh,
      resident=resident | {"cache": cache},
      # A chunk of tokens is one call; the last one may be shorter.
      times=shapes.subject.response_slots / chunk,
      open_loop=chunk,
    )


def supervised(shapes: shapes_lib.Shapes, handle: Handle) -> Stage:
  """The planned supervised stage (algorithms/sft)."""
  subject = shapes.subject
  stage = Stage(shapes, subject.supervised or "", handle)
  batch = shapes.supervised(stage.settings.batch_size, subject.row_slots)
  stage.imitate("supervised", batch)
  return stage


def online(shapes: shapes_lib.Shapes, handle: Handle) -> Stage:
  """A step of algorithms/online_st: sample, imitate the correct samples."""
  stage = Stage(shapes, "online_st", handle)
  stage.rollouts("online sample")
  settings = stage.settings
  weights = online_st.loss_weights(settings)
  slots = shapes.subject.prompt_slots + shapes.subject.response_slots
  stage.imitate(
    "online update",
    *(shapes.supervised(settings.minibatch, slots) for _ in weights),
    weights=weights,
    times=settings.passes * (settings.batch_size // settings.minibatch),
  )
  return stage


def reinforced(shapes: shapes_lib.Shapes, handle: Handle) -> Stage:
  """A step of algorithms/reft: sample, score, update."""
  config = shapes.subject.config
  chunk = config.model.logit_chunk
  stage = Stage(
    shapes, "reft", handle, critic=config.reft.has_critic, reference=True
  )
  stage.rollouts("sample")
  rollout = shapes.rollout(config.reft.batch_size)
  # The forwards of ppo.make_assess.
  by_action, values = ppo.make_forward(
    shapes.networks, config.reft, logit_chunk=chunk
  )
  arrays = stage.arrays
  critic = arrays.state.params.get("value", {"head": None})
  critic = lora_lib.join(arrays.base, {"value": critic})["value"]
  own_trunk = "trunk" in critic
  policy = (arrays.policy, None if own_trunk else critic["head"])
  # One executable, called for the policy and for its reference.
  stage.run("score", "assess", by_action, policy, rollout, times=2)
  if own_trunk:
    stage.run("score", "assess values", values, critic, rollout)
  update = ppo.make_update(
    shapes.networks, stage.optimizer, config.reft, logit_chunk=chunk
  )
  experience = _experience(shapes, rollout)
  stage.update("update", "update", update, experience, shapes.key())
  return stage


def _experience(
  shapes: shapes_lib.Shapes, rollout: types.Rollout
) -> types.Experience:
  config = shapes.subject.config.reft
  rows, slots = rollout.response_BT.shape
  by_action = shapes.array(jnp.float32, rows, slots)
  assessment = ppo.Assessment(
    logprobs_BT=by_action,
    reference_logprobs_BT=by_action,
    values_BT=by_action if config.has_critic else None,
  )
  rewards_B = shapes.array(jnp.float32, rows)
  kl_coef = shapes.array(jnp.float32)
  experience, _ = jax.eval_shape(
    ppo.make_score(config), rollout, assessment, rewards_B, kl_coef
  )
  return shapes.shard_rows(experience)
