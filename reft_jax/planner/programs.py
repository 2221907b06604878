"""The programs of a run on shapes alone, as its methods build and call them.

What lies on the devices besides a program's arguments is told with it, so that
memory is counted as in the run: while ReFT's policy samples, its masters, their
moments and the reference are there too (methods.reft).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from reft_jax import types
from reft_jax.algorithms import online_st
from reft_jax.config import schema
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import optim, ppo
from reft_jax.learning import supervised as supervised_lib
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition
from reft_jax.planner import subject as subjects
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import sampler as sampler_lib

# Optimizers want a number of steps for their schedule, which is one constant.
_STEPS = 1000
# Which ids end and fill rows changes nothing that is counted.
_EOS, _PAD = (2,), 0
_WHOLE_RULES = {
  letter: axis
  for letter, axis in partition.DEFAULT_RULES.items()
  if axis != "fsdp"
}


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function of a run.

  Attributes:
    name: what it is called.
    phase: the part of a step that it belongs to.
    mesh: the one that is set where it runs.
    function: jitted.
    arguments: jax.ShapeDtypeStruct with shardings.
    alive: what is on the devices while it runs and outlives it, by its kind;
      the same objects as in `arguments` where these are arguments too.
    times: how often a step runs it.
    keywords: further arguments.
    makes: the kind of what it returns, if that stays.
    guess: shardings of what it returns, where no compiler tells them.
    open_loop: how often a loop runs that may stop early.
  """

  name: str
  phase: str
  mesh: Any
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  alive: Mapping[str, Any]
  times: float = 1
  keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  makes: str | None = None
  guess: Callable[[Any], Any] | None = None
  open_loop: int = 1


# Compiles a program, or not, and gives the shapes of what it returns.
Handle = Callable[[Program], Any]


@dataclasses.dataclass(frozen=True)
class Learner:
  """What a stage keeps on the devices.

  Attributes:
    state: what its updates change.
    base: what they read besides (models.adapters).
    policy: the one being learnt, whole.
    reference: what it started from, None where the stage does not keep it.
  """

  state: types.TrainState
  base: Mapping[str, Any]
  policy: Any
  reference: Any = None

  @property
  def alive(self) -> dict[str, Any]:
    """By kind."""
    kinds = {
      "weights": (self.state.params, self.base),
      "optimizer": self.state.opt_state,
    }
    if self.reference is not None:
      kinds["reference"] = self.reference
    return kinds


class Shapes:
  """Shapes of a run's arrays, on a mesh whose devices need not be here.

  Args:
    subject: what is planned.
    mesh: to learn on.
    sampling_mesh: to sample on; None: the same.
    gather: how weights are gathered in training passes.

  Attributes:
    sampling: the shapes of what the sampler has.
  """

  def __init__(
    self,
    subject: subjects.Subject,
    mesh: Any,
    sampling_mesh: Any = None,
    gather: str = "layer",
  ):
    self.subject = subject
    self.mesh = mesh
    self.sampling = (
      self
      if sampling_mesh in (None, mesh)
      else Shapes(subject, sampling_mesh, gather=gather)
    )
    config = subject.config
    self.networks = networks_lib.Networks(
      config=subject.shape,
      compute_dtype=config.model.compute_dtype,
      remat=config.model.remat,
      adapter_scale=config.lora.scale,
      gather=gather,
    )

  @property
  def ways(self) -> int:
    """Into how many parts a batch is split."""
    return mesh_lib.num_batch_shards(self.mesh)

  def rows(self, tree: Any) -> Any:
    """Batches, split over the devices that share one; scalars are everywhere.

    Heads of a cache are split over "tensor" where they divide.
    """

    def one(leaf):
      spec = PartitionSpec()
      if leaf.ndim and leaf.shape[0] % self.ways == 0:
        spec = mesh_lib.BATCH
      if leaf.ndim == 4 and leaf.shape[1] % self.mesh.shape["tensor"] == 0:
        spec = PartitionSpec(*mesh_lib.BATCH, "tensor")
      return _struct(leaf, NamedSharding(self.mesh, spec))

    return jax.tree.map(one, tree)

  def shards(self, tree: Any) -> Any:
    """Parameters and optimizer state, as `devices.put` spreads them."""
    return jax.tree.map(_struct, tree, mesh_lib.shardings(self.mesh, tree))

  def whole(self, tree: Any) -> Any:
    """Published parameters: split over "tensor" alone."""
    specs = partition.specs(tree, self.mesh.shape, _WHOLE_RULES)
    return jax.tree.map(
      lambda leaf, spec: _struct(leaf, NamedSharding(self.mesh, spec)),
      tree,
      specs,
    )

  def key(self) -> Any:
    """A random key."""
    return self.rows(jax.eval_shape(lambda: jax.random.key(0)))

  def number(self, dtype: Any) -> Any:
    """A scalar."""
    return self.rows(jax.ShapeDtypeStruct((), dtype))

  def array(self, dtype: Any, *shape: int) -> Any:
    """Rows."""
    return self.rows(jax.ShapeDtypeStruct(shape, dtype))

  def prompts(self, questions: int) -> types.Prompts:
    """As `Run.prompts` makes them, with the longest that may be."""
    return types.Prompts(
      tokens_BP=self.array(jnp.int32, questions, self.subject.prompt_slots),
      lengths_B=self.array(jnp.int32, questions),
      requests_B=self.array(jnp.uint32, questions),
      real_B=self.array(jnp.bool_, questions),
    )

  def rollout(self, rows: int) -> types.Rollout:
    """As a sampler makes it."""
    P, T = self.subject.prompt_slots, self.subject.response_slots
    return types.Rollout(
      prompt_BP=self.array(jnp.int32, rows, P),
      prompt_lengths_B=self.array(jnp.int32, rows),
      response_BT=self.array(jnp.int32, rows, T),
      response_lengths_B=self.array(jnp.int32, rows),
      ended_B=self.array(jnp.bool_, rows),
      logprobs_BT=self.array(jnp.float32, rows, T),
    )

  def supervised(self, rows: int, slots: int) -> types.SupervisedBatch:
    """Rows to be imitated."""
    return types.SupervisedBatch(
      tokens_BS=self.array(jnp.int32, rows, slots),
      lengths_B=self.array(jnp.int32, rows),
      targets_BS=self.array(jnp.bool_, rows, slots),
    )

  def learner(
    self, optimizer: Any, *, critic: bool = False, reference: bool = False
  ) -> Learner:
    """What `Run.divided` and `Run.start` make of a policy."""
    config, lora = self.subject.config, self.subject.config.lora
    key = jax.eval_shape(lambda: jax.random.key(0))
    policy = self.shards(jax.eval_shape(self.networks.init, key))
    frozen, learnt = {}, policy
    if lora.rank:
      init = functools.partial(
        lora_lib.init,
        self.subject.shape,
        rank=lora.rank,
        targets=lora.targets,
      )
      frozen, learnt = policy, self.shards(jax.eval_shape(init, key))
    params = {"policy": learnt}
    if critic:
      init = functools.partial(
        self.networks.init_value, kind=config.model.value
      )
      params["value"] = self.shards(jax.eval_shape(init, learnt))
    base = lora_lib.frozen_base(frozen, params)
    init = functools.partial(learner_lib.init_state, optimizer=optimizer)
    state = self.shards(jax.eval_shape(init, params))
    started = lora_lib.join(base, {"policy": learnt})["policy"]
    return Learner(
      state=state,
      base=base,
      policy=lora_lib.join(base, state.params)["policy"],
      reference=started if reference else None,
    )


def _struct(leaf, sharding):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def all_of(shapes: Shapes, handle: Handle) -> None:
  """Hands over every program of a run, in the order in which they run."""
  subject = shapes.subject
  learner = published = None
  if subject.supervised:
    learner = supervised(shapes, subject.supervised, handle)
  if subject.online:
    learner, published = online(shapes, handle)
  if subject.reinforced:
    learner, published = reinforced(shapes, handle)
  if learner:
    evaluation(shapes, learner, handle, published)


def supervised(shapes: Shapes, name: str, handle: Handle) -> Learner:
  """A stage that imitates, as methods.sft runs it."""
  config, stage = shapes.subject.config, getattr(shapes.subject.config, name)
  optimizer = optim.build(stage.optimizer, _STEPS)
  learner = shapes.learner(optimizer)
  update = supervised_lib.make_update(
    shapes.networks,
    optimizer,
    micro_batch=stage.micro_batch,
    logit_chunk=config.model.logit_chunk,
  )
  batch = shapes.supervised(stage.batch_size, shapes.subject.row_slots)
  handle(
    Program(
      name=name,
      phase="supervised",
      mesh=shapes.mesh,
      function=update,
      arguments=(learner.state, batch),
      keywords={"base": learner.base},
      alive=learner.alive,
    )
  )
  return learner


def online(shapes: Shapes, handle: Handle) -> tuple[Learner, Any]:
  """A step of methods.online_st: sample, and imitate what is right.

  Returns:
    What the stage keeps, and its policy as it is sampled from.
  """
  config, stage = shapes.subject.config, shapes.subject.config.online_st
  optimizer = optim.build(stage.optimizer, _STEPS)
  learner = shapes.learner(optimizer)
  published = _rollouts(shapes, stage, learner, handle, phase="online sample")
  weights = online_st.loss_weights(stage)
  update = supervised_lib.make_update(
    shapes.networks,
    optimizer,
    micro_batch=stage.micro_batch,
    logit_chunk=config.model.logit_chunk,
    weights=weights,
  )
  slots = shapes.subject.prompt_slots + shapes.subject.response_slots
  batches = [shapes.supervised(stage.minibatch, slots) for _ in weights]
  handle(
    Program(
      name="online_st",
      phase="online update",
      mesh=shapes.mesh,
      function=update,
      arguments=(learner.state, *batches),
      keywords={"base": learner.base},
      alive=learner.alive,
      times=stage.passes * (stage.batch_size // stage.minibatch),
    )
  )
  return learner, published


def reinforced(shapes: Shapes, handle: Handle) -> tuple[Learner, Any]:
  """A step of methods.reft: sample, score, update.

  Returns:
    What the stage keeps, and its policy as it is sampled from.
  """
  config, stage = shapes.subject.config, shapes.subject.config.reft
  optimizer = optim.build(stage.optimizer, _STEPS)
  learner = shapes.learner(optimizer, critic=stage.has_critic, reference=True)
  alive = learner.alive
  published = _rollouts(shapes, stage, learner, handle, phase="sample")

  by_action, values = ppo.make_forward(
    shapes.networks, stage, logit_chunk=config.model.logit_chunk
  )
  sampled = shapes.rollout(stage.batch_size)
  critic = learner.state.params.get("value", {"head": None})
  critic = lora_lib.join(learner.base, {"value": critic})["value"]
  own = "trunk" in critic
  head = None if own else critic["head"]
  # The policy's and its reference's are one executable, called twice.
  handle(
    Program(
      name="assess",
      phase="score",
      mesh=shapes.mesh,
      function=by_action,
      arguments=((learner.policy, head), sampled),
      alive=alive,
      times=2,
    )
  )
  if own:
    handle(
      Program(
        name="assess values",
        phase="score",
        mesh=shapes.mesh,
        function=values,
        arguments=(critic, sampled),
        alive=alive,
      )
    )
  update = ppo.make_update(
    shapes.networks, optimizer, stage, logit_chunk=config.model.logit_chunk
  )
  handle(
    Program(
      name="update",
      phase="update",
      mesh=shapes.mesh,
      function=update,
      arguments=(
        learner.state,
        _experience(shapes, stage, sampled),
        shapes.key(),
      ),
      keywords={"base": learner.base},
      alive=alive,
    )
  )
  return learner, published


def _experience(
  shapes: Shapes, config: schema.ReftConfig, sampled: types.Rollout
) -> types.Experience:
  rows, slots = sampled.response_BT.shape
  by_action = shapes.array(jnp.float32, rows, slots)
  assessment = ppo.Assessment(
    logprobs_BT=by_action,
    reference_logprobs_BT=by_action,
    values_BT=by_action if config.has_critic else None,
  )
  experience, _ = jax.eval_shape(
    ppo.make_score(config),
    sampled,
    assessment,
    shapes.array(jnp.float32, rows),
    shapes.number(jnp.float32),
  )
  return shapes.rows(experience)


def evaluation(
  shapes: Shapes, learner: Learner, handle: Handle, published: Any = None
) -> None:
  """Answers to dev questions while a stage goes on (methods.answering).

  `published` is a policy that its stage has published already.
  """
  config = shapes.subject.config
  alive = learner.alive
  if published is None:
    published = _published(
      shapes, learner.policy, alive, handle, phase="evaluate"
    )
  ways = shapes.sampling.ways
  rows = max(config.evaluation.batch_size, ways)
  sampler = sampler_lib.Sampler(
    shapes.networks,
    response_tokens=shapes.subject.response_slots,
    eos_ids=_EOS,
    pad_id=_PAD,
    temperature=0.0,
  )
  questions = rows // ways * ways
  _sampled(
    shapes, published, alive, sampler, questions, handle, phase="evaluate"
  )


def _rollouts(shapes, stage, learner, handle, *, phase):
  """Publishes a stage's policy and samples a step's rollouts from it."""
  samples = stage.samples_per_question
  sampler = sampler_lib.Sampler(
    shapes.networks,
    response_tokens=shapes.subject.response_slots,
    eos_ids=_EOS,
    pad_id=_PAD,
    temperature=stage.temperature,
    samples=samples,
  )
  questions = mesh_lib.pad_to_shards(
    shapes.sampling.mesh, stage.batch_size // samples, samples
  )
  alive = learner.alive
  published = _published(shapes, learner.policy, alive, handle, phase=phase)
  _sampled(shapes, published, alive, sampler, questions, handle, phase=phase)
  return published


def _published(shapes, policy, alive, handle, *, phase):
  """Publishes a policy."""
  shapes = shapes.sampling
  return handle(
    Program(
      name="publish",
      phase=phase,
      mesh=shapes.mesh,
      function=jax.jit(shapes.networks.publish),
      arguments=(policy,),
      alive=alive,
      makes="published",
      guess=shapes.whole,
    )
  )


def _sampled(shapes, published, alive, sampler, questions, handle, *, phase):
  """Samples one batch from a published policy."""
  shapes = shapes.sampling
  alive = alive | {"published": published}
  rows = handle(
    Program(
      name="prefill",
      phase=phase,
      mesh=shapes.mesh,
      function=sampler.prefill,
      arguments=(published, shapes.prompts(questions), shapes.key()),
      alive=alive,
      makes="cache",
      guess=shapes.rows,
    )
  )
  chunk = sampler_lib.CHUNK
  handle(
    Program(
      name="decode",
      phase=phase,
      mesh=shapes.mesh,
      function=sampler.decode,
      arguments=(published, rows, shapes.number(jnp.int32)),
      alive=alive | {"cache": rows},
      # A chunk is one call; the last one may be shorter.
      times=shapes.subject.response_slots / chunk,
      open_loop=chunk,
    )
  )


def device_bytes(tree: Any, but: Any = ()) -> int:
  """Bytes of a tree on each device; what is in it twice counts once.

  What is in `but` too does not count.
  """
  seen = {id(leaf) for leaf in jax.tree.leaves(but)}
  total = 0
  for leaf in jax.tree.leaves(tree):
    if id(leaf) not in seen:
      seen.add(id(leaf))
      shape = leaf.sharding.shard_shape(leaf.shape)
      total += math.prod(shape) * leaf.dtype.itemsize
  return total


def count(tree: Any) -> int:
  """Numbers in a tree; what is in it twice counts once."""
  leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
  return sum(leaf.size for leaf in leaves.values())
