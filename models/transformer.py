"""The decoder: tokens to hidden states.

One Block serves three passes that differ only in what a layer attends to. The
full forward scans its layers: one compiled layer, with rematerialisation.
Prefill and decode unroll theirs: each layer reads its own arrays, where a scan
would slice them out of a stack.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
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

_EVERYTHING = np.iinfo(np.int32).max  # A window that hides nothing.


class Traits(NamedTuple):
  """What differs between the layers of an architecture; None: nothing does.

  Each field has one number for every layer, or that of one layer.
  """

  window: Any = None  # How many tokens a query attends to, itself included.
  rotation: Any = None  # The index of the layer's rotation in `_rotations`.
  divisor: Any = None  # Of the attention scores.


def _traits(config: configs.ModelConfig) -> Traits:
  """The traits of all layers."""
  L = config.layers
  window = rotation = divisor = None
  if any(config.windows):
    window = np.array([x or _EVERYTHING for x in config.windows], np.int32)
  has_local = config.local_rope is not None
  if config.rope is not None and (has_local or not all(config.rope_layers)):
    turns_L = np.array(config.rope_layers or (True,) * L)
    local_L = has_local & (np.array(config.windows or (0,) * L) > 0)
    rotation = np.where(turns_L, 1 + local_L, 0).astype(np.int32)
  if config.scale_by_layer:
    divisor = np.arange(1, L + 1, dtype=np.int32)
  return Traits(window, rotation, divisor)


class Block(layers.Layer):
  """Attention and feed-forward layer, each added to the stream."""

  @nn.compact
  def __call__(
    self,
    hidden_BSD: jax.Array,
    rotation: rope.Rotation | None,
    attend: layers.Attend,
  ) -> tuple[jax.Array, layers.KeysValues]:
    """Returns hidden_BSD, and the keys and values for a cache to keep."""
    config = self.config
    shared = (config, self.compute_dtype, self.adapter_scale)
    attention = layers.Attention(*shared, name="attention")
    mlp = layers.Mlp(*shared, name="mlp")

    def norm(name: str, x_BSD: jax.Array, *places: str) -> jax.Array:
      return self.norm(name, x_BSD) if config.norm_place in places else x_BSD

    input_BSD = norm("attention_norm", hidden_BSD, "pre", "both")
    attended_BSD, kept = attention(input_BSD, rotation, attend)
    if config.parallel == "none":
      hidden_BSD += norm("attention_out_norm", attended_BSD, "post", "both")
      hidden_BSD = norm("attention_norm", hidden_BSD, "sum")
      input_BSD = norm("mlp_norm", hidden_BSD, "pre", "both")
      hidden_BSD += norm("mlp_out_norm", mlp(input_BSD), "post", "both")
      hidden_BSD = norm("mlp_norm", hidden_BSD, "sum")
    else:
      if config.parallel == "own_norms":
        input_BSD = norm("mlp_norm", hidden_BSD, "pre")
      hidden_BSD += attended_BSD + mlp(input_BSD)
    return partition.pin(hidden_BSD), kept


class Trunk(layers.Layer):
  """Embedding, scanned blocks and final norm: the full forward."""

  remat: str = "none"

  @nn.compact
  def __call__(self, tokens_BS: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns hidden_BSD, after the final norm.

    Rows are padded on the right, so the causal mask alone hides the padding;
    results at padding are finite and meaningless. Where embeddings are
    projected, the results have the embeddings' width.
    """
    config = self.config
    positions_1S = jnp.arange(tokens_BS.shape[1])[None, :]
    rotations = _rotations(config, positions_1S, lengths_B)

    def layer(
      block: Block, hidden_BSD: jax.Array, traits: Traits
    ) -> tuple[jax.Array, None]:
      rotation = _pick(rotations, traits)
      attend = _attend_causally(config, traits)
      hidden_BSD, _ = block(hidden_BSD, rotation, attend)
      return hidden_BSD, None

    if self.remat != "none":
      # The scan already keeps XLA from merging the recomputation away.
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
    return _finish(config, outside, hidden_BSD)


def prefill(
  config: configs.ModelConfig,
  trunk: dict[str, Any],
  tokens_BP: jax.Array,
  lengths_B: jax.Array,
  response_tokens: int,
) -> tuple[jax.Array, caches.KVCache]:
  """As `networks.Networks.prefill`, of a published trunk."""
  positions_1P = jnp.arange(tokens_BP.shape[1])[None, :]
  attends = [_attend_causally(config, x) for x in _layer_traits(config)]
  hidden_BPD, kept = _unrolled(
    config, trunk, tokens_BP, positions_1P, lengths_B, attends
  )
  last_B11 = (lengths_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BPD, last_B11, axis=1)[:, 0]
  prompt_k, prompt_v = zip(*kept, strict=True)

  def empty() -> tuple[jax.Array, ...]:
    B, K, _, H = prompt_k[0].shape
    shape = (B, K, response_tokens, H)
    return tuple(jnp.zeros(shape, k.dtype) for k in prompt_k)

  cache = caches.KVCache(
    prompt_k=prompt_k,
    prompt_v=prompt_v,
    response_k=empty(),
    response_v=empty(),
    prompt_lengths_B=lengths_B,
  )
  return _finish(config, trunk, hidden_BD), caches.pinned(cache)


def decode(
  config: configs.ModelConfig,
  trunk: dict[str, Any],
  cache: caches.KVCache,
  token_B: jax.Array,
  step: jax.Array,
) -> tuple[jax.Array, caches.KVCache]:
  """As `networks.Networks.decode`, of a published trunk."""
  positions_B1 = (cache.prompt_lengths_B + step)[:, None]
  attends = [
    _attend_cached(config, traits, cache, layer, step)
    for layer, traits in enumerate(_layer_traits(config))
  ]
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
  return _finish(config, trunk, hidden_B1D[:, 0]), cache


def _layer_traits(config: configs.ModelConfig) -> list[Traits]:
  """The traits of each layer, as Python numbers."""
  traits = _traits(config)
  return [
    jax.tree.map(lambda x_L, layer=layer: int(x_L[layer]), traits)
    for layer in range(config.layers)
  ]


def _rotations(
  config: configs.ModelConfig, positions_BS: jax.Array, lengths_B: jax.Array
) -> list[rope.Rotation]:
  """The rotations of layers: none (by angle 0), `rope` and `local_rope`."""
  if config.rope is None:
    return []
  ropes = [config.rope]
  if config.local_rope is not None:
    ropes.append(config.local_rope)
  turns = [rope.rotation(config, r, positions_BS, lengths_B) for r in ropes]
  still = jax.tree.map(jnp.zeros_like, turns[0])
  return [still._replace(cos_BSR=still.cos_BSR + 1.0), *turns]


def _pick(
  rotations: Sequence[rope.Rotation], traits: Traits
) -> rope.Rotation | None:
  """A layer's rotation; in a scan its index is traced, so all are stacked."""
  if not rotations:
    return None
  index = 1 if traits.rotation is None else traits.rotation
  if isinstance(index, int):
    return rotations[index]
  return jax.tree.map(
    lambda *each: jnp.stack(jnp.broadcast_arrays(*each))[index], *rotations
  )


def _attention(
  config: configs.ModelConfig,
  traits: Traits,
  q_BNSH: jax.Array,
  *segments: layers.Segment,
) -> jax.Array:
  """A layer's attention, with the architecture's scale and cap of scores."""
  scale = config.score_scale
  if scale is None:
    scale = config.head_size**-0.5
  if traits.divisor is not None:
    scale /= traits.divisor
  return layers.grouped_attention(
    q_BNSH, segments, scale=scale, cap=config.score_cap
  )


def _attend_causally(
  config: configs.ModelConfig, traits: Traits
) -> layers.Attend:
  def attend(
    q_BNSH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array
  ) -> tuple[jax.Array, layers.KeysValues]:
    S = q_BNSH.shape[2]
    mask_1SC = jnp.tri(S, dtype=bool)[None]
    if traits.window is not None:
      slots_S = jnp.arange(S)
      distance_SC = slots_S[:, None] - slots_S[None, :]
      mask_1SC &= (distance_SC < traits.window)[None]
    segment = layers.Segment(k_BKSH, v_BKSH, mask_1SC)
    return _attention(config, traits, q_BNSH, segment), (k_BKSH, v_BKSH)

  return attend


def _attend_cached(
  config: configs.ModelConfig,
  traits: Traits,
  cache: caches.KVCache,
  layer: int,
  step: jax.Array,
) -> layers.Attend:
  """Writes response token number `step` to a layer's cache, and attends to it.

  With a window, the query at position `length + step` attends to the columns
  whose position is above its own minus the window.
  """
  lengths_B11 = cache.prompt_lengths_B[:, None, None]
  columns_11P = jnp.arange(cache.prompt_k[layer].shape[2])[None, None, :]
  columns_11T = jnp.arange(cache.response_k[layer].shape[2])[None, None, :]
  prompt_mask_B1P = columns_11P < lengths_B11
  response_mask_11T = columns_11T <= step
  if traits.window is not None:
    prompt_mask_B1P &= columns_11P > lengths_B11 + step - traits.window
    response_mask_11T &= columns_11T > step - traits.window

  def attend(
    q_BN1H: jax.Array, k_BK1H: jax.Array, v_BK1H: jax.Array
  ) -> tuple[jax.Array, layers.KeysValues]:
    start = (0, 0, step, 0)
    keys, values = cache.response_k[layer], cache.response_v[layer]
    new_k = jax.lax.dynamic_update_slice(keys, k_BK1H, start)
    new_v = jax.lax.dynamic_update_slice(values, v_BK1H, start)
    prompt = cache.prompt_k[layer], cache.prompt_v[layer]
    attended_BN1H = _attention(
      config,
      traits,
      q_BN1H,
      layers.Segment(*prompt, prompt_mask_B1P),
      layers.Segment(new_k, new_v, response_mask_11T),
    )
    return attended_BN1H, (new_k, new_v)

  return attend


def _outside(config: configs.ModelConfig) -> dict[str, Callable[..., Any]]:
  """The initializers of the trunk's parameters outside of its blocks."""
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


def _embed(
  config: configs.ModelConfig,
  trunk: dict[str, Any],
  tokens_BS: jax.Array,
  positions_BS: jax.Array,
  compute_dtype: str,
) -> jax.Array:
  """The stream before the first block, with learned positions if there are any.

  Rows are looked up before the cast, so gradients of repeated tokens add up in
  fp32.
  """

  def look_up(name: str, index: jax.Array) -> jax.Array:
    return partition.gather(name, trunk[name])[index].astype(compute_dtype)

  hidden = look_up(config.embed_name, tokens_BS)
  if config.embed_scale != 1.0:
    hidden *= jnp.asarray(config.embed_scale, compute_dtype)
  if config.embed_size is not None:
    into_ED = partition.gather("into_ED", trunk["into_ED"])
    hidden = jnp.einsum("BSE,ED->BSD", hidden, into_ED.astype(compute_dtype))
  if config.rope is None:
    at_BSD = look_up("positions_MD", positions_BS + config.position_offset)
    hidden += jnp.broadcast_to(at_BSD, hidden.shape)
  return partition.pin(hidden)


def _unrolled(
  config: configs.ModelConfig,
  trunk: dict[str, Any],
  tokens_BS: jax.Array,
  positions_BS: jax.Array,
  lengths_B: jax.Array,
  attends: Iterable[layers.Attend],
) -> tuple[jax.Array, list[layers.KeysValues]]:
  """Embedding and blocks; returns each layer's keys and values too."""
  compute_dtype = str(trunk[config.embed_name].dtype)
  rotations = _rotations(config, positions_BS, lengths_B)
  block = Block(config, compute_dtype)
  hidden_BSD = _embed(config, trunk, tokens_BS, positions_BS, compute_dtype)
  kept = []
  for params, traits, attend in zip(
    trunk["blocks"], _layer_traits(config), attends, strict=True
  ):
    rotation = _pick(rotations, traits)
    hidden_BSD, layer_kept = block.apply(
      {"params": params}, hidden_BSD, rotation, attend
    )
    kept.append(layer_kept)
  return hidden_BSD, kept


def _finish(
  config: configs.ModelConfig, trunk: Mapping[str, Any], hidden: jax.Array
) -> jax.Array:
  """The last norm, and the projection back to the embeddings' width."""
  if config.final_norm:
    hidden = layers.apply_norm(
      config, hidden, trunk.get("norm_D"), trunk.get("norm_bias_D")
    )
  if config.embed_size is None:
    return hidden
  out_of_DE = partition.gather("out_of_DE", trunk["out_of_DE"])
  return jnp.einsum("...D,DE->...E", hidden, out_of_DE.astype(hidden.dtype))
