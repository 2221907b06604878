"""Sums, means, variances and whitening over the true entries of a mask."""

import chex
import jax
import jax.numpy as jnp


def total(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Sum of x where mask; masked entries may be anything, nan included."""
  chex.assert_equal_shape([x, mask])
  return jnp.sum(jnp.where(mask, x, 0), axis=axis)


def mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Mean of x where mask; 0 where the mask is empty."""
  count = jnp.sum(mask, axis=axis)
  return total(x, mask, axis) / jnp.maximum(count, 1)


def variance(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Variance with Bessel's correction, as trl's `masked_var`.

  Deviation: one or no true entry gives 0 where trl raises or returns nan.
  """
  centered = x - mean(x, mask)
  count = jnp.sum(mask)
  return total(centered**2, mask) / jnp.maximum(count - 1, 1)


def explained_variance(
  returns: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
  """1 - var(R - V) / var(R): 1 for a perfect critic, 0 for a constant one."""
  unexplained = variance(returns - values, mask)
  return 1.0 - unexplained / jnp.maximum(variance(returns, mask), 1e-8)


def whiten(
  x: jax.Array, mask: jax.Array, *, epsilon: float = 1e-8
) -> jax.Array:
  """X shifted and scaled to mean 0 and variance 1 over the mask.

  Arrays are global, so the statistics are those of the whole batch on any
  number of devices (`adv_whitening='global'` in the released code). Entries
  outside the mask are transformed too, as in the released code.
  """
  return (x - mean(x, mask)) * jax.lax.rsqrt(variance(x, mask) + epsilon)
