"""The key-value cache of cached decoding."""

import jax
import jax.numpy as jnp

from reft_jax.models import partition, struct


@struct.dataclass
class KVCache:
  """Keys and values of a batch of prompts and of their growing responses.

  It has two parts so that all rows write a new token to the same column of the
  response part, whatever the lengths of their prompts: one cheap
  dynamic_update_slice instead of a scatter. Arrays are head-major, in the
  compute dtype; each tuple has one array a layer.
  """

  # [B, K, P, H]; columns from a row's prompt length on are padding.
  prompt_k: tuple[jax.Array, ...]
  prompt_v: tuple[jax.Array, ...]
  # [B, K, T, H]; column t belongs to response token t.
  response_k: tuple[jax.Array, ...]
  response_v: tuple[jax.Array, ...]
  prompt_lengths_B: jax.Array  # int32.


def pinned(cache: KVCache) -> KVCache:
  """The cache, sharded over rows and heads (partition.pin_heads)."""
  return jax.tree.map(
    lambda x: partition.pin_heads(x) if x.ndim == 4 else partition.pin(x), cache
  )


def repeat(cache: KVCache, n: int) -> KVCache:
  """Repeats each row n times, next to each other: n samples of a prompt."""
  return jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), cache)
