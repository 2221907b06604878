"""The learner: the state that a stage trains, and how it is updated.

Here is what would hide an algorithm in its loop: which parameters are trained
and which stay frozen (LoRA), the optimizer and its schedule, donation, the
placement on the mesh. The updates are pure: state and batch in, state and
metrics out.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import means, optim
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.runtime import keys
from reft_jax.runtime import mesh as mesh_lib


class Learner:
  """Holds the state of one training run; its subclasses say how it learns.

  Args:
    networks: the pure functions of the model.
    mesh: the devices that hold the state.
    config: the run's settings.
    optimizer: the settings of the optimizer.
    updates: optimizer updates in all, which the schedule needs.
    name: the stage's; its random keys follow from it.

  Attributes:
    state: replaced by each update, which donates the one before.
    base: frozen parameters beside the state's, which LoRA adapts; {} without.
    part: which of the parameters is the model that the stage is to produce.
  """

  part = "policy"

  def __init__(
    self,
    networks: networks_lib.Networks,
    mesh: jax.sharding.Mesh,
    config: schema.Config,
    *,
    optimizer: schema.OptimizerConfig,
    updates: int,
    name: str,
  ):
    self.networks = networks
    self.mesh = mesh
    self.config = config
    self.name = name
    self.peak_learning_rate = optimizer.learning_rate
    self.optimizer = optim.build(optimizer, updates)
    self._schedule = optim.schedule(optimizer, updates)
    self.state: types.TrainState
    self.base: dict[str, Any] = {}

  def start(
    self, frozen: Any, params: Mapping[str, Any], kl_coef: float = 0.0
  ) -> None:
    """Makes the state before the first update.

    Args:
      frozen: the policy that the parameters adapt; {} if they adapt none.
      params: what is trained, by its part. The state has its own copy.
      kl_coef: the cost of drifting from the reference, to begin with.
    """
    self.base = lora_lib.frozen_base(frozen, params)
    init = functools.partial(
      init_state, optimizer=self.optimizer, kl_coef=kl_coef
    )
    self.state = self.init_sharded(init, mesh_lib.put(self.mesh, dict(params)))

  def split_trainable(self, policy: Any) -> tuple[Any, Any]:
    """A policy as its frozen and its trainable part, on the mesh.

    That is {} and the policy or, with LoRA, the policy and an adapter of it
    that changes nothing yet.
    """
    policy, lora = mesh_lib.put(self.mesh, policy), self.config.lora
    if not lora.rank:
      return {}, policy
    init = functools.partial(
      lora_lib.init,
      self.networks.config,
      rank=lora.rank,
      targets=lora.targets,
    )
    return policy, self.init_sharded(init, self.key("adapter"))

  def init_sharded(self, init: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of arrays, each part made on its shards."""
    shardings = mesh_lib.shardings(self.mesh, jax.eval_shape(init, *arguments))
    return jax.jit(init, out_shardings=shardings)(*arguments)

  def key(self, *path: int | str) -> jax.Array:
    """The random key of a purpose of this stage."""
    return keys.derive(self.config.seed, self.name, *path)

  def learning_rate(self, update: int | None = None) -> means.Metrics:
    """The metric: at an update, by default that of the state.

    A loop that knows the update's number spares the wait for the state.
    """
    at = self.state.step if update is None else update
    return {"learning_rate": types.Mean.of(self._schedule(at))}

  @property
  def trained(self) -> Any:
    """The trained parameters of the model; with LoRA, its adapter."""
    return self.state.params[self.part]

  def model(self, trained: Any = None) -> Any:
    """The model, whole: `trained`, by default the state's, on its base."""
    return lora_lib.join(
      self.base.get(self.part, {}), self.trained if trained is None else trained
    )


def init_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  kl_coef: float = 0.0,
) -> types.TrainState:
  """A state before its first update; it shares no array with `params`."""
  params = jax.tree.map(jnp.array, params)
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    kl_coef=jnp.float32(kl_coef),
  )


def apply_gradient(
  optimizer: optax.GradientTransformation,
  state: types.TrainState,
  grads: Any,
  metrics: means.Metrics,
  freeze_policy: jax.Array | None = None,
) -> tuple[types.TrainState, means.Metrics]:
  """One optimizer update; a gradient that is not finite changes nothing.

  Nor does one of exactly 0, which a batch without anything to learn from has:
  the momentum of earlier updates does not go on alone.

  Where `freeze_policy` is true the policy stays as it is. The optimizer sees
  its gradients all the same, so that its moments are ready when it thaws.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  counts = finite & (norm > 0)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  if freeze_policy is not None:
    policy = jax.tree.map(
      lambda update: jnp.where(freeze_policy, 0, update), updates["policy"]
    )
    updates = updates | {"policy": policy}
  updated = dataclasses.replace(
    state,
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )
  state = jax.tree.map(
    lambda new, old: jnp.where(counts, new, old), updated, state
  )
  return state, metrics | {
    "grad_norm": means.single(norm),
    "skipped_updates": means.single(~finite),
  }
