"""Log-probabilities of chosen tokens, without a batch x length x vocabulary.

The head runs on a chunk of rows at a time and each chunk is recomputed in the
backward pass, so the largest array is chunk x V in both directions.
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
    logits_fn: the language-model head, hidden_CD -> logits_CV.
    hidden_BTD: the hidden rows that predict `tokens_BT`.
    tokens_BT: the tokens chosen.
    temperature: what the sampler divided the logits by.
    chunk: rows for which logits exist at a time.

  Returns:
    `(logprobs_BT, entropies_BT)`.
  """
  chex.assert_equal_shape_prefix([hidden_BTD, tokens_BT], 2)
  shape = tokens_BT.shape
  hidden_RD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
  tokens_R = tokens_BT.reshape(-1)
  rows = tokens_R.shape[0]
  chunk = min(chunk, rows)
  filler = -rows % chunk
  hidden_CKD = jnp.pad(hidden_RD, ((0, filler), (0, 0))).reshape(
    -1, chunk, hidden_RD.shape[1]
  )
  tokens_CK = jnp.pad(tokens_R, (0, filler)).reshape(-1, chunk)

  @jax.checkpoint
  def one_chunk(carry, xs):
    hidden_KD, tokens_K = xs
    scaled_KV = logits_fn(hidden_KD).astype(jnp.float32) / temperature
    return carry, _gather_and_entropy(scaled_KV, tokens_K)

  _, (logprobs_CK, entropies_CK) = jax.lax.scan(
    one_chunk, None, (hidden_CKD, tokens_CK)
  )
  return (
    logprobs_CK.reshape(-1)[:rows].reshape(shape),
    entropies_CK.reshape(-1)[:rows].reshape(shape),
  )


def _gather_and_entropy(logits_KV, tokens_K):
  """Log p of the token, and H = logsumexp(z) - sum_v p_v z_v."""
  logsumexp_K = jax.nn.logsumexp(logits_KV, axis=-1)
  chosen_K = jnp.take_along_axis(logits_KV, tokens_K[:, None], axis=-1)[:, 0]
  mean_logit_K = jnp.sum(jax.nn.softmax(logits_KV) * logits_KV, axis=-1)
  return chosen_K - logsumexp_K, logsumexp_K - mean_logit_K
