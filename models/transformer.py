"""The decoder: tokens to hidden states.

One Block serves three passes that differ only in what a layer attends to: the
full forward, whose layers are scanned (one compiled layer, with
rematerialisation), and prefill and decode, whose layers are unrolled (each
reads its own arrays, where a scan would slice them out of a stack).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.models import cache as caches
from reft_jax.models import config as configs
from reft_jax.models import layers, partition, rope

REMAT_POLICIES = {
  "block": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

_INT = np.int32
_EVERYTHING = np.iinfo(_INT).max  # A window that hides nothing.


class Traits(NamedTuple):
  """What differs between the layers of one architecture; None: nothing does.

  Each holds a number for every layer, or for one.

  Attributes:
    window: how many tokens a query sees, itself included.
    rotation: which of the rotations of `_rotations` turns the layer.
    divisor: of the attention scores.
  """

  window: Any = None
  rotation: Any = None
  divisor: Any = None


def _traits(config: configs.ModelConfig) -> Traits:
  """The traits of all layers."""
  L = config.layers
  window = rotation = divisor = None
  if any(config.windows):
    window = np.array([size or _EVERYTHING for size in config.windows], _INT)
  local = config.local_rope is not None
  if config.rope is not None and (local or not all(config.rope_layers)):
    turns = config.rope_layers or (True,) * L
    windows = config.windows or (0,) * L
    rotation = np.array(
      [
        0 if not turned else 2 if local and size else 1
        for turned, size in zip(turns, windows, strict=True)
      ],
      _INT,
    )
  if config.scale_by_layer:
    divisor = np.arange(1, L + 1, dtype=_INT)
  return Traits(window, rotation, divisor)


class Block(layers.Layer):
  """Attention and feed-forward layer, each added to the stream."""

  @nn.compact
  def __call__(self, hidden_BSD, rotation, attend):
    """Returns hidden_BSD and what `attend` wants a cache to keep."""
    config = self.config
    shared = (config, self.compute_dtype, self.adapter_scale)
    attention = layers.Attention(*shared, name="attention")
    mlp = layers.Mlp(*shared, name="mlp")
    before = config.norm_place in ("pre", "both")
    after = config.norm_place in ("post", "both")

    def read(name, x_BSD):
      return self.norm(f"{name}_norm", x_BSD) if before else x_BSD

    def written(name, x_BSD):
      return self.norm(f"{name}_out_norm", x_BSD) if after else x_BSD

    def summed(name, x_BSD):
      together = config.norm_place == "sum"
      return self.norm(f"{name}_norm", x_BSD) if together else x_BSD

    input_BSD = read("attention", hidden_BSD)
    attended_BSD, kept = attention(input_BSD, rotation, attend)
    if config.parallel == "none":
      hidden_BSD += written("attention", attended_BSD)
      hidden_BSD = summed("attention", hidden_BSD)
      hidden_BSD += written("mlp", mlp(read("mlp", hidden_BSD)))
      hidden_BSD = summed("mlp", hidden_BSD)
    else:
      if config.parallel == "own_norms":
        input_BSD = read("mlp", hidden_BSD)
      hidden_BSD += attended_BSD + mlp(input_BSD)
    return partition.pin(hidden_BSD), kept


class Trunk(layers.Layer):
  """Embedding, scanned blocks and final norm: the full forward."""

  remat: str = "none"

  @nn.compact
  def __call__(self, tokens_BS, lengths_B):
    """Returns hidden_BSD, after the final norm.

    Rows are padded on the right, where causality alone keeps the padding out
    of sight; what comes out at padding is finite and means nothing. Where
    embeddings are projected, what comes out is as wide as they are.
    """
    config = self.config
    positions_1S = jnp.arange(tokens_BS.shape[1])[None, :]
    rotations = _rotations(config, positions_1S, lengths_B)

    def layer(block, hidden_BSD, traits):
      rotation = _pick(rotations, traits)
      attend = _attend_causally(config, traits)
      hidden_BSD, _ = block(hidden_BSD, rotation, attend)
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
      length=config.layers,
    )
    outside = {
      name: self.param(name, init, config.shape(name), jnp.float32)
      for name, init in _outside(config).items()
    }
    hidden_BSD = _embed(
      config, outside, tokens_BS, positions_1S, self.compute_dtype
    )
    block = Block(config, self.compute_dtype, self.adapter_scale, name="blocks")
    traits = jax.tree.map(jnp.asarray, _traits(config))
    hidden_BSD, _ = scan(block, hidden_BSD, traits)
    return _leave(config, outside, hidden_BSD)


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
  positions_1P = jnp.arange(tokens_BP.shape[1])[None, :]
  attends = [_attend_causally(config, traits) for traits in _each(config)]
  hidden_BPD, kept = _unrolled(
    config, trunk, tokens_BP, positions_1P, lengths_B, attends
  )
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
  return _leave(config, trunk, hidden_BD), caches.pinned(cache)


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
  P, T = cache.prompt_k[0].shape[2], cache.response_k[0].shape[2]
  lengths_B11 = cache.prompt_lengths_B[:, None, None]
  columns_11P = jnp.arange(P)[None, None, :]
  columns_11T = jnp.arange(T)[None, None, :]

  def attend_to(traits, prompt_k, prompt_v, response_k, response_v):
    prompt_mask_B1P = columns_11P < lengths_B11
    response_mask_11T = columns_11T <= step
    if traits.window is not None:
      prompt_mask_B1P &= columns_11P > positions_B1[:, :, None] - traits.window
      response_mask_11T &= columns_11T > step - traits.window

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
        scale=_score_scale(config, traits),
        cap=config.score_cap,
      )
      return attended_BN1H, (new_k, new_v)

    return attend

  attends = map(
    attend_to,
    _each(config),
    cache.prompt_k,
    cache.prompt_v,
    cache.response_k,
    cache.response_v,
  )
  hidden_B1D, kept = _unrolled(
    config,
    trunk,
    token_B[:, None],
    positions_B1,
    positions_B1[:, 0] + 1,
    attends,
  )
  response_k, response_v = zip(*kept, strict=True)
  cache = dataclasses.replace(
    cache, response_k=response_k, response_v=response_v
  )
  return _leave(config, trunk, hidden_B1D[:, 0]), cache


def _each(config) -> list[Traits]:
  """The traits of one layer after the other, as plain numbers."""
  traits = _traits(config)
  return [
    jax.tree.map(lambda x_L, layer=layer: int(x_L[layer]), traits)
    for layer in range(config.layers)
  ]


def _rotations(config, positions_BS, lengths_B) -> list[rope.Rotation]:
  """What may turn a layer: nothing at all, its rope, its local rope."""
  if config.rope is None:
    return []
  ropes = [config.rope]
  if config.local_rope is not None:
    ropes.append(config.local_rope)
  turns = [rope.rotation(config, r, positions_BS, lengths_B) for r in ropes]
  still = jax.tree.map(jnp.zeros_like, turns[0])
  return [still._replace(cos_BSR=still.cos_BSR + 1.0), *turns]


def _pick(rotations, traits) -> rope.Rotation | None:
  if not rotations:
    return None
  if traits.rotation is None:
    return rotations[1]
  if isinstance(traits.rotation, int):
    return rotations[traits.rotation]
  return jax.tree.map(
    lambda *each: jnp.stack(jnp.broadcast_arrays(*each))[traits.rotation],
    *rotations,
  )


def _score_scale(config, traits):
  scale = config.score_scale
  if scale is None:
    scale = config.head_size**-0.5
  return scale if traits.divisor is None else scale / traits.divisor


def _attend_causally(config, traits) -> layers.Attend:
  def attend(q_BNSH, k_BKSH, v_BKSH):
    S = q_BNSH.shape[2]
    mask_1SC = jnp.tri(S, dtype=bool)[None]
    if traits.window is not None:
      slots_S = jnp.arange(S)
      distance_SC = slots_S[:, None] - slots_S[None, :]
      mask_1SC &= (distance_SC < traits.window)[None]
    attended_BNSH = layers.grouped_attention(
      q_BNSH,
      [layers.Segment(k_BKSH, v_BKSH, mask_1SC)],
      scale=_score_scale(config, traits),
      cap=config.score_cap,
    )
    return attended_BNSH, (k_BKSH, v_BKSH)

  return attend


def _outside(config) -> dict[str, Callable[..., Any]]:
  """The trunk's parameters outside of its blocks, and how they start."""
  normal = nn.initializers.normal(config.init_scale)
  names = {config.embed_name: normal}
  if config.rope is None:
    names["positions_MD"] = normal
  if config.embed_size is not None:
    names["into_ED"] = names["out_of_DE"] = normal
  if config.final_norm and config.norm_affine:
    names["norm_D"] = nn.initializers.constant(1.0 - config.norm_offset)
    if config.norm == "layer":
      names["norm_bias_D"] = nn.initializers.zeros
  return names


def _embed(config, trunk, tokens_BS, positions_BS, compute_dtype):
  """Tokens to the stream; positions too, where they are learned.

  Rows are looked up before the cast: gradients of repeated tokens add up in
  fp32.
  """

  def row(name, index):
    return partition.gather(name, trunk[name])[index].astype(compute_dtype)

  hidden = row(config.embed_name, tokens_BS)
  if config.embed_scale != 1.0:
    hidden *= jnp.asarray(config.embed_scale, compute_dtype)
  if config.embed_size is not None:
    into_ED = partition.gather("into_ED", trunk["into_ED"])
    hidden = jnp.einsum("BSE,ED->BSD", hidden, into_ED.astype(compute_dtype))
  if config.rope is None:
    at_BSD = row("positions_MD", positions_BS + config.position_offset)
    hidden += jnp.broadcast_to(at_BSD, hidden.shape)
  return partition.pin(hidden)


def _unrolled(config, trunk, tokens_BS, positions_BS, lengths_B, attends):
  """Embedding and blocks; what each layer's `attend` keeps is a list."""
  compute_dtype = str(trunk[config.embed_name].dtype)
  rotations = _rotations(config, positions_BS, lengths_B)
  block = Block(config, compute_dtype)
  hidden_BSD = _embed(config, trunk, tokens_BS, positions_BS, compute_dtype)
  kept = []
  for params, traits, attend in zip(
    trunk["blocks"], _each(config), attends, strict=True
  ):
    rotation = _pick(rotations, traits)
    hidden_BSD, layer_kept = block.apply(
      {"params": params}, hidden_BSD, rotation, attend
    )
    kept.append(layer_kept)
  return hidden_BSD, kept


def _leave(config, trunk, hidden):
  """The last norm, and the way back to the embeddings' width."""
  if config.final_norm:
    hidden = layers.apply_norm(
      config, hidden, trunk.get("norm_D"), trunk.get("norm_bias_D")
    )
  if config.embed_size is None:
    return hidden
  out_of_DE = partition.gather("out_of_DE", trunk["out_of_DE"])
  return jnp.einsum("...D,DE->...E", hidden, out_of_DE.astype(hidden.dtype))
