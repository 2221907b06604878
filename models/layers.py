"""Norm, attention and feed-forward layers.

A parameter's name carries its axes (`q_DNH`), and its shape, its sharding and
its place in a checkpoint all follow from the name. Parameters are fp32 masters
(or what `Networks.publish` made of them) and are cast to the compute dtype
where they are used.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reft_jax.models import config as configs
from reft_jax.models import partition, rope

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "relu": jax.nn.relu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}

# Attends to the layer's past: (q, k, v) of the new tokens to the attended
# values and the layer's key and value arrays that a cache should keep.
Attend = Callable[
  [jax.Array, jax.Array, jax.Array],
  tuple[jax.Array, tuple[jax.Array, jax.Array]],
]


class Segment(NamedTuple):
  """Keys and values that may be attended to.

  Attributes:
    k_BKCH: C columns of keys, head-major.
    v_BKCH: their values.
    mask_BSC: which columns each query sees; B and S may be 1.
  """

  k_BKCH: jax.Array
  v_BKCH: jax.Array
  mask_BSC: jax.Array


def grouped_attention(
  q_BNSH: jax.Array, segments: Sequence[Segment]
) -> jax.Array:
  """softmax(q k^T / sqrt(H)) v over the columns of all segments together.

  N / K neighbouring query heads share a key-value head. Scores and softmax are
  fp32. A query that sees no column gets the mean value, never NaN.
  """
  B, N, S, H = q_BNSH.shape
  K = segments[0].k_BKCH.shape[1]
  q_BKGSH = q_BNSH.reshape(B, K, N // K, S, H)
  scores_BKGSC = jnp.concatenate(
    [_masked_scores(q_BKGSH, segment) for segment in segments], axis=-1
  )
  weights_BKGSC = jax.nn.softmax(scores_BKGSC).astype(q_BNSH.dtype)
  ends = list(itertools.accumulate(s.v_BKCH.shape[2] for s in segments))
  attended_BKGSH = sum(
    jnp.einsum("BKGSC,BKCH->BKGSH", weights_BKGSC, segment.v_BKCH)
    for weights_BKGSC, segment in zip(
      jnp.split(weights_BKGSC, ends[:-1], axis=-1), segments, strict=True
    )
  )
  return attended_BKGSH.reshape(B, N, S, H)


def _masked_scores(q_BKGSH, segment):
  scores_BKGSC = jnp.einsum(
    "BKGSH,BKCH->BKGSC",
    q_BKGSH,
    segment.k_BKCH,
    preferred_element_type=jnp.float32,
  )
  scores_BKGSC *= q_BKGSH.shape[-1] ** -0.5
  lowest = jnp.finfo(jnp.float32).min
  return jnp.where(segment.mask_BSC[:, None, None], scores_BKGSC, lowest)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """RMSNorm, x / sqrt(mean(x^2) + eps) * scale, normalised in fp32."""
  x32 = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = (x32 * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)
  return normed * jnp.broadcast_to(scale_D.astype(x.dtype), x.shape)


class Layer(nn.Module):
  """A module whose parameters are known by their names alone."""

  config: configs.ModelConfig
  compute_dtype: str = "float32"

  def weight(self, name: str) -> jax.Array:
    """A normal(init_scale) parameter, ready to multiply with."""
    return self._parameter(name, nn.initializers.normal(self.config.init_scale))

  def bias(self, name: str) -> jax.Array:
    """A parameter that starts at zero."""
    return self._parameter(name, nn.initializers.zeros)

  def norm(self, name: str, x: jax.Array) -> jax.Array:
    """RMSNorm of x, with a scale that starts at one."""
    scale_D = self._parameter(name, nn.initializers.ones)
    return rms_norm(x, scale_D, self.config.norm_eps)

  def _parameter(self, name: str, init: Callable[..., Any]) -> jax.Array:
    master = self.param(name, init, self.config.shape(name), jnp.float32)
    return partition.gather(name, master.astype(self.compute_dtype))


class Attention(Layer):
  """Grouped-query attention with rotary positions."""

  @nn.compact
  def __call__(self, x_BSD, rotation: rope.Rotation, attend: Attend):
    """Returns out_BSD and what `attend` wants a cache to keep."""
    q_BNSH = jnp.einsum("BSD,DNH->BNSH", x_BSD, self.weight("q_DNH"))
    k_BKSH = jnp.einsum("BSD,DKH->BKSH", x_BSD, self.weight("k_DKH"))
    v_BKSH = jnp.einsum("BSD,DKH->BKSH", x_BSD, self.weight("v_DKH"))
    if self.config.attention_bias:
      q_BNSH += self.bias("q_bias_NH")[None, :, None, :]
      k_BKSH += self.bias("k_bias_KH")[None, :, None, :]
      v_BKSH += self.bias("v_bias_KH")[None, :, None, :]
    q_BNSH = rope.rotate(q_BNSH, rotation)
    k_BKSH = rope.rotate(k_BKSH, rotation)
    attended_BNSH, kept = attend(q_BNSH, k_BKSH, v_BKSH)
    out_BSD = jnp.einsum("BNSH,NHD->BSD", attended_BNSH, self.weight("o_NHD"))
    if self.config.attention_bias:
      out_BSD += self.bias("o_bias_D")[None, None, :]
    return out_BSD, kept


class Mlp(Layer):
  """Gated feed-forward layer: down(activation(gate x) * up x)."""

  @nn.compact
  def __call__(self, x_BSD):
    """Returns out_BSD."""
    gate_BSF = jnp.einsum("BSD,DF->BSF", x_BSD, self.weight("gate_DF"))
    up_BSF = jnp.einsum("BSD,DF->BSF", x_BSD, self.weight("up_DF"))
    if self.config.mlp_bias:
      gate_BSF += self.bias("gate_bias_F")[None, None, :]
      up_BSF += self.bias("up_bias_F")[None, None, :]
    inner_BSF = ACTIVATIONS[self.config.activation](gate_BSF) * up_BSF
    out_BSD = jnp.einsum("BSF,FD->BSD", inner_BSF, self.weight("down_FD"))
    if self.config.mlp_bias:
      out_BSD += self.bias("down_bias_D")[None, None, :]
    return out_BSD
