"""PPO on rollouts: assess, score, update (paper section 3.2).

Assess reads the policy, its reference and the critic before answers are graded;
score turns rewards into advantages; update takes epochs of minibatches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import forward, means, microbatch, objectives
from reft_jax.learning import learner as learner_lib
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition, struct
from reft_jax.ops import advantages, kl, losses, masked
from reft_jax.runtime import mesh as mesh_lib


@struct.dataclass
class Assessment:
  """What the networks say of a rollout, by action, before it is graded."""

  logprobs_BT: chex.Array
  reference_logprobs_BT: chex.Array
  values_BT: Any  # None without a critic.


@struct.dataclass
class PolicyOutputs:
  """What the networks that are trained say of a rollout, by action."""

  logprobs_BT: chex.Array
  entropies_BT: chex.Array
  values_BT: Any  # None without a critic.


class PPOLearner(learner_lib.Learner):
  """Trains a policy, and a critic where there is one, from rewards.

  Args:
    policy: the warmed-up policy; it stays beside as the reference of the KL.
    reft: the settings of PPO.
    **options: as of `Learner`.
  """

  def __init__(
    self, *shared: Any, policy: Any, reft: schema.ReftConfig, **options: Any
  ):
    super().__init__(*shared, **options)
    frozen, trainable = self.split_trainable(policy)
    params = {"policy": trainable}
    if reft.has_critic:
      init = functools.partial(
        self.networks.init_value, kind=self.config.model.value
      )
      params["value"] = self.init_sharded(init, trainable)
    self.start(frozen, params, reft.kl_coef)
    # With LoRA the same weights again, beside an adapter that adds 0.
    self._reference = self.model(trainable)
    chunk = self.config.model.logit_chunk
    slots = self.config.data.max_response_tokens
    self._assess = make_assess(self.networks, reft, logit_chunk=chunk)
    self._score = make_score(reft)
    self._update = make_update(
      self.networks,
      self.optimizer,
      reft,
      response_slots=slots,
      logit_chunk=chunk,
    )

  def assess(self, rollout: types.Rollout) -> Assessment:
    """Starts the forward passes over a rollout."""
    params = lora_lib.join(self.base, self.state.params)
    return self._assess(params, self._reference, rollout)

  def score(
    self,
    rollout: types.Rollout,
    assessment: Assessment,
    rewards_B: np.ndarray,
  ) -> tuple[types.Experience, means.Metrics]:
    """Rewards as advantages; what the update learns from."""
    rewards_B = mesh_lib.put_batch(self.mesh, rewards_B)
    return self._score(rollout, assessment, rewards_B, self.state.kl_coef)

  def update(self, experience: types.Experience, step: int) -> means.Metrics:
    """The updates of a step: epochs of minibatches in one program."""
    rate = self.learning_rate()
    key = self.key("update", step)
    self.state, metrics = self._update(
      self.state, experience, key, base=self.base
    )
    return metrics | rate


def make_assess(
  networks: networks_lib.Networks,
  config: schema.ReftConfig,
  *,
  logit_chunk: int = 1024,
) -> Callable[..., Assessment]:
  """`assess(params, reference, rollout)`: log-probs of both policies, values.

  The policy and its reference go through one executable, so that equal
  parameters give a KL of exactly 0.
  """
  by_action, values = make_forward(networks, config, logit_chunk=logit_chunk)

  def assess(params: Any, reference: Any, rollout: types.Rollout) -> Assessment:
    critic, head = _critic(params, config)
    logprobs_BT, values_BT = by_action((params["policy"], head), rollout)
    reference_BT, _ = by_action((reference, head), rollout)
    if "trunk" in critic:
      values_BT = values(critic, rollout)
    return Assessment(
      logprobs_BT=logprobs_BT,
      reference_logprobs_BT=reference_BT,
      values_BT=values_BT,
    )

  return assess


def _critic(params: Any, config: schema.ReftConfig) -> tuple[Any, Any]:
  """A step's critic, {} without one, and its head on the policy's trunk."""
  critic = params["value"] if config.has_critic else {}
  return critic, None if "trunk" in critic else critic.get("head")


def make_forward(
  networks: networks_lib.Networks,
  config: schema.ReftConfig,
  *,
  logit_chunk: int = 1024,
) -> tuple[Callable[..., Any], Callable[..., jax.Array]]:
  """The two jitted functions that `assess` calls.

  `by_action((policy, head), rollout)` is log-probs and, where `head` is one on
  the policy's trunk and not None, values; `values(critic, rollout)` are those
  of a critic with a trunk of its own.
  """
  read_policy, read_values = _make_readers(networks, config, logit_chunk)

  def by_action(params: Any, rollout: types.Rollout) -> tuple[Any, Any]:
    outputs = read_policy(*params, rollout)
    return outputs.logprobs_BT, outputs.values_BT

  map_rows = functools.partial(microbatch.map_rows, micro=config.micro_batch)
  return (
    jax.jit(functools.partial(map_rows, by_action)),
    jax.jit(functools.partial(map_rows, read_values)),
  )


def make_score(
  config: schema.ReftConfig,
) -> Callable[..., tuple[types.Experience, means.Metrics]]:
  """`score(rollout, assessment, rewards_B, kl_coef)`: rewards to advantages.

  `kl_coef` is the state's. The metric "kl" is that of whole responses, in
  nats, by the settings' estimator; `kl_target` is compared with it.
  """
  return jax.jit(functools.partial(_score, config=config))


def _score(
  rollout: types.Rollout,
  assessment: Assessment,
  rewards_B: jax.Array,
  kl_coef: jax.Array,
  *,
  config: schema.ReftConfig,
) -> tuple[types.Experience, means.Metrics]:
  mask_BT = rollout.mask_BT
  rewards_BT, kl_BT = advantages.kl_penalised(
    rewards_B,
    assessment.logprobs_BT,
    assessment.reference_logprobs_BT,
    mask_BT,
    kl_coef=kl_coef if config.kl_in == "reward" else 0.0,
    estimator=kl.ESTIMATORS[config.kl_estimate],
  )
  sampler_gap_BT = jnp.abs(rollout.logprobs_BT - assessment.logprobs_BT)
  metrics = {
    "reward/mean": means.over_rows(rewards_B),
    "kl": means.over_rows(jnp.sum(kl_BT, axis=1)),
    "kl_coef": means.single(kl_coef),
    "response/length": means.over_rows(rollout.response_lengths_B),
    "response/ended": means.over_rows(rollout.ended_B),
    "sampler_gap": means.over_mask(sampler_gap_BT, mask_BT),
  }
  group = config.samples_per_question
  counts_B = jnp.ones_like(rewards_B, dtype=bool)
  if group > 1:
    signal_B = advantages.with_signal(rewards_B, group=group)
    metrics["reward/groups_with_signal"] = means.over_rows(signal_B)
    if config.filter_zero_variance_groups:
      counts_B = signal_B
  values_BT, returns_BT = assessment.values_BT, None
  if config.has_critic:
    advantages_BT, returns_BT = advantages.gae(
      rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam
    )
    explained = masked.explained_variance(returns_BT, values_BT, mask_BT)
    metrics["value/mean"] = means.over_mask(values_BT, mask_BT)
    metrics["value/explained_variance"] = means.single(explained)
    if config.whiten:
      advantages_BT = masked.whiten(advantages_BT, mask_BT & counts_B[:, None])
  else:
    relative = advantages.GROUP_RELATIVE[config.advantages]
    advantages_BT = advantages.of_groups(
      rewards_B, rewards_BT, mask_BT, group=group, relative=relative
    )
  experience = types.Experience(
    rollout=rollout,
    logprobs_BT=assessment.logprobs_BT,
    reference_logprobs_BT=assessment.reference_logprobs_BT,
    values_BT=values_BT,
    advantages_BT=advantages_BT,
    returns_BT=returns_BT,
    counts_B=counts_B,
  )
  return jax.tree.map(partition.pin_or_replicate, experience), metrics


def make_update(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  config: schema.ReftConfig,
  *,
  response_slots: int | None = None,
  logit_chunk: int = 1024,
) -> Callable[..., tuple[types.TrainState, means.Metrics]]:
  """`update(state, experience, key, base)`: epochs, minibatches in one jit.

  At the first minibatch the parameters are still those that assessed the
  rollout, so its old log-probs are taken from the very forward that is
  differentiated: the ratio is exactly 1 in any precision. How far the two
  forwards are apart is the metric `old_logprob_gap`, so a mask or temperature
  that differs between them still shows.

  What depends on how long training has gone on follows from the state: the
  policy waits for `value_warmup_steps` rollouts' worth of updates, and the KL's
  coefficient is adapted once a rollout.

  Args:
    networks: the model.
    optimizer: what turns gradients into updates.
    config: the settings of PPO.
    response_slots: what the aggregation "constant" divides by, whatever a
      rollout was trimmed to; None: the rollout's.
    logit_chunk: tokens for which a device has logits at a time.
  """
  read_policy, read_values = _make_readers(networks, config, logit_chunk)
  objective = objectives.build(config)

  def loss_fn(
    params: Any,
    rows: tuple[types.Experience, jax.Array],
    *,
    base: Any,
    kl_coef: jax.Array,
    first: jax.Array,
  ) -> tuple[jax.Array, means.Metrics]:
    experience, weights_BT = rows
    params = lora_lib.join(base, params)
    critic, head = _critic(params, config)
    outputs = read_policy(params["policy"], head, experience.rollout)
    if "trunk" in critic:
      values_BT = read_values(critic, experience.rollout)
      outputs = dataclasses.replace(outputs, values_BT=values_BT)
    now_BT = jax.lax.stop_gradient(outputs.logprobs_BT)
    gap_BT = jnp.abs(now_BT - experience.logprobs_BT)
    experience = dataclasses.replace(
      experience, logprobs_BT=jnp.where(first, now_BT, experience.logprobs_BT)
    )
    loss, metrics = objective(
      loss_inputs(outputs, experience, weights_BT, kl_coef, config)
    )
    mask_BT = experience.rollout.mask_BT
    metrics["old_logprob_gap"] = means.over_mask(gap_BT, mask_BT & first)
    metrics["ratio/first_deviation"] = means.over_mask(
      jnp.abs(jnp.exp(now_BT - experience.logprobs_BT) - 1.0), mask_BT & first
    )
    return loss, metrics

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: types.TrainState,
    experience: types.Experience,
    key: jax.Array,
    base: Any = None,
  ) -> tuple[types.TrainState, means.Metrics]:
    batch = experience.advantages_BT.shape[0]
    orders_EB = jax.vmap(lambda k: jax.random.permutation(k, batch))(
      jax.random.split(key, config.ppo_epochs)
    )
    minibatches = orders_EB.reshape(-1, config.minibatch)
    freeze_policy = None
    if config.value_warmup_steps:
      warmup = config.value_warmup_steps * minibatches.shape[0]
      freeze_policy = state.step < warmup

    def minibatch_update(
      state: types.TrainState, xs: tuple[jax.Array, jax.Array]
    ) -> tuple[types.TrainState, means.Metrics]:
      indices, first = xs
      rows = jax.tree.map(lambda x: partition.pin(x[indices]), experience)
      rows = microbatch.pad_rows(rows, config.micro_batch)
      weights_BT = losses.weights(
        rows.mask_BT, config.aggregation, response_slots
      )
      grads, metrics = microbatch.gradient(
        networks,
        functools.partial(
          loss_fn, base=base, kl_coef=state.kl_coef, first=first
        ),
        state.params,
        (rows, weights_BT),
        config.micro_batch,
      )
      return learner_lib.apply_gradient(
        optimizer, state, grads, metrics, freeze_policy
      )

    base = networks.working_copy(base)
    first = jnp.arange(minibatches.shape[0]) == 0
    state, metrics = jax.lax.scan(minibatch_update, state, (minibatches, first))
    if config.kl_target is not None:
      adapted = _adapted(state.kl_coef, config.kl_target, experience, config)
      if freeze_policy is not None:
        adapted = jnp.where(freeze_policy, state.kl_coef, adapted)
      state = dataclasses.replace(state, kl_coef=adapted)
    return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

  return update


def _make_readers(
  networks: networks_lib.Networks, config: schema.ReftConfig, logit_chunk: int
) -> tuple[Callable[..., PolicyOutputs], Callable[..., jax.Array]]:
  """The forward passes: of a policy, and of a critic with its own trunk.

  `read_policy(policy, head, rollout)` has values where `head`, a critic's on
  the policy's trunk, is not None; `read_values(critic, rollout)` is values_BT.
  """

  def read_policy(
    policy: Any, head: Any, rollout: types.Rollout
  ) -> PolicyOutputs:
    hidden_BTD = forward.response_hidden(networks, policy["trunk"], rollout)
    logprobs_BT, entropies_BT = forward.response_logprobs(
      networks,
      policy,
      hidden_BTD,
      rollout,
      temperature=config.temperature,
      logit_chunk=logit_chunk,
    )
    values_BT = None if head is None else networks.values(head, hidden_BTD)
    return PolicyOutputs(
      logprobs_BT=logprobs_BT, entropies_BT=entropies_BT, values_BT=values_BT
    )

  def read_values(critic: Any, rollout: types.Rollout) -> jax.Array:
    hidden_BTD = forward.response_hidden(networks, critic["trunk"], rollout)
    return networks.values(critic["head"], hidden_BTD)

  return read_policy, read_values


def loss_inputs(
  outputs: PolicyOutputs,
  experience: types.Experience,
  weights_BT: jax.Array,
  kl_coef: chex.Numeric,
  config: schema.ReftConfig,
) -> objectives.LossInputs:
  """Some rows of a minibatch as an objective takes them."""
  mask_BT = experience.mask_BT
  _, padded = microbatch.sizes(config.minibatch, config.micro_batch)

  def unmasked(logprobs_BT: jax.Array) -> jax.Array:
    return jnp.where(mask_BT, logprobs_BT, 0.0)

  return objectives.LossInputs(
    logprobs_BT=unmasked(outputs.logprobs_BT),
    old_logprobs_BT=unmasked(experience.logprobs_BT),
    reference_logprobs_BT=unmasked(experience.reference_logprobs_BT),
    advantages_BT=experience.advantages_BT,
    entropies_BT=outputs.entropies_BT,
    mask_BT=mask_BT,
    weights_BT=weights_BT,
    kl_coef=kl_coef,
    row_share=mask_BT.shape[0] / padded,
    values_BT=outputs.values_BT,
    old_values_BT=experience.values_BT,
    returns_BT=experience.returns_BT,
  )


def _adapted(
  kl_coef: jax.Array,
  target: float,
  experience: types.Experience,
  config: schema.ReftConfig,
) -> jax.Array:
  """The KL's next coefficient, by what it was when the rollout was sampled."""
  kl_BT = kl.ESTIMATORS[config.kl_estimate](
    experience.logprobs_BT, experience.reference_logprobs_BT
  )
  kl_B = masked.total(kl_BT, experience.rollout.mask_BT, axis=1)
  return kl.adapted(
    kl_coef,
    jnp.mean(kl_B),
    target=target,
    horizon=config.kl_horizon,
    rows=kl_B.size,
  )
