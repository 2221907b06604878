"""Objectives of policy optimization: LossInputs to a loss and its metrics.

An objective is a function of one dataclass. It sees some rows of a minibatch
and returns what they add to the minibatch's loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import means
from reft_jax.models import struct
from reft_jax.ops import kl, losses


@struct.dataclass
class LossInputs:
  """Some rows of a minibatch, by action; B rows, T response slots.

  Log-probs are 0 where the mask is false, so that a ratio there is 1: a
  `where` after the exp would not save the gradient.

  Attributes:
    logprobs_BT: of the policy that is trained; gradients flow through these.
    old_logprobs_BT: of the policy that sampled.
    reference_logprobs_BT: of the policy that training started from.
    advantages_BT: of the actions.
    entropies_BT: of the policy that is trained, nats.
    mask_BT: the actions that are trained on.
    weights_BT: of each action in the minibatch's loss (`losses.weights`).
    kl_coef: cost of a nat of KL to the reference.
    row_share: these rows as a share of the minibatch's.
    values_BT: of the critic that is trained; None without one.
    old_values_BT: of the critic when the rollout was scored.
    returns_BT: what the critic is to predict.
  """

  logprobs_BT: chex.Array
  old_logprobs_BT: chex.Array
  reference_logprobs_BT: chex.Array
  advantages_BT: chex.Array
  entropies_BT: chex.Array
  mask_BT: chex.Array
  weights_BT: chex.Array
  kl_coef: chex.Numeric
  row_share: chex.Numeric
  values_BT: Any = None
  old_values_BT: Any = None
  returns_BT: Any = None


Objective = Callable[[LossInputs], tuple[jax.Array, means.Metrics]]


def build(config: schema.ReftConfig) -> Objective:
  """The objective that the settings ask for."""
  return functools.partial(clipped, config=config)


def clipped(
  inputs: LossInputs, *, config: schema.ReftConfig
) -> tuple[jax.Array, means.Metrics]:
  """PPO's clipped surrogate (paper section 3.2), with what can join it.

  policy loss + vf_coef x value loss + kl_coef x KL (kl_in=loss)
  - entropy_coef x entropy, each a sum over actions with `weights_BT`.
  """
  mask_BT = inputs.mask_BT
  log_ratio_BT = inputs.logprobs_BT - inputs.old_logprobs_BT
  ratio_BT = jnp.exp(log_ratio_BT)
  clipped_BT = losses.clip_ratio(
    ratio_BT, clip=config.clip, clip_high=config.clip_high
  )
  metrics = {
    "ratio/mean": means.over_mask(ratio_BT, mask_BT),
    "ratio/kl": means.over_mask(ratio_BT - 1.0 - log_ratio_BT, mask_BT),
    "clip_fraction": means.over_mask(clipped_BT != ratio_BT, mask_BT),
    "entropy": means.over_mask(inputs.entropies_BT, mask_BT),
  }

  def weighted(name: str, losses_BT: jax.Array) -> jax.Array:
    loss = losses.weighted(losses_BT, inputs.weights_BT)
    metrics[name] = types.Mean(total=loss, count=jnp.float32(inputs.row_share))
    return loss

  loss = weighted(
    "policy/loss",
    losses.clipped_policy(
      ratio_BT,
      inputs.advantages_BT,
      clip=config.clip,
      clip_high=config.clip_high,
    ),
  )
  if config.has_critic:
    value_BT = losses.clipped_value(
      inputs.values_BT,
      inputs.old_values_BT,
      inputs.returns_BT,
      clip=config.value_clip,
    )
    loss += config.vf_coef * weighted("value/loss", value_BT)
  if config.kl_in == "loss":
    kl_BT = kl.ESTIMATORS[config.kl_estimate](
      inputs.logprobs_BT, inputs.reference_logprobs_BT
    )
    loss += inputs.kl_coef * weighted("policy/kl_loss", kl_BT)
  if config.entropy_coef:
    loss -= config.entropy_coef * losses.weighted(
      inputs.entropies_BT, inputs.weights_BT
    )
  return loss, metrics
