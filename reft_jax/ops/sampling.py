"""Sampling tokens by inverse CDF, with one uniform number per row and step.

A row's key is `fold_in(fold_in(key, request), step)`. It does not depend on the
row's place in the batch, the batch size or the devices.
"""

import jax
import jax.numpy as jnp

_BLOCK = 128


def row_keys(key: jax.Array, requests_B: jax.Array) -> jax.Array:
  """One key per request."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, requests_B)


def uniforms(keys_B: jax.Array, step: jax.Array) -> jax.Array:
  """One number in [0, 1) per row for this step."""

  def sample(key: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, step))

  return jax.vmap(sample)(keys_B)


def likeliest(logits_BV: jax.Array, k: int) -> jax.Array:
  """A row's k largest logits and those equal to the k-th; -inf elsewhere."""
  kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
  return jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)


def inverse_cdf(logits_BV: jax.Array, uniforms_B: jax.Array) -> jax.Array:
  """The first token whose cumulative probability exceeds the uniform number.

  Two levels: cumulative sums choose a block of the vocabulary, then a token in
  it. This is twice as accurate in fp32 as one long cumulative sum, and needs no
  V random numbers per row as Gumbel-argmax does. Tokens of probability 0 are
  never sampled.
  """
  batch, vocabulary = logits_BV.shape
  probs_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)
  probs_BGK = jnp.pad(probs_BV, ((0, 0), (0, -vocabulary % _BLOCK))).reshape(
    batch, -1, _BLOCK
  )
  blocks_BG = jnp.sum(probs_BGK, axis=-1)
  target_B = uniforms_B * jnp.sum(blocks_BG, axis=-1)
  block_B, before_B = _first_above(blocks_BG, target_B)
  inside_BK = jnp.take_along_axis(probs_BGK, block_B[:, None, None], axis=1)
  rest_B = jnp.maximum(target_B - before_B, 0.0)
  token_B, _ = _first_above(inside_BK[:, 0], rest_B)
  return (block_B * _BLOCK + token_B).astype(jnp.int32)


def _first_above(
  masses_BK: jax.Array, target_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The first index whose cumulative sum exceeds target, and the sum before it.

  Rounding may put the target above the last sum; then it is the last index with
  any mass.
  """
  sums_BK = jnp.cumsum(masses_BK, axis=-1)
  index_B = jnp.sum(sums_BK <= target_B[:, None], axis=-1)
  slots_K = jnp.arange(masses_BK.shape[1])
  last_B = jnp.max(jnp.where(masses_BK > 0, slots_K[None, :], 0), axis=-1)
  index_B = jnp.minimum(index_B, last_B)
  before_BK = sums_BK - masses_BK
  before_B = jnp.take_along_axis(before_BK, index_B[:, None], axis=-1)[:, 0]
  return index_B, before_B
