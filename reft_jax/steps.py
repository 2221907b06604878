"""The jitted steps: supervised, assess and score a rollout, PPO update.

Each builder binds what is static (networks, numbers from the config) and
returns functions of arrays alone. States are donated; metrics are `Mean`s.
A minibatch may be computed a micro-batch at a time: losses are sums over rows
divided by what the whole minibatch holds, so the gradient is the same
whatever the split over micro-batches and devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from reft_jax import types
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition
from reft_jax.ops import advantages, logprobs, losses, masked, sequences

Metrics = dict[str, types.Mean]


@dataclasses.dataclass(frozen=True)
class PPO:
  """The numbers of the PPO objective; defaults are the paper's (nl)."""

  ppo_epochs: int = 2
  minibatch_size: int = 32
  micro_batch_size: int = 32
  temperature: float = 1.0
  gamma: float = 1.0
  lam: float = 0.95
  kl_coef: float = 0.05
  clip: float = 0.2
  value_clip: float = 0.2
  vf_coef: float = 5.0
  whiten: bool = True


@chex.dataclass(frozen=True)
class Assessment:
  """What the networks say of a rollout, by action, before it is graded."""

  logprobs_BT: chex.Array
  reference_logprobs_BT: chex.Array
  values_BT: chex.Array


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> types.TrainState:
  """A state before its first update; it shares no array with `params`."""
  params = jax.tree.map(jnp.array, params)
  return types.TrainState(
    step=jnp.int32(0), params=params, opt_state=optimizer.init(params)
  )


# Supervised ------------------------------------------------------------------


def supervised(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  *,
  micro_batch_size: int,
  logit_chunk: int = 1024,
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """`update(state, batch)`: cross-entropy of the answer and its EOS.

  The loss is the mean over all target tokens of the batch. Deviation: the
  released code takes the mean of the means of its micro-batches.
  """

  def loss_fn(params, batch, targets_in_batch):
    policy = params["policy"]
    hidden_BSD = networks.hidden(
      policy["trunk"], batch.tokens_BS, batch.lengths_B
    )
    logprobs_BS, _ = logprobs.of_tokens(
      functools.partial(networks.logits, policy),
      hidden_BSD[:, :-1],
      batch.tokens_BS[:, 1:],
      chunk=logit_chunk,
    )
    targets_BS = batch.targets_BS[:, 1:]
    total = -masked.total(logprobs_BS, targets_BS)
    count = jnp.sum(targets_BS)
    return total / targets_in_batch, {
      "loss": types.Mean(total=total, count=count)
    }

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, batch):
    targets = jnp.maximum(jnp.sum(batch.targets_BS[:, 1:]), 1)
    grads, metrics = _gradient(
      functools.partial(loss_fn, targets_in_batch=targets),
      state.params,
      batch,
      micro_batch_size,
    )
    return _apply(optimizer, state, grads, metrics)

  return update


# PPO -------------------------------------------------------------------------


def assess(
  networks: networks_lib.Networks, ppo: PPO, *, logit_chunk: int = 1024
) -> Callable[..., Assessment]:
  """`run(params, reference, rollout)`: log-probs of both policies, values.

  The policy and its reference go through one executable, so that equal
  parameters give a KL of exactly 0.
  """

  def by_action(params, rollout):
    policy, head = params
    hidden_BTD = _response_hidden(networks, policy["trunk"], rollout)
    logprobs_BT, _ = _token_logprobs(
      networks, policy, hidden_BTD, rollout, ppo, logit_chunk
    )
    if head is None:
      return logprobs_BT, None
    return logprobs_BT, networks.values(head, hidden_BTD)

  def values(critic, rollout):
    hidden_BTD = _response_hidden(networks, critic["trunk"], rollout)
    return networks.values(critic["head"], hidden_BTD)

  micro = ppo.micro_batch_size
  by_action = jax.jit(functools.partial(_map_rows, by_action, micro=micro))
  values = jax.jit(functools.partial(_map_rows, values, micro=micro))

  def run(params: Any, reference: Any, rollout: types.Rollout) -> Assessment:
    critic = params["value"]
    head = None if "trunk" in critic else critic["head"]
    logprobs_BT, values_BT = by_action((params["policy"], head), rollout)
    reference_BT, _ = by_action((reference, head), rollout)
    if head is None:
      values_BT = values(critic, rollout)
    return Assessment(
      logprobs_BT=logprobs_BT,
      reference_logprobs_BT=reference_BT,
      values_BT=values_BT,
    )

  return run


def score(ppo: PPO) -> Callable[..., tuple[types.Experience, Metrics]]:
  """`run(rollout, assessment, scores_B)`: rewards, advantages, returns."""
  return jax.jit(functools.partial(_score, ppo=ppo))


def _score(rollout, assessment, scores_B, *, ppo):
  mask_BT = rollout.mask_BT
  rewards_BT, kl_BT = advantages.kl_penalised(
    scores_B,
    assessment.logprobs_BT,
    assessment.reference_logprobs_BT,
    mask_BT,
    kl_coef=ppo.kl_coef,
  )
  advantages_BT, returns_BT = advantages.gae(
    rewards_BT,
    assessment.values_BT,
    mask_BT,
    gamma=ppo.gamma,
    lam=ppo.lam,
  )
  explained = masked.explained_variance(
    returns_BT, assessment.values_BT, mask_BT
  )
  sampler_gap_BT = jnp.abs(rollout.logprobs_BT - assessment.logprobs_BT)
  metrics = {
    "reward/mean": _mean(scores_B),
    "kl": _mean(jnp.sum(kl_BT, axis=1)),
    "value/mean": _masked_mean(assessment.values_BT, mask_BT),
    "value/explained_variance": _single(explained),
    "response/length": _mean(rollout.response_lengths_B),
    "response/ended": _mean(rollout.ended_B),
    "sampler_gap": _masked_mean(sampler_gap_BT, mask_BT),
  }
  if ppo.whiten:
    advantages_BT = masked.whiten(advantages_BT, mask_BT)
  experience = types.Experience(
    rollout=rollout,
    logprobs_BT=assessment.logprobs_BT,
    values_BT=assessment.values_BT,
    advantages_BT=advantages_BT,
    returns_BT=returns_BT,
  )
  return jax.tree.map(partition.pin, experience), metrics


def ppo_loss(
  logprobs_BT: jax.Array,
  values_BT: jax.Array,
  experience: types.Experience,
  *,
  ppo: PPO,
  rows: chex.Numeric,
) -> tuple[jax.Array, Metrics]:
  """Policy loss + vf_coef x value loss of some rows of a minibatch of `rows`.

  Each row's token losses are averaged over its actions, then rows over the
  minibatch (paper equation 7 as the released code computes it).
  """
  mask_BT = experience.rollout.mask_BT
  # Masked slots get ratio 1: `where` after the exp would not save gradients.
  logprobs_BT = jnp.where(mask_BT, logprobs_BT, 0.0)
  old_logprobs_BT = jnp.where(mask_BT, experience.logprobs_BT, 0.0)
  policy_BT = losses.clipped_policy(
    logprobs_BT, old_logprobs_BT, experience.advantages_BT, clip=ppo.clip
  )
  value_BT = losses.clipped_value(
    values_BT, experience.values_BT, experience.returns_BT, clip=ppo.value_clip
  )
  policy_loss = losses.sequence_mean(policy_BT, mask_BT)
  value_loss = losses.sequence_mean(value_BT, mask_BT)
  log_ratio_BT = logprobs_BT - old_logprobs_BT
  ratio_BT = jnp.exp(log_ratio_BT)
  count = jnp.float32(mask_BT.shape[0])
  metrics = {
    "policy/loss": types.Mean(total=policy_loss, count=count),
    "value/loss": types.Mean(total=value_loss, count=count),
    "ratio/mean": _masked_mean(ratio_BT, mask_BT),
    "ratio/kl": _masked_mean(ratio_BT - 1.0 - log_ratio_BT, mask_BT),
    "clip_fraction": _masked_mean(jnp.abs(ratio_BT - 1.0) > ppo.clip, mask_BT),
  }
  return (policy_loss + ppo.vf_coef * value_loss) / rows, metrics


def ppo_update(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  ppo: PPO,
  *,
  logit_chunk: int = 1024,
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """`update(state, experience, key)`: all epochs and minibatches in one jit.

  At the first minibatch the parameters are still those that assessed the
  rollout, so its old log-probs are taken from the very forward that is
  differentiated: the ratio is exactly 1 in any precision. How far the two
  forwards are apart is the metric `old_logprob_gap`, so a mask or temperature
  that differs between them still shows.
  """

  def loss_fn(params, rows_experience, *, first):
    policy, critic = params["policy"], params["value"]
    rollout = rows_experience.rollout
    hidden_BTD = _response_hidden(networks, policy["trunk"], rollout)
    logprobs_BT, entropies_BT = _token_logprobs(
      networks, policy, hidden_BTD, rollout, ppo, logit_chunk
    )
    if "trunk" in critic:
      hidden_BTD = _response_hidden(networks, critic["trunk"], rollout)
    values_BT = networks.values(critic["head"], hidden_BTD)
    now_BT = jax.lax.stop_gradient(logprobs_BT)
    gap_BT = jnp.abs(now_BT - rows_experience.logprobs_BT)
    rows_experience = rows_experience.replace(
      logprobs_BT=jnp.where(first, now_BT, rows_experience.logprobs_BT)
    )
    loss, metrics = ppo_loss(
      logprobs_BT,
      values_BT,
      rows_experience,
      ppo=ppo,
      rows=ppo.minibatch_size,
    )
    mask_BT = rollout.mask_BT
    metrics["entropy"] = _masked_mean(entropies_BT, mask_BT)
    metrics["old_logprob_gap"] = _masked_mean(gap_BT, mask_BT & first)
    metrics["ratio/first_deviation"] = _masked_mean(
      jnp.abs(jnp.exp(now_BT - rows_experience.logprobs_BT) - 1.0),
      mask_BT & first,
    )
    return loss, metrics

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, experience, key):
    batch = experience.advantages_BT.shape[0]
    orders_EB = jax.vmap(lambda k: jax.random.permutation(k, batch))(
      jax.random.split(key, ppo.ppo_epochs)
    )
    minibatches = orders_EB.reshape(-1, ppo.minibatch_size)

    def one(state, xs):
      indices, first = xs
      rows = jax.tree.map(lambda x: partition.pin(x[indices]), experience)
      grads, metrics = _gradient(
        functools.partial(loss_fn, first=first),
        state.params,
        rows,
        ppo.micro_batch_size,
      )
      return _apply(optimizer, state, grads, metrics)

    first = jnp.arange(minibatches.shape[0]) == 0
    state, metrics = jax.lax.scan(one, state, (minibatches, first))
    return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

  return update


# Shared ----------------------------------------------------------------------


def _response_hidden(networks, trunk, rollout):
  """The hidden rows that predict the response, from one full forward."""
  tokens_BS = sequences.join(
    rollout.prompt_BP,
    rollout.prompt_lengths_B,
    rollout.response_BT,
    rollout.response_lengths_B,
  )
  hidden_BSD = networks.hidden(trunk, tokens_BS, rollout.lengths_B)
  return sequences.predicting(
    hidden_BSD, rollout.prompt_lengths_B, rollout.response_BT.shape[1]
  )


def _token_logprobs(networks, policy, hidden_BTD, rollout, ppo, chunk):
  return logprobs.of_tokens(
    functools.partial(networks.logits, policy),
    hidden_BTD,
    rollout.response_BT,
    temperature=ppo.temperature,
    chunk=chunk,
  )


def _split(tree, micro: int):
  """Rows as [micro-batches, micro, ...]; each takes rows of every device."""

  def one(x):
    batches = x.shape[0] // micro
    return x.reshape(micro, batches, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(one, tree)


def _map_rows(function, params, rows, *, micro: int):
  """function(params, rows), a micro-batch at a time."""
  size = jax.tree.leaves(rows)[0].shape[0]
  if micro >= size:
    return function(params, rows)
  out = jax.lax.map(functools.partial(function, params), _split(rows, micro))
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:]), out
  )


def _gradient(loss_fn, params, rows, micro: int):
  """Gradient and metrics of a sum over rows, a micro-batch at a time."""
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if micro >= jax.tree.leaves(rows)[0].shape[0]:
    return grad_fn(params, rows)
  micro_batches = _split(rows, micro)

  def add(total, rows):
    return jax.tree.map(jnp.add, total, grad_fn(params, rows)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(
      grad_fn, params, jax.tree.map(lambda x: x[0], micro_batches)
    ),
  )
  total, _ = jax.lax.scan(add, zeros, micro_batches)
  return total


def _apply(optimizer, state, grads, metrics):
  """One optimizer update; a non-finite gradient changes nothing."""
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updated = types.TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )
  state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, state
  )
  metrics = dict(metrics)
  metrics["grad_norm"] = _single(norm)
  metrics["skipped_updates"] = _single(~finite)
  return state, metrics


def _single(x) -> types.Mean:
  return types.Mean(total=jnp.float32(x), count=jnp.float32(1))


def _mean(x) -> types.Mean:
  return types.Mean(
    total=jnp.sum(x, dtype=jnp.float32), count=jnp.float32(x.size)
  )


def _masked_mean(x, mask) -> types.Mean:
  return types.Mean(
    total=masked.total(x.astype(jnp.float32), mask),
    count=jnp.sum(mask, dtype=jnp.float32),
  )
