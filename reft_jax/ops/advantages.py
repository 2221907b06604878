"""Rewards of actions, and advantages from a critic or within a group."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from reft_jax.ops import kl, masked


def terminal(
  scores_B: jax.Array, lengths_B: jax.Array, slots: int
) -> jax.Array:
  """A row's score at its last action; 0 elsewhere.

  The last action emits EOS, or is the last of a row cut at the length limit
  (paper section 4; released code `score_rew`).
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
  kl_coef: chex.Numeric,
  estimator: Callable[..., jax.Array] = kl.k1,
) -> tuple[jax.Array, jax.Array]:
  """Rewards r_t = score at the last action - kl_coef KL of action t.

  The KL is estimated from the sampled action: by the log-ratio (k1) in the
  released code, or by another estimator of `kl`. Deviation: paper equation 6
  has the KL of whole distributions.

  Returns:
    `(rewards_BT, kl_BT)`, both 0 outside the mask.
  """
  chex.assert_equal_shape([logprobs_BT, reference_logprobs_BT, mask_BT])
  kl_BT = jnp.where(mask_BT, estimator(logprobs_BT, reference_logprobs_BT), 0.0)
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

  A_t = d_t + gamma lam A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t. V and A
  are 0 after the last action, also in rows cut at the length limit (as in the
  released code). Returns are A_t + V_t.

  Deviation: float32; the released code accumulates in numpy float64.
  """
  chex.assert_equal_shape([rewards_BT, values_BT, mask_BT])
  values_BT = jnp.where(mask_BT, values_BT, 0.0)
  rewards_BT = jnp.where(mask_BT, rewards_BT, 0.0)
  next_values_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
  deltas_BT = rewards_BT + gamma * next_values_BT - values_BT

  def step(
    next_B: jax.Array, delta_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    advantage_B = delta_B + gamma * lam * next_B
    return advantage_B, advantage_B

  _, advantages_TB = jax.lax.scan(
    step, jnp.zeros_like(deltas_BT[:, 0]), deltas_BT.T, reverse=True
  )
  advantages_BT = jnp.where(mask_BT, advantages_TB.T, 0.0)
  return advantages_BT, advantages_BT + values_BT


def grpo(scores_QG: jax.Array, costs_QG: chex.Numeric = 0.0) -> jax.Array:
  """(r - mean) / (std + 1e-4), over the G answers to each of Q questions.

  DeepSeekMath (Shao et al. 2024), section 4.1.2; the standard deviation has
  Bessel's correction and trl's offset. Costs are centred but not divided: in
  groups of equal scores, division would amplify their noise.
  """
  std_Q1 = jnp.std(scores_QG, axis=1, keepdims=True, ddof=1)
  costs_alone_QG = dr_grpo(jnp.zeros_like(scores_QG), costs_QG)
  return dr_grpo(scores_QG) / (std_Q1 + 1e-4) + costs_alone_QG


def dr_grpo(scores_QG: jax.Array, costs_QG: chex.Numeric = 0.0) -> jax.Array:
  """R - mean, undivided, so that easy questions weigh no more than others.

  Liu et al. 2025, "Understanding R1-Zero-Like Training".
  """
  rewards_QG = scores_QG - costs_QG
  # Relative to the first: a rounded mean would leave equal rewards not at 0.
  rewards_QG -= rewards_QG[:, :1]
  return rewards_QG - jnp.mean(rewards_QG, axis=1, keepdims=True)


def rloo(scores_QG: jax.Array, costs_QG: chex.Numeric = 0.0) -> jax.Array:
  """R - the mean of the other answers' rewards (Ahmadian et al. 2024).

  Equal to (r - mean) G / (G - 1). The baseline is unbiased: it does not depend
  on the answer itself.
  """
  group = scores_QG.shape[1]
  return dr_grpo(scores_QG, costs_QG) * (group / (group - 1))


GROUP_RELATIVE = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def of_groups(
  scores_B: jax.Array,
  rewards_BT: jax.Array,
  mask_BT: jax.Array,
  *,
  group: int,
  relative: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """A row's advantage in its group, the same for all actions of the row.

  A row's reward is the undiscounted sum over its actions, so it includes a KL
  penalty (as in RLOO).

  Args:
    scores_B: the answers' scores; rows of a group are consecutive.
    rewards_BT: each action's score minus its cost.
    mask_BT: the actions taken.
    group: G, at least 2; B is a multiple of it.
    relative: (scores_QG, costs_QG) -> advantages_QG, one of GROUP_RELATIVE.
  """
  chex.assert_equal_shape([rewards_BT, mask_BT])
  scores_QG = scores_B.reshape(-1, group)
  rewards_QG = masked.total(rewards_BT, mask_BT, axis=1).reshape(-1, group)
  advantages_B1 = relative(scores_QG, scores_QG - rewards_QG).reshape(-1, 1)
  return jnp.where(mask_BT, advantages_B1, 0.0)


def with_signal(scores_B: jax.Array, *, group: int) -> jax.Array:
  """True in the rows of groups with different scores: others have no gradient.

  DAPO's dynamic sampling (Yu et al. 2025, section 3.2), without sampling
  replacements.
  """
  scores_QG = scores_B.reshape(-1, group)
  differ_Q = jnp.max(scores_QG, axis=1) > jnp.min(scores_QG, axis=1)
  return jnp.repeat(differ_Q, group)
