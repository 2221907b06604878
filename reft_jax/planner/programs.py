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
import optax

from reft_jax import types
from reft_jax.algorithms import online_st
from reft_jax.config import schema
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
  """One compiled function of a run.

  Attributes:
    name: its name.
    phase: the part of a step that it belongs to.
    mesh: the mesh that is set where it runs.
    function: the jitted function.
    arguments: jax.ShapeDtypeStruct with shardings.
    resident: what is on the devices before, while and after it runs, by kind;
      the same objects as in `arguments` where these are arguments too.
    times: how often a step runs it.
    keywords: further arguments.
    result_kind: the kind of its result, if that stays on the devices.
    guess_shardings: shards the result's shapes where no compiler does.
    open_loop: how often a loop runs that may stop early.
  """

  name: str
  phase: str
  mesh: Any
  function: Any
  arguments: tuple[Any, ...]
  resident: Mapping[str, Any]
  times: float = 1
  keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  result_kind: str | None = None
  guess_shardings: Callable[[Any], Any] | None = None
  open_loop: int = 1


# Compiles or counts a program, and returns the shapes of its result.
Handle = Callable[[Program], Any]


def all_of(shapes: shapes_lib.Shapes, handle: Handle) -> None:
  """Hands over every program of a run, in the order in which they run."""
  subject = shapes.subject
  arrays = published = None
  if subject.supervised:
    arrays = supervised(shapes, subject.supervised, handle)
  if subject.online:
    arrays, published = online(shapes, handle)
  if subject.reinforced:
    arrays, published = reinforced(shapes, handle)
  if arrays:
    evaluation(shapes, arrays, handle, published)


def supervised(
  shapes: shapes_lib.Shapes, name: str, handle: Handle
) -> shapes_lib.StageArrays:
  """A supervised stage (algorithms/sft); returns the arrays that it keeps."""
  stage = getattr(shapes.subject.config, name)
  optimizer = optim.build(stage.optimizer, _STEPS)
  arrays = shapes.stage_arrays(optimizer)
  batch = shapes.supervised(stage.batch_size, shapes.subject.row_slots)
  handle(
    Program(
      name=name,
      phase="supervised",
      mesh=shapes.mesh,
      function=_supervised_update(shapes, stage, optimizer),
      arguments=(arrays.state, batch),
      keywords={"base": arrays.base},
      resident=arrays.by_kind,
    )
  )
  return arrays


def online(
  shapes: shapes_lib.Shapes, handle: Handle
) -> tuple[shapes_lib.StageArrays, Any]:
  """A step of algorithms/online_st: sample, imitate the correct samples.

  Returns:
    The arrays that the stage keeps, and its published policy.
  """
  stage = shapes.subject.config.online_st
  optimizer = optim.build(stage.optimizer, _STEPS)
  arrays = shapes.stage_arrays(optimizer)
  published = _rollouts(shapes, stage, arrays, handle, phase="online sample")
  weights = online_st.loss_weights(stage)
  slots = shapes.subject.prompt_slots + shapes.subject.response_slots
  batches = [shapes.supervised(stage.minibatch, slots) for _ in weights]
  handle(
    Program(
      name="online_st",
      phase="online update",
      mesh=shapes.mesh,
      function=_supervised_update(shapes, stage, optimizer, weights),
      arguments=(arrays.state, *batches),
      keywords={"base": arrays.base},
      resident=arrays.by_kind,
      times=stage.passes * (stage.batch_size // stage.minibatch),
    )
  )
  return arrays, published


def _supervised_update(
  shapes: shapes_lib.Shapes,
  stage: Any,
  optimizer: optax.GradientTransformation,
  weights: dict[str, float] | None = None,
) -> Any:
  return supervised_lib.make_update(
    shapes.networks,
    optimizer,
    micro_batch=stage.micro_batch,
    logit_chunk=shapes.subject.config.model.logit_chunk,
    weights=weights,
  )


def reinforced(
  shapes: shapes_lib.Shapes, handle: Handle
) -> tuple[shapes_lib.StageArrays, Any]:
  """A step of algorithms/reft: sample, score, update.

  Returns:
    The arrays that the stage keeps, and its published policy.
  """
  stage = shapes.subject.config.reft
  logit_chunk = shapes.subject.config.model.logit_chunk
  optimizer = optim.build(stage.optimizer, _STEPS)
  arrays = shapes.stage_arrays(
    optimizer, critic=stage.has_critic, reference=True
  )
  published = _rollouts(shapes, stage, arrays, handle, phase="sample")
  rollout = shapes.rollout(stage.batch_size)
  _score(shapes, arrays, rollout, handle)
  update = ppo.make_update(
    shapes.networks, optimizer, stage, logit_chunk=logit_chunk
  )
  experience = _experience(shapes, stage, rollout)
  handle(
    Program(
      name="update",
      phase="update",
      mesh=shapes.mesh,
      function=update,
      arguments=(arrays.state, experience, shapes.key()),
      keywords={"base": arrays.base},
      resident=arrays.by_kind,
    )
  )
  return arrays, published


def _score(
  shapes: shapes_lib.Shapes,
  arrays: shapes_lib.StageArrays,
  rollout: types.Rollout,
  handle: Handle,
) -> None:
  """The forwards of ppo.make_assess."""
  config = shapes.subject.config
  by_action, values = ppo.make_forward(
    shapes.networks, config.reft, logit_chunk=config.model.logit_chunk
  )
  critic = arrays.state.params.get("value", {"head": None})
  critic = lora_lib.join(arrays.base, {"value": critic})["value"]
  own_trunk = "trunk" in critic
  head = None if own_trunk else critic["head"]
  # One executable, called for the policy and for its reference.
  handle(
    Program(
      name="assess",
      phase="score",
      mesh=shapes.mesh,
      function=by_action,
      arguments=((arrays.policy, head), rollout),
      resident=arrays.by_kind,
      times=2,
    )
  )
  if own_trunk:
    handle(
      Program(
        name="assess values",
        phase="score",
        mesh=shapes.mesh,
        function=values,
        arguments=(critic, rollout),
        resident=arrays.by_kind,
      )
    )


def _experience(
  shapes: shapes_lib.Shapes, config: schema.ReftConfig, rollout: types.Rollout
) -> types.Experience:
  rows, slots = rollout.response_BT.shape
  by_action = shapes.array(jnp.float32, rows, slots)
  assessment = ppo.Assessment(
    logprobs_BT=by_action,
    reference_logprobs_BT=by_action,
    values_BT=by_action if config.has_critic else None,
  )
  experience, _ = jax.eval_shape(
    ppo.make_score(config),
    rollout,
    assessment,
    shapes.array(jnp.float32, rows),
    shapes.array(jnp.float32),
  )
  return shapes.shard_rows(experience)


def evaluation(
  shapes: shapes_lib.Shapes,
  arrays: shapes_lib.StageArrays,
  handle: Handle,
  published: Any = None,
) -> None:
  """Sampled answers to dev questions, while a stage's arrays stay.

  `published` is the stage's published policy, if it has one already.
  """
  if published is None:
    published = _publish(shapes, arrays, handle, phase="evaluate")
  shards = shapes.sampling.num_shards
  rows = max(shapes.subject.config.evaluation.batch_size, shards)
  _sample(
    shapes,
    published,
    arrays,
    _make_sampler(shapes, temperature=0.0),
    rows // shards * shards,
    handle,
    phase="evaluate",
  )


def _rollouts(
  shapes: shapes_lib.Shapes,
  stage: schema.RolloutsConfig,
  arrays: shapes_lib.StageArrays,
  handle: Handle,
  *,
  phase: str,
) -> Any:
  """Publishes a stage's policy and samples a step's rollouts from it."""
  samples = stage.samples_per_question
  sampler = _make_sampler(
    shapes, temperature=stage.temperature, samples=samples
  )
  questions = mesh_lib.pad_to_shards(
    shapes.sampling.mesh, stage.batch_size // samples, samples
  )
  published = _publish(shapes, arrays, handle, phase=phase)
  _sample(shapes, published, arrays, sampler, questions, handle, phase=phase)
  return published


def _make_sampler(
  shapes: shapes_lib.Shapes, *, temperature: float, samples: int = 1
) -> sampler_lib.Sampler:
  return sampler_lib.Sampler(
    shapes.networks,
    response_tokens=shapes.subject.response_slots,
    eos_ids=_EOS,
    pad_id=_PAD,
    temperature=temperature,
    samples=samples,
  )


def _publish(
  shapes: shapes_lib.Shapes,
  arrays: shapes_lib.StageArrays,
  handle: Handle,
  *,
  phase: str,
) -> Any:
  """Publishes a stage's policy."""
  sampling = shapes.sampling
  return handle(
    Program(
      name="publish",
      phase=phase,
      mesh=sampling.mesh,
      function=jax.jit(sampling.networks.publish),
      arguments=(arrays.policy,),
      resident=arrays.by_kind,
      result_kind="published",
      guess_shardings=sampling.shard_published,
    )
  )


def _sample(
  shapes: shapes_lib.Shapes,
  published: Any,
  arrays: shapes_lib.StageArrays,
  sampler: sampler_lib.Sampler,
  questions: int,
  handle: Handle,
  *,
  phase: str,
) -> None:
  """Samples one batch from a published policy."""
  shapes = shapes.sampling
  resident = arrays.by_kind | {"published": published}
  cache = handle(
    Program(
      name="prefill",
      phase=phase,
      mesh=shapes.mesh,
      function=sampler.prefill,
      arguments=(published, shapes.prompts(questions), shapes.key()),
      resident=resident,
      result_kind="cache",
      guess_shardings=shapes.shard_rows,
    )
  )
  chunk = sampler_lib.CHUNK
  handle(
    Program(
      name="decode",
      phase=phase,
      mesh=shapes.mesh,
      function=sampler.decode,
      arguments=(published, cache, shapes.array(jnp.int32)),
      resident=resident | {"cache": cache},
      # A chunk of tokens is one call; the last one may be shorter.
      times=shapes.subject.response_slots / chunk,
      open_loop=chunk,
    )
  )
