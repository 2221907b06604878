"""Rewards by action and generalized advantage estimation."""

import chex
import jax
import jax.numpy as jnp


def terminal(scores_B: jax.Array, lengths_B: jax.Array, slots: int):
  """A row's score, placed at its last action; 0 elsewhere.

  The last action is the one that emits EOS, or the last one of a row cut at
  the length limit (paper section 4; released code `score_rew`).
  """
  last_B1 = lengths_B[:, None] - 1
  is_last_BT = jnp.arange(slots)[None, :] == last_B1
  return jnp.where(is_last_BT, scores_B[:, None], 0.0)


def kl_penalised(
  scores_B: jax.Array,
  logprobs_BT: jax.Array,
  reference_logprobs_BT: jax.Array,
  mask_BT: jax.Array,
  *,
  kl_coef: float,
) -> tuple[jax.Array, jax.Array]:
  """Rewards r_t = score at the last action - kl_coef (log p - log p_ref).

  The penalty is the sampled log-ratio (k1), as in the released code.
  Deviation: paper equation 6 writes the KL of whole distributions.

  Returns:
    `(rewards_BT, kl_BT)`, both 0 outside the mask.
  """
  chex.assert_equal_shape([logprobs_BT, reference_logprobs_BT, mask_BT])
  kl_BT = jnp.where(mask_BT, logprobs_BT - reference_logprobs_BT, 0.0)
  score_BT = terminal(scores_B, jnp.sum(mask_BT, axis=1), mask_BT.shape[1])
  return score_BT - kl_coef * kl_BT, kl_BT


def gae(
  rewards_BT: jax.Array,
  values_BT: jax.Array,
  mask_BT: jax.Array,
  *,
  gamma: float,
  lam: float,
) -> tuple[jax.Array, jax.Array]:
  """Generalized advantages and returns (Schulman et al. 2016).

  A_t = d_t + gamma lam A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t, where V
  and A are 0 past the last action: a row cut at the length limit is treated
  as ended, as in the released code. Returns are A_t + V_t.

  Deviation: accumulated in float32 where the released code uses numpy float64.
  """
  chex.assert_equal_shape([rewards_BT, values_BT, mask_BT])
  values_BT = jnp.where(mask_BT, values_BT, 0.0)
  rewards_BT = jnp.where(mask_BT, rewards_BT, 0.0)
  next_values_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
  deltas_BT = rewards_BT + gamma * next_values_BT - values_BT

  def step(later_B, delta_B):
    advantage_B = delta_B + gamma * lam * later_B
    return advantage_B, advantage_B

  _, advantages_TB = jax.lax.scan(
    step, jnp.zeros_like(deltas_BT[:, 0]), deltas_BT.T, reverse=True
  )
  advantages_BT = jnp.where(mask_BT, advantages_TB.T, 0.0)
  return advantages_BT, advantages_BT + values_BT
