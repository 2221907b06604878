"""The arrays of a run as shapes, sharded over devices that need not be here."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from reft_jax import types
from reft_jax.learning import learner as learner_lib
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition
from reft_jax.planner import subject as subjects
from reft_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class StageArrays:
  """What a stage keeps on the devices."""

  state: types.TrainState  # What its updates change.
  # The frozen weights that the state's parameters adapt (models.lora).
  base: Mapping[str, Any]
  policy: Any  # The trained policy, whole.
  by_kind: dict[str, Any]  # All of it, by measuring.KINDS.


class Shapes:
  """Shapes of a run's arrays on a mesh, which may be abstract.

  `sampling` is the same on the mesh to sample on, if there is another one.
  `gather` says how training passes gather weights.
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
    self.sampling = self
    if sampling_mesh not in (None, mesh):
      self.sampling = Shapes(subject, sampling_mesh, gather=gather)
    config = subject.config
    self.networks = networks_lib.Networks(
      config=subject.shape,
      compute_dtype=config.model.compute_dtype,
      remat=config.model.remat,
      adapter_scale=config.lora.scale,
      gather=gather,
    )

  def shard_rows(self, tree: Any) -> Any:
    """A batch or a cache, sharded by rows; scalars are replicated.

    Heads of a cache are sharded over "tensor" where they divide.
    """
    shards = mesh_lib.num_batch_shards(self.mesh)

    def shard(leaf: Any) -> jax.ShapeDtypeStruct:
      spec = PartitionSpec()
      if leaf.ndim and leaf.shape[0] % shards == 0:
        spec = mesh_lib.BATCH
      if leaf.ndim == 4 and leaf.shape[1] % self.mesh.shape["tensor"] == 0:
        spec = PartitionSpec(*mesh_lib.BATCH, "tensor")
      return struct(leaf, NamedSharding(self.mesh, spec))

    return jax.tree.map(shard, tree)

  def shard_params(
    self, tree: Any, rules: Mapping[str, str] = partition.DEFAULT_RULES
  ) -> Any:
    """Parameters and optimizer state, sharded by the rules of a run."""

    def shard(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
      return struct(leaf, NamedSharding(self.mesh, spec))

    specs = partition.specs(tree, self.mesh.shape, rules)
    return jax.tree.map(shard, tree, specs)

  def shard_published(self, tree: Any) -> Any:
    """Published parameters, which are sharded over "tensor" alone."""
    return self.shard_params(tree, partition.GATHERED_RULES)

  def key(self) -> Any:
    """A random key."""
    return self.shard_rows(jax.eval_shape(jax.random.key, 0))

  def array(self, dtype: Any, *shape: int) -> Any:
    """An array of rows, or a scalar."""
    return self.shard_rows(jax.ShapeDtypeStruct(shape, dtype))

  def prompts(self, questions: int) -> types.Prompts:
    """The result of `Engine.prompts`, of the longest prompts allowed."""
    return types.Prompts(
      tokens_BP=self.array(jnp.int32, questions, self.subject.prompt_slots),
      lengths_B=self.array(jnp.int32, questions),
      requests_B=self.array(jnp.uint32, questions),
      real_B=self.array(jnp.bool_, questions),
    )

  def rollout(self, rows: int) -> types.Rollout:
    """The result of a sampler."""
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
    """A batch to imitate."""
    return types.SupervisedBatch(
      tokens_BS=self.array(jnp.int32, rows, slots),
      lengths_B=self.array(jnp.int32, rows),
      targets_BS=self.array(jnp.bool_, rows, slots),
    )

  def stage_arrays(
    self,
    optimizer: optax.GradientTransformation,
    *,
    critic: bool = False,
    reference: bool = False,
  ) -> StageArrays:
    """The arrays after `Learner.split_trainable` and `Learner.start`."""

    def start(init: Any, *given: Any, **settings: Any) -> Any:
      init = functools.partial(init, **settings)
      return self.shard_params(jax.eval_shape(init, *given))

    config, lora = self.subject.config, self.subject.config.lora
    key = self.key()
    policy = start(self.networks.init, key)
    frozen, trainable = {}, policy
    if lora.rank:
      adapt = functools.partial(lora_lib.init, self.subject.shape)
      frozen = policy
      trainable = start(adapt, key, rank=lora.rank, targets=lora.targets)
    params = {"policy": trainable}
    if critic:
      init_value = self.networks.init_value
      params["value"] = start(init_value, trainable, kind=config.model.value)
    base = lora_lib.frozen_base(frozen, params)
    state = start(learner_lib.init_state, params, optimizer=optimizer)
    kinds = {"weights": (state.params, base), "optimizer": state.opt_state}
    if reference:  # The policy that it started from.
      kinds["reference"] = lora_lib.join(base, {"policy": trainable})["policy"]
    policy = lora_lib.join(base, state.params)["policy"]
    return StageArrays(state, base, policy, kinds)


def struct(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  """The shape of an array that is sharded so."""
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def device_bytes(tree: Any, but: Any = ()) -> int:
  """Bytes of a tree on each device; a leaf that occurs twice counts once.

  Leaves of `but` do not count.
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
  """Numbers in a tree; a leaf that occurs twice counts once."""
  leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
  return sum(leaf.size for leaf in leaves.values())
