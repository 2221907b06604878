"""The KL of a policy from its reference, estimated from sampled actions.

KL(p || p_ref) = E_p[log p - log p_ref], but only the log-probs of sampled
actions are known. Each estimator is a function of x = log p - log p_ref; its
mean over actions sampled from p is the KL or close to it (Schulman 2020,
"Approximating KL divergence").
"""

import jax
import jax.numpy as jnp


def k1(logprobs_BT: jax.Array, reference_logprobs_BT: jax.Array) -> jax.Array:
  """The log-ratio x: unbiased, of either sign (released code).

  As a loss it has no effect: its gradient's mean is 0.
  """
  return logprobs_BT - reference_logprobs_BT


def k2(logprobs_BT: jax.Array, reference_logprobs_BT: jax.Array) -> jax.Array:
  """x^2 / 2: biased but never negative.

  As a loss its gradient's mean is that of KL(p || p_ref).
  """
  return 0.5 * (logprobs_BT - reference_logprobs_BT) ** 2


def k3(logprobs_BT: jax.Array, reference_logprobs_BT: jax.Array) -> jax.Array:
  """exp(-x) - 1 + x: unbiased and never negative (GRPO's).

  As a loss its gradient's mean is that of the other KL, KL(p_ref || p).
  """
  difference_BT = reference_logprobs_BT - logprobs_BT
  return jnp.expm1(difference_BT) - difference_BT


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def adapted(
  coef: jax.Array, kl: jax.Array, *, target: float, horizon: int, rows: int
) -> jax.Array:
  """The penalty's next coefficient: larger if the KL is above its target.

  coef (1 + clip(kl / target - 1, -0.2, 0.2) rows / horizon), at least 0
  (Ziegler et al. 2019, section 2.2; trl's AdaptiveKLController).

  Args:
    coef: the present coefficient.
    kl: nats per response, the mean over a rollout.
    target: the KL to aim for, in the same nats.
    horizon: the responses that it takes to change the coefficient by a fifth.
    rows: the responses of the rollout.
  """
  error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
  return coef * jnp.maximum(1.0 + error * rows / horizon, 0.0)
