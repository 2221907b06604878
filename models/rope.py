"""Rotary positions (Su et al., 2021) and the ways to extend their context.

The axis R has one frequency for each rotated pair of coordinates. The rotated
coordinates are the first ones of a head, usually all of them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.models import config as configs


class Rotation(NamedTuple):
  """Cosine and sine of the angles at each position; B may be 1."""

  cos_BSR: jax.Array
  sin_BSR: jax.Array


def rotation(
  config: configs.ModelConfig,
  rope: configs.RopeConfig,
  positions_BS: jax.Array,
  lengths_B: jax.Array,
) -> Rotation:
  """The rotation at each position, fp32.

  Args:
    config: the architecture.
    rope: the kind of rotation; layers of one model may have different ones.
    positions_BS: int32; B may be 1 where all rows have the same positions.
    lengths_B: tokens in each row. Only the kinds `dynamic` and `longrope` read
      it: their frequencies depend on the length of each row, and on no other
      row. In cached decoding a key keeps the rotation of the length at which it
      was written, so with these two kinds cached decoding equals the full
      forward only while a row stays within `max_positions` (dynamic) or
      `original_max_positions` (longrope).
  """
  frequencies_BR = _frequencies(config, rope, lengths_B)
  angles_BSR = (
    positions_BS.astype(jnp.float32)[:, :, None] * frequencies_BR[:, None, :]
  )
  scale = rope.attention_factor
  return Rotation(jnp.cos(angles_BSR) * scale, jnp.sin(angles_BSR) * scale)


def rotate(
  x_BNSH: jax.Array, rotation: Rotation, *, interleaved: bool = False
) -> jax.Array:
  """Rotates each pair (a, b) to (a cos - b sin, b cos + a sin), in fp32.

  Pairs are the coordinates r and r + R, or 2r and 2r + 1 if `interleaved`.
  Coordinates after the first 2R are unchanged.
  """
  cos_BNSR = rotation.cos_BSR[:, None]
  sin_BNSR = rotation.sin_BSR[:, None]
  size = 2 * rotation.cos_BSR.shape[-1]
  x32 = x_BNSH[..., :size].astype(jnp.float32)
  if interleaved:
    a_BNSR, b_BNSR = x32[..., ::2], x32[..., 1::2]
  else:
    a_BNSR, b_BNSR = jnp.split(x32, 2, axis=-1)
  turned = (
    a_BNSR * cos_BNSR - b_BNSR * sin_BNSR,
    b_BNSR * cos_BNSR + a_BNSR * sin_BNSR,
  )
  if interleaved:
    joined = jnp.stack(turned, axis=-1).reshape(x32.shape)
  else:
    joined = jnp.concatenate(turned, axis=-1)
  joined = joined.astype(x_BNSH.dtype)
  if size == x_BNSH.shape[-1]:
    return joined
  return jnp.concatenate([joined, x_BNSH[..., size:]], axis=-1)


def _frequencies(
  config: configs.ModelConfig, rope: configs.RopeConfig, lengths_B: jax.Array
) -> jax.Array:
  """frequencies_BR in radians a token; B is 1 where rows share them."""
  size = config.turning(rope)
  exponents_R = np.arange(0, size, 2, dtype=np.float32) / size
  if rope.kind == "dynamic":
    theta_B = _dynamic_theta(rope, size, config.max_positions, lengths_B)
    return theta_B[:, None] ** -jnp.asarray(exponents_R)[None, :]
  plain_R = np.float32(rope.theta) ** -exponents_R
  match rope.kind:
    case "longrope":
      long_B1 = (lengths_B > rope.original_max_positions)[:, None]
      short_1R = plain_R / np.asarray(rope.short_factor, np.float32)
      long_1R = plain_R / np.asarray(rope.long_factor, np.float32)
      return jnp.where(long_B1, long_1R[None, :], short_1R[None, :])
    case "linear":
      plain_R = plain_R / rope.factor
    case "llama3" | "yarn":
      kept = _kept_by_llama3 if rope.kind == "llama3" else _kept_by_yarn
      kept_R = np.clip(kept(rope, plain_R), 0, 1)
      plain_R = kept_R * plain_R + (1 - kept_R) * plain_R / rope.factor
  return jnp.asarray(plain_R, jnp.float32)[None, :]


def _dynamic_theta(
  rope: configs.RopeConfig, size: int, max_positions: int, lengths_B: jax.Array
) -> jax.Array:
  """NTK-aware base: theta (f l / m - (f - 1)) ** (size / (size - 2)).

  l is the row's own length, at least m, and m is `max_positions`.
  """
  lengths_B = jnp.maximum(lengths_B, max_positions).astype(jnp.float32)
  stretch_B = rope.factor * lengths_B / max_positions - (rope.factor - 1)
  return rope.theta * stretch_B ** (size / (size - 2))


def _kept_by_llama3(
  rope: configs.RopeConfig, plain_R: np.ndarray
) -> np.ndarray:
  """Low frequencies are scaled, high ones kept, those between blended."""
  turns_R = rope.original_max_positions * plain_R / (2 * math.pi)
  low, high = rope.low_freq_factor, rope.high_freq_factor
  return (turns_R - low) / (high - low)


def _kept_by_yarn(rope: configs.RopeConfig, plain_R: np.ndarray) -> np.ndarray:
  """YaRN (Peng et al., 2023): a linear ramp between kept and scaled."""
  size = 2 * len(plain_R)

  def dimension(turns: float) -> float:
    """The dimension with so many turns over the original context."""
    wavelength = rope.original_max_positions / turns
    return (
      size * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))
    )

  low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, size - 1)
  return 1 - (np.arange(size // 2) - low) / max(high - low, 1e-3)
