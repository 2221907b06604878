"""Metrics of a step: sums and counts, merged by adding."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from reft_jax import types
from reft_jax.ops import masked

Metrics = dict[str, types.Mean]


def single(x: jax.typing.ArrayLike) -> types.Mean:
  """Of one number."""
  return types.Mean(total=jnp.float32(x), count=jnp.float32(1))


def over_rows(x_B: jax.Array) -> types.Mean:
  """Of all entries."""
  return types.Mean(
    total=jnp.sum(x_B, dtype=jnp.float32), count=jnp.float32(x_B.size)
  )


def over_mask(x: jax.Array, mask: jax.Array) -> types.Mean:
  """Of the entries where the mask is true."""
  return types.Mean(
    total=masked.total(x.astype(jnp.float32), mask),
    count=jnp.sum(mask, dtype=jnp.float32),
  )


def merge(
  a: Mapping[str, types.Mean], b: Mapping[str, types.Mean]
) -> dict[str, types.Mean]:
  """The metrics of two spans of steps as those of one."""
  return {
    name: a[name] + b[name]
    if name in a and name in b
    else a[name]
    if name in a
    else b[name]
    for name in {**a, **b}
  }
