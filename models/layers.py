"""Norm, attention and feed-forward layers.

A parameter's name carries its axes (`q_DNH`); its shape, its sharding and its
place in a checkpoint all follow from the name. Parameters are fp32 masters (or
what `Networks.publish` made of them) and are cast to the compute dtype where
they are used.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reft_jax.models import config as configs
from reft_jax.models import partition, rope

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "relu": jax.nn.relu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}

KeysValues = tuple[jax.Array, jax.Array]
# From (q, k, v) of the new tokens to the attended values, and the layer's keys
# and values for a cache to keep. Each pass has its own: what it closes over is
# the layer's past.
Attend = Callable[
  [jax.Array, jax.Array, jax.Array], tuple[jax.Array, KeysValues]
]


class Segment(NamedTuple):
  """C columns of keys and values, head-major, and which each query attends to.

  In the mask, B and S may be 1.
  """

  k_BKCH: jax.Array
  v_BKCH: jax.Array
  mask_BSC: jax.Array


def grouped_attention(
  q_BNSH: jax.Array,
  segments: Sequence[Segment],
  *,
  scale: jax.typing.ArrayLike,
  cap: float | None = None,
) -> jax.Array:
  """softmax(scale q k^T) v over the columns of all segments together.

  N / K neighbouring query heads share a key-value head. Scores and softmax are
  fp32; a `cap` keeps scores between -cap and cap. A query whose columns are all
  masked gets the mean value, not NaN.
  """
  B, N, S, H = q_BNSH.shape
  K = segments[0].k_BKCH.shape[1]
  q_BKGSH = q_BNSH.reshape(B, K, N // K, S, H)

  def masked_scores(segment: Segment) -> jax.Array:
    scores_BKGSC = jnp.einsum(
      "BKGSH,BKCH->BKGSC",
      q_BKGSH,
      segment.k_BKCH,
      preferred_element_type=jnp.float32,
    )
    scores_BKGSC *= scale
    if cap is not None:
      scores_BKGSC = soft_cap(scores_BKGSC, cap)
    # Not -inf: a row of them would have a softmax of NaN.
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(segment.mask_BSC[:, None, None], scores_BKGSC, lowest)

  scores_BKGSC = jnp.concatenate(list(map(masked_scores, segments)), axis=-1)
  weights_BKGSC = jax.nn.softmax(scores_BKGSC).astype(q_BNSH.dtype)
  ends = list(itertools.accumulate(s.v_BKCH.shape[2] for s in segments))
  shares = jnp.split(weights_BKGSC, ends[:-1], axis=-1)
  attended = [
    jnp.einsum("BKGSC,BKCH->BKGSH", share_BKGSC, segment.v_BKCH)
    for share_BKGSC, segment in zip(shares, segments, strict=True)
  ]
  return functools.reduce(jnp.add, attended).reshape(B, N, S, H)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """Cap tanh(x / cap): about x near 0, and never beyond the cap."""
  return cap * jnp.tanh(x / cap)


class Layer(nn.Module):
  """A module that makes its parameters from their names alone.

  Its fields are those of `networks.Networks`.
  """

  config: configs.ModelConfig
  compute_dtype: str = "float32"
  adapter_scale: float = 1.0

  def project(self, x: jax.Array, name: str, equation: str) -> jax.Array:
    """An einsum with a normal(init_scale) weight, and with its adapter.

    A weight `q_DNH` has an adapter where the parameters hold `q_a_DR` and
    `q_b_RNH` beside it: x A B is added (LoRA, Hu et al. 2022). `init` makes no
    adapters; lora.init does.
    """
    init = nn.initializers.normal(self.config.init_scale)
    out = jnp.einsum(equation, x, self._parameter(name, init))
    down, up = adapter_names(name)
    if not self.has_variable("params", down):
      return out
    ins, weight, outs = re.split(",|->", equation)
    kept = "".join(letter for letter in ins if letter not in weight)
    low = jnp.einsum(
      f"{ins},{configs.letters(down)}->{kept}R", x, self._given(down)
    )
    added = jnp.einsum(
      f"{kept}R,{configs.letters(up)}->{outs}", low, self._given(up)
    )
    return out + self.adapter_scale * added

  def bias(self, name: str) -> jax.Array:
    """A parameter that starts at zero."""
    return self._parameter(name, nn.initializers.zeros)

  def norm(self, name: str, x: jax.Array, axes: str = "D") -> jax.Array:
    """The architecture's norm of x over its last axis.

    The name of its scale is `name` and the letters of its axes. It starts at a
    factor of 1, and the bias at 0.
    """
    config = self.config
    scale = bias = None
    if config.norm_affine:
      start = nn.initializers.constant(1.0 - config.norm_offset)
      scale = self._parameter(f"{name}_{axes}", start).reshape(-1)
      if config.norm == "layer":
        bias = self.bias(f"{name}_bias_{axes}").reshape(-1)
    return apply_norm(config, x, scale, bias)

  def _parameter(self, name: str, init: Callable[..., Any]) -> jax.Array:
    master = self.param(name, init, self.config.shape(name), jnp.float32)
    return partition.gather(name, master, self.compute_dtype)

  def _given(self, name: str) -> jax.Array:
    master = self.get_variable("params", name)
    return partition.gather(name, master, self.compute_dtype)


def apply_norm(
  config: configs.ModelConfig,
  x: jax.Array,
  scale_D: jax.Array | None,
  bias_D: jax.Array | None,
) -> jax.Array:
  """The architecture's norm; a parameter that it lacks is None.

  RMSNorm is x / sqrt(mean(x^2) + eps) * (scale + offset), and LayerNorm
  (x - mean) / sqrt(var + eps) * scale + bias. All is fp32, but the scale of an
  RMSNorm without an offset multiplies in the dtype of x, as in Llama.
  """
  x32 = x.astype(jnp.float32)
  if config.norm == "layer":
    x32 -= jnp.mean(x32, axis=-1, keepdims=True)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = x32 * jax.lax.rsqrt(mean_square + config.norm_eps)
  if scale_D is None:
    return normed.astype(x.dtype)
  if config.norm == "rms" and not config.norm_offset:
    scale_D = scale_D.astype(x.dtype)
    return normed.astype(x.dtype) * jnp.broadcast_to(scale_D, x.shape)
  scale_D = scale_D.astype(jnp.float32) + config.norm_offset
  normed *= jnp.broadcast_to(scale_D, x.shape)
  if bias_D is not None:
    normed += jnp.broadcast_to(bias_D.astype(jnp.float32), x.shape)
  return normed.astype(x.dtype)


def adapter_names(name: str) -> tuple[str, str]:
  """The names of the factors of a weight's adapter: q_a_DR and q_b_RNH.

  A weight either reads the stream (D is its first axis) or writes it (D is its
  last one).
  """
  stem, axes = name.rsplit("_", 1)
  split = 1 if axes[0] == "D" else len(axes) - 1
  return f"{stem}_a_{axes[:split]}R", f"{stem}_b_R{axes[split:]}"


class Attention(Layer):
  """Grouped-query attention."""

  @nn.compact
  def __call__(
    self, x_BSD: jax.Array, rotation: rope.Rotation | None, attend: Attend
  ) -> tuple[jax.Array, KeysValues]:
    """Returns out_BSD, and the keys and values for a cache to keep."""
    config = self.config
    q_BNSH = self.project(x_BSD, "q_DNH", "BSD,DNH->BNSH")
    k_BKSH = self.project(x_BSD, "k_DKH", "BSD,DKH->BKSH")
    v_BKSH = self.project(x_BSD, "v_DKH", "BSD,DKH->BKSH")
    if config.qkv_bias:
      q_BNSH += self.bias("q_bias_NH")[None, :, None, :]
      k_BKSH += self.bias("k_bias_KH")[None, :, None, :]
      v_BKSH += self.bias("v_bias_KH")[None, :, None, :]
    q_BNSH = self._head_norm("q_norm", q_BNSH, "NH")
    k_BKSH = self._head_norm("k_norm", k_BKSH, "KH")
    if config.rope is not None and rotation is not None:
      interleaved = config.rope.interleaved
      q_BNSH = rope.rotate(q_BNSH, rotation, interleaved=interleaved)
      k_BKSH = rope.rotate(k_BKSH, rotation, interleaved=interleaved)
    attended_BNSH, kept = attend(q_BNSH, k_BKSH, v_BKSH)
    out_BSD = self.project(attended_BNSH, "o_NHD", "BNSH,NHD->BSD")
    if config.o_bias:
      out_BSD += self.bias("o_bias_D")[None, None, :]
    return out_BSD, kept

  def _head_norm(self, name: str, x_BNSH: jax.Array, axes: str) -> jax.Array:
    match self.config.qk_norm:
      case "head":
        return self.norm(name, x_BNSH, "H")
      case "whole":
        B, N, S, H = x_BNSH.shape
        flat_BSM = jnp.swapaxes(x_BNSH, 1, 2).reshape(B, S, N * H)
        normed_BSNH = self.norm(name, flat_BSM, axes).reshape(B, S, N, H)
        return jnp.swapaxes(normed_BSNH, 1, 2)
      case _:
        return x_BNSH


class Mlp(Layer):
  """Feed-forward layer: down(act(gate x) * up x), or down(act(up x))."""

  @nn.compact
  def __call__(self, x_BSD: jax.Array) -> jax.Array:
    """Returns out_BSD."""
    config = self.config
    activate = ACTIVATIONS[config.activation]
    if config.gated:
      gate_BSF = activate(self._inner(x_BSD, "gate"))
      inner_BSF = gate_BSF * self._inner(x_BSD, "up")
    else:
      inner_BSF = activate(self._inner(x_BSD, "up"))
    out_BSD = self.project(inner_BSF, "down_FD", "BSF,FD->BSD")
    if config.mlp_bias:
      out_BSD += self.bias("down_bias_D")[None, None, :]
    return out_BSD

  def _inner(self, x_BSD: jax.Array, name: str) -> jax.Array:
    inner_BSF = self.project(x_BSD, f"{name}_DF", "BSD,DF->BSF")
    if self.config.mlp_bias:
      inner_BSF += self.bias(f"{name}_bias_F")[None, None, :]
    return inner_BSF
