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
) -> jax.Array:
  """PPO's clipped surrogate: max(-A r, -A clip(r, 1-e, 1+e)), r = p / p_old.

  Masked tokens are the caller's to leave out; make their log-probabilities
  finite first, since `where` after an exp does not save the gradient.
  """
  chex.assert_equal_shape([logprobs_BT, old_logprobs_BT, advantages_BT])
  ratio_BT = jnp.exp(logprobs_BT - old_logprobs_BT)
  clipped_BT = jnp.clip(ratio_BT, 1.0 - clip, 1.0 + clip)
  return jnp.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)


def near(values_BT: jax.Array, old_BT: jax.Array, *, clip: float) -> jax.Array:
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
  near_BT = near(values_BT, old_values_BT, clip=clip)
  return 0.5 * jnp.maximum(
    (values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2
  )


def sequence_mean(losses_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """Sum over rows of each row's mean token loss (the paper's weighting).

  The caller divides by the number of rows of the *whole* minibatch, so that
  micro-batches and devices add up to the same number. Rows without actions
  count 0.
  """
  return jnp.sum(masked.mean(losses_BT, mask_BT, axis=1))
