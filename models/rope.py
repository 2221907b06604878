"""Rotary positions (Su et al., 2021) and the ways to stretch their context.

R is half a head: one frequency for each rotated pair. Coordinates r and r + R
form a pair (the half-split layout of Llama checkpoints).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.models import config as configs


class Rotation(NamedTuple):
  """Cosine and sine of each position's angles; B is 1 if rows share them."""

  cos_BSR: jax.Array
  sin_BSR: jax.Array


def rotation(
  config: configs.ModelConfig,
  positions_BS: jax.Array,
  lengths_B: jax.Array,
) -> Rotation:
  """The rotation at each position, fp32.

  Args:
    config: the architecture.
    positions_BS: int32; B may be 1 where all rows have the same positions.
    lengths_B: tokens in each row. Only the kinds `dynamic` and `longrope` look
      at it: their frequencies depend on how long a row is, each row's own
      length, so that a row never depends on its neighbours. In cached decoding
      a key keeps the rotation of the length at which it was written, so with
      these two kinds cached decoding equals the full forward only while a row
      stays within `max_positions` (dynamic) or `original_max_positions`
      (longrope).
  """
  frequencies_BR = _frequencies(config, lengths_B)
  angles_BSR = (
    positions_BS.astype(jnp.float32)[:, :, None] * frequencies_BR[:, None, :]
  )
  scale = config.rope.attention_factor
  return Rotation(jnp.cos(angles_BSR) * scale, jnp.sin(angles_BSR) * scale)


def rotate(x_BNSH: jax.Array, rotation: Rotation) -> jax.Array:
  """Turns each pair (a, b) to (a cos - b sin, b cos + a sin), in fp32."""
  cos_BNSR = rotation.cos_BSR[:, None]
  sin_BNSR = rotation.sin_BSR[:, None]
  a_BNSR, b_BNSR = jnp.split(x_BNSH.astype(jnp.float32), 2, axis=-1)
  turned = (
    a_BNSR * cos_BNSR - b_BNSR * sin_BNSR,
    b_BNSR * cos_BNSR + a_BNSR * sin_BNSR,
  )
  return jnp.concatenate(turned, axis=-1).astype(x_BNSH.dtype)


def _frequencies(config, lengths_B) -> jax.Array:
  """Radians a token, frequencies_BR; B is 1 where rows share them."""
  rope, head_size = config.rope, config.head_size
  match rope.kind:
    case "dynamic":
      theta_B = _dynamic_theta(rope, head_size, config.max_positions, lengths_B)
      exponents_R = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
      return theta_B[:, None] ** -exponents_R[None, :]
    case "longrope":
      plain_R = _plain_frequencies(rope.theta, head_size)
      long_B1 = (lengths_B > rope.original_max_positions)[:, None]
      short_1R = plain_R / np.asarray(rope.short_factor, np.float32)
      long_1R = plain_R / np.asarray(rope.long_factor, np.float32)
      return jnp.where(long_B1, long_1R[None, :], short_1R[None, :])
    case "linear":
      frequencies_R = _plain_frequencies(rope.theta, head_size) / rope.factor
    case "llama3":
      frequencies_R = _llama3_frequencies(rope, head_size)
    case "yarn":
      frequencies_R = _yarn_frequencies(rope, head_size)
    case _:
      frequencies_R = _plain_frequencies(rope.theta, head_size)
  return jnp.asarray(frequencies_R, jnp.float32)[None, :]


def _plain_frequencies(theta: float, head_size: int) -> np.ndarray:
  """The original theta ** (-2r / H)."""
  exponents_R = np.arange(0, head_size, 2, dtype=np.float32) / head_size
  return np.float32(theta) ** -exponents_R


def _dynamic_theta(rope, head_size, max_positions, lengths_B) -> jax.Array:
  """NTK-aware base: theta (f l / m - (f - 1)) ** (H / (H - 2)).

  l is the row's own length, at least m, and m is `max_positions`.
  """
  lengths_B = jnp.maximum(lengths_B, max_positions).astype(jnp.float32)
  stretch_B = rope.factor * lengths_B / max_positions - (rope.factor - 1)
  return rope.theta * stretch_B ** (head_size / (head_size - 2))


def _llama3_frequencies(rope, head_size) -> np.ndarray:
  """Long waves are stretched, short ones kept, those between blended."""
  plain_R = _plain_frequencies(rope.theta, head_size)
  turns_R = rope.original_max_positions * plain_R / (2 * math.pi)
  kept_R = np.clip(
    (turns_R - rope.low_freq_factor)
    / (rope.high_freq_factor - rope.low_freq_factor),
    0,
    1,
  )
  return kept_R * plain_R + (1 - kept_R) * plain_R / rope.factor


def _yarn_frequencies(rope, head_size) -> np.ndarray:
  """YaRN (Peng et al., 2023): a linear ramp between kept and stretched."""
  plain_R = _plain_frequencies(rope.theta, head_size)

  def dimension(turns):
    """Where a wave turns this often within the original context."""
    wavelength = rope.original_max_positions / turns
    return (
      head_size
      * math.log(wavelength / (2 * math.pi))
      / (2 * math.log(rope.theta))
    )

  low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_size - 1)
  ramp_R = (np.arange(head_size // 2) - low) / max(high - low, 1e-3)
  kept_R = 1 - np.clip(ramp_R, 0, 1)
  return kept_R * plain_R + (1 - kept_R) * plain_R / rope.factor
