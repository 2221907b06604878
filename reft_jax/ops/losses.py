"""Losses per token, and their weights in the loss of a minibatch."""

import chex
import jax
import jax.numpy as jnp

from reft_jax.ops import masked


def clipped_policy(
  ratio_BT: jax.Array,
  advantages_BT: jax.Array,
  *,
  clip: float,
  clip_high: float | None = None,
) -> jax.Array:
  """PPO's clipped surrogate: max(-A r, -A clip(r, 1-e, 1+e)), r = p / p_old.

  Schulman et al. 2017, equation 7. The caller masks tokens, and makes their
  ratio finite first: `where` after an exp does not save the gradient.
  """
  chex.assert_equal_shape([ratio_BT, advantages_BT])
  clipped_BT = clip_ratio(ratio_BT, clip=clip, clip_high=clip_high)
  return jnp.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)


def clip_ratio(
  ratio_BT: jax.Array, *, clip: float, clip_high: float | None = None
) -> jax.Array:
  """clip(r, 1 - clip, 1 + clip_high); `clip_high` None means `clip`.

  DAPO's clip-higher lets unlikely actions become likely faster (Yu et al. 2025,
  section 3.1).
  """
  high = clip if clip_high is None else clip_high
  return jnp.clip(ratio_BT, 1.0 - clip, 1.0 + high)


def clip_to(
  values_BT: jax.Array, old_BT: jax.Array, *, clip: float
) -> jax.Array:
  """Values clipped to within `clip` of the old ones."""
  return jnp.clip(values_BT, old_BT - clip, old_BT + clip)


def clipped_value(
  values_BT: jax.Array,
  old_values_BT: jax.Array,
  returns_BT: jax.Array,
  *,
  clip: float,
) -> jax.Array:
  """max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2.

  As in the released code and trl. Deviation: the paper prints
  clip(V - R, A - e, A + e).
  """
  chex.assert_equal_shape([values_BT, old_values_BT, returns_BT])
  clipped_BT = clip_to(values_BT, old_values_BT, clip=clip)
  return 0.5 * jnp.maximum(
    (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
  )


AGGREGATIONS = ("sequence_mean", "token_mean", "constant")


def weights(
  mask_BT: jax.Array, aggregation: str, slots: int | None = None
) -> jax.Array:
  """The weight of each token in the loss of a minibatch.

  Weights come from the *whole* minibatch and travel with its rows, so the sum
  does not depend on micro-batches and devices. Rows without actions do not
  count.

  Args:
    mask_BT: the actions of all rows of the minibatch.
    aggregation: one of AGGREGATIONS: "sequence_mean", the mean over rows of
      each row's mean (paper equation 7 as computed by the released code);
      "token_mean", the mean over actions (DAPO, Yu et al. 2025); "constant",
      the sum over actions divided by rows x slots (Dr. GRPO, Liu et al. 2025).
    slots: the slots of "constant"; T of the mask if None.
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
  """The sum of weight x loss; losses of weight 0 may be anything, even nan."""
  return masked.total(weights_BT * losses_BT, weights_BT > 0)
