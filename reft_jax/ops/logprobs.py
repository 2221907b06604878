"""Log-probabilities of tokens, without an array of B x T x V logits.

The head runs on chunks of columns of all rows, so each device computes the
logits of its own rows. The backward pass recomputes each chunk, so the largest
array is chunk x V in both directions.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def of_tokens(
  logits_fn: Callable[[jax.Array], jax.Array],
  hidden_BTD: jax.Array,
  tokens_BT: jax.Array,
  *,
  temperature: float = 1.0,
  chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each token and entropy of its distribution, fp32 nats.

  log p(a) = z_a - logsumexp(z) with z = logits / temperature.

  Args:
    logits_fn: the language-model head, hidden_xD -> logits_xV.
    hidden_BTD: the hidden states that predict `tokens_BT`.
    tokens_BT: the tokens.
    temperature: the sampler's.
    chunk: the tokens with logits in memory at a time, over all devices; at
      least one per row.

  Returns:
    `(logprobs_BT, entropies_BT)`.
  """
  chex.assert_equal_shape_prefix([hidden_BTD, tokens_BT], 2)
  rows, slots = tokens_BT.shape
  width = min(max(chunk // rows, 1), slots)
  padding = -slots % width

  def split_columns(x_BT: jax.Array) -> jax.Array:
    """[chunks, B, width, ...]: every device keeps its rows in each chunk."""
    pads = ((0, 0), (0, padding)) + ((0, 0),) * (x_BT.ndim - 2)
    x_BCW = jnp.pad(x_BT, pads).reshape(rows, -1, width, *x_BT.shape[2:])
    return jnp.moveaxis(x_BCW, 1, 0)

  @jax.checkpoint
  def read_chunk(
    carry: None, xs: tuple[jax.Array, jax.Array]
  ) -> tuple[None, tuple[jax.Array, jax.Array]]:
    hidden_BWD, tokens_BW = xs
    scaled_BWV = logits_fn(hidden_BWD).astype(jnp.float32) / temperature
    return carry, _gather_and_entropy(scaled_BWV, tokens_BW)

  _, found = jax.lax.scan(
    read_chunk, None, (split_columns(hidden_BTD), split_columns(tokens_BT))
  )
  logprobs_BT, entropies_BT = (
    jnp.moveaxis(x_CBW, 0, 1).reshape(rows, -1)[:, :slots] for x_CBW in found
  )
  return logprobs_BT, entropies_BT


def _gather_and_entropy(
  logits_BWV: jax.Array, tokens_BW: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The log p of the token, and H = logsumexp(z) - sum_v p_v z_v."""
  logsumexp_BW = jax.nn.logsumexp(logits_BWV, axis=-1)
  chosen_BW = jnp.take_along_axis(logits_BWV, tokens_BW[..., None], axis=-1)
  mean_logit_BW = jnp.sum(jax.nn.softmax(logits_BWV) * logits_BWV, axis=-1)
  return chosen_BW[..., 0] - logsumexp_BW, logsumexp_BW - mean_logit_BW
