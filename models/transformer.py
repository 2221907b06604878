"""The decoder: tokens to hidden states.

One Block serves three passes that differ only in what a layer attends to: the
full forward, whose layers are scanned (one compiled layer, with
rematerialisation), and prefill and decode, whose layers are unrolled (each
reads its own arrays, where a scan would slice them out of a stack).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reft_jax.models import cache as caches
from reft_jax.models import config as configs
from reft_jax.models import layers, partition, rope

REMAT_POLICIES = {
  "block": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(layers.Layer):
  """One pre-norm layer."""

  @nn.compact
  def __call__(self, hidden_BSD, rotation, attend):
    """Returns hidden_BSD and what `attend` wants a cache to keep."""
    attention = layers.Attention(
      self.config, self.compute_dtype, name="attention"
    )
    mlp = layers.Mlp(self.config, self.compute_dtype, name="mlp")
    attended_BSD, kept = attention(
      self.norm("attention_norm_D", hidden_BSD), rotation, attend
    )
    hidden_BSD += attended_BSD
    hidden_BSD += mlp(self.norm("mlp_norm_D", hidden_BSD))
    return partition.pin(hidden_BSD), kept


class Trunk(layers.Layer):
  """Embedding, scanned blocks and final norm: the full forward."""

  remat: str = "none"

  @nn.compact
  def __call__(self, tokens_BS, lengths_B):
    """Returns hidden_BSD, after the final norm.

    Rows are padded on the right, where causality alone keeps the padding out
    of sight; what comes out at padding is finite and means nothing.
    """
    rotation = _rotation(self.config, tokens_BS, lengths_B)

    def layer(block, hidden_BSD, _):
      hidden_BSD, _ = block(hidden_BSD, rotation, _attend_causally)
      return hidden_BSD, None

    if self.remat != "none":
      # Inside a scan nothing can be merged away, so no barrier is needed.
      layer = nn.remat(
        layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False
      )
    scan = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.config.layers,
    )
    embed_VD = self.param(
      "embed_VD",
      nn.initializers.normal(self.config.init_scale),
      self.config.shape("embed_VD"),
      jnp.float32,
    )
    hidden_BSD = _embed(embed_VD, tokens_BS, self.compute_dtype)
    block = Block(self.config, self.compute_dtype, name="blocks")
    hidden_BSD, _ = scan(block, hidden_BSD, None)
    return self.norm("norm_D", hidden_BSD)


def prefill(
  config: configs.ModelConfig,
  trunk: dict[str, Any],
  tokens_BP: jax.Array,
  lengths_B: jax.Array,
  response_tokens: int,
) -> tuple[jax.Array, caches.KVCache]:
  """Reads the prompts.

  Args:
    config: the architecture.
    trunk: published parameters, whose dtype is the compute dtype.
    tokens_BP: prompts, padded on the right.
    lengths_B: their lengths, at least 1.
    response_tokens: T, the columns to allocate for the response.

  Returns:
    hidden_BD at each row's last prompt token, and the cache.
  """
  rotation = _rotation(config, tokens_BP, lengths_B)
  attends = [_attend_causally] * config.layers
  hidden_BPD, kept = _unrolled(config, trunk, tokens_BP, rotation, attends)
  last_B11 = (lengths_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BPD, last_B11, axis=1)[:, 0]
  prompt_k, prompt_v = zip(*kept, strict=True)

  def room():
    B, K, _, H = prompt_k[0].shape
    shape = (B, K, response_tokens, H)
    return tuple(jnp.zeros(shape, k.dtype) for k in prompt_k)

  cache = caches.KVCache(
    prompt_k=prompt_k,
    prompt_v=prompt_v,
    response_k=room(),
    response_v=room(),
    prompt_lengths_B=lengths_B,
  )
  return _final_norm(config, trunk, hidden_BD), cache


def decode(
  config: configs.ModelConfig,
  trunk: dict[str, Any],
  cache: caches.KVCache,
  token_B: jax.Array,
  step: jax.Array,
) -> tuple[jax.Array, caches.KVCache]:
  """Reads one more response token of each row.

  Args:
    config: the architecture.
    trunk: published parameters, whose dtype is the compute dtype.
    cache: of the prompt and the first `step` response tokens.
    token_B: response token number `step`.
    step: int32 scalar, the response column that all rows write.

  Returns:
    hidden_BD at that token, and the cache with it.
  """
  positions_B1 = (cache.prompt_lengths_B + step)[:, None]
  rotation = rope.rotation(config, positions_B1, positions_B1[:, 0] + 1)
  P, T = cache.prompt_k[0].shape[2], cache.response_k[0].shape[2]
  lengths_B11 = cache.prompt_lengths_B[:, None, None]
  prompt_mask_B1P = jnp.arange(P)[None, None, :] < lengths_B11
  response_mask_11T = (jnp.arange(T) <= step)[None, None, :]

  def attend_to(prompt_k, prompt_v, response_k, response_v):
    def attend(q_BN1H, k_BK1H, v_BK1H):
      start = (0, 0, step, 0)
      new_k = jax.lax.dynamic_update_slice(response_k, k_BK1H, start)
      new_v = jax.lax.dynamic_update_slice(response_v, v_BK1H, start)
      attended_BN1H = layers.grouped_attention(
        q_BN1H,
        [
          layers.Segment(prompt_k, prompt_v, prompt_mask_B1P),
          layers.Segment(new_k, new_v, response_mask_11T),
        ],
      )
      return attended_BN1H, (new_k, new_v)

    return attend

  attends = map(
    attend_to,
    cache.prompt_k,
    cache.prompt_v,
    cache.response_k,
    cache.response_v,
  )
  hidden_B1D, kept = _unrolled(
    config, trunk, token_B[:, None], rotation, attends
  )
  response_k, response_v = zip(*kept, strict=True)
  cache = cache.replace(response_k=response_k, response_v=response_v)
  return _final_norm(config, trunk, hidden_B1D[:, 0]), cache


def _rotation(config, tokens_BS, lengths_B):
  positions_1S = jnp.arange(tokens_BS.shape[1])[None, :]
  return rope.rotation(config, positions_1S, lengths_B)


def _attend_causally(q_BNSH, k_BKSH, v_BKSH):
  S = q_BNSH.shape[2]
  mask_1SC = jnp.tri(S, dtype=bool)[None]
  segment = layers.Segment(k_BKSH, v_BKSH, mask_1SC)
  return layers.grouped_attention(q_BNSH, [segment]), (k_BKSH, v_BKSH)


def _embed(embed_VD, tokens_BS, compute_dtype):
  # Looked up before the cast: gradients of repeated tokens add up in fp32.
  embed_VD = partition.gather("embed_VD", embed_VD)
  return partition.pin(embed_VD[tokens_BS].astype(compute_dtype))


def _unrolled(config, trunk, tokens_BS, rotation, attends):
  """Embedding and blocks; what each layer's `attend` keeps is a list."""
  compute_dtype = str(trunk["embed_VD"].dtype)
  block = Block(config, compute_dtype)
  hidden_BSD = _embed(trunk["embed_VD"], tokens_BS, compute_dtype)
  kept = []
  for params, attend in zip(trunk["blocks"], attends, strict=True):
    hidden_BSD, layer_kept = block.apply(
      {"params": params}, hidden_BSD, rotation, attend
    )
    kept.append(layer_kept)
  return hidden_BSD, kept


def _final_norm(config, trunk, hidden):
  return layers.rms_norm(hidden, trunk["norm_D"], config.norm_eps)
