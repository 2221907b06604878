"""Losses, token by token, and the way tokens add up to one number."""

import chex
import jax
import jax.numpy as jnp

from reft_jax.ops import masked


def clipped_policy(
  logprobs_BT: jax.Array,
  old_logprobs_BT: jax.Array,
  advantages_BT: jax.Array,
  *,
  clip: float,
  clip_high: float | None = None,
) -> jax.Array:
  """PPO's clipped surrogate: max(-A r, -A clip(r, 1-e, 1+e)), r = p / p_old.

  Masked tokens are the caller's to leave out; make their log-probabilities
  finite first, since `where` after an exp does not save the gradient.
  """
  chex.assert_equal_shape([logprobs_BT, old_logprobs_BT, advantages_BT])
  ratio_BT = jnp.exp(logprobs_BT - old_logprobs_BT)
  clipped_BT = clip_ratio(ratio_BT, clip=clip, clip_high=clip_high)
  return jnp.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)


def clip_ratio(
  ratio_BT: jax.Array, *, clip: float, clip_high: float | None = None
) -> jax.Array:
  """clip(r, 1 - clip, 1 + clip_high), the latter `clip` where it is None.

  DAPO's clip-higher leaves unlikely actions more room to become likely (Yu et
  al. 2025, section 3.1).
  """
  high = clip if clip_high is None else clip_high
  return jnp.clip(ratio_BT, 1.0 - clip, 1.0 + high)


def clip_to(
  values_BT: jax.Array, old_BT: jax.Array, *, clip: float
) -> jax.Array:
  """Values kept within `clip` of the old ones."""
  return jnp.clip(values_BT, old_BT - clip, old_BT + clip)


def clipped_value(
  values_BT: jax.Array,
  old_values_BT: jax.Array,
  returns_BT: jax.Array,
  *,
  clip: float,
) -> jax.Array:
  """max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2, as trl's.

  Deviation: the paper prints clip(V - R, A - e, A + e); the released code
  computes this.
  """
  chex.assert_equal_shape([values_BT, old_values_BT, returns_BT])
  near_BT = clip_to(values_BT, old_values_BT, clip=clip)
  return 0.5 * jnp.maximum(
    (values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2
  )


AGGREGATIONS = ("sequence_mean", "token_mean", "constant")


def weights(
  mask_BT: jax.Array, aggregation: str, slots: int | None = None
) -> jax.Array:
  """What each token's loss counts for in the loss of a minibatch.

  Weights are taken of the *whole* minibatch and travel with its rows, so that
  micro-batches and devices add up to the same number. A row without actions
  is no row.

  Args:
    mask_BT: the actions of all of the minibatch's rows.
    aggregation: one of AGGREGATIONS: "sequence_mean", the mean over rows of
      each row's mean (paper equation 7 as the released code computes it);
      "token_mean", the mean over actions (DAPO, Yu et al. 2025); "constant",
      the sum over actions by rows x slots, whatever their lengths (Dr. GRPO,
      Liu et al. 2025).
    slots: those of "constant"; T of the mask if None.
  """
  actions_B1 = jnp.sum(mask_BT, axis=1, keepdims=True)
  rows = jnp.sum(actions_B1 > 0)
  match aggregation:
    case "sequence_mean":
      size_B1 = actions_B1 * rows
    case "token_mean":
      size_B1 = jnp.sum(actions_B1, keepdims=True)
    case "constant":
      size_B1 = (rows * (slots or mask_BT.shape[1]))[None, None]
  return jnp.where(mask_BT, 1.0 / jnp.maximum(size_B1, 1), 0.0)


def weighted(losses_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
  """The sum of weight x loss; a loss of weight 0 may be anything."""
  return masked.total(weights_BT * losses_BT, weights_BT > 0)
