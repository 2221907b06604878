"""A minibatch computed a micro-batch at a time, with the same gradient.

Losses are sums whose terms are weighted by what the whole minibatch holds, so
the gradient does not depend on the split over micro-batches and devices. Rows
that these do not divide are padded with masked copies, and only inside the
computation: a step takes and returns its own rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from reft_jax.data import batches
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition


def pad_rows(rows: Any, micro: int) -> Any:
  """Rows as whole micro-batches, followed by masked copies of the first row.

  A copy can be run through the networks, since the first row can.
  """
  size = num_rows(rows)
  _, padded = sizes(size, micro)
  if padded == size:
    return rows
  missing = padded - size
  copies = jax.tree.map(lambda x: jnp.repeat(x[:1], missing, axis=0), rows)
  return jax.tree.map(
    lambda *parts: partition.pin(jnp.concatenate(parts)),
    rows,
    copies.masked_out(),
  )


def gradient(
  networks: networks_lib.Networks,
  loss_fn: Callable[..., Any],
  params: Any,
  rows: Any,
  micro: int,
) -> tuple[Any, Any]:
  """Gradient and metrics of a sum over rows, a micro-batch at a time.

  Args:
    networks: says how parameters are read (`networks.working_copy`).
    loss_fn: (params, rows) to (loss, metrics), both sums over rows.
    params: what the loss is differentiated by.
    rows: whole micro-batches, as `pad_rows` makes them.
    micro: rows of a micro-batch.

  Returns:
    Gradients in fp32, on their parameters' shards, and metrics.
  """
  copy = networks.working_copy(params)

  def grad_fn(rows: Any) -> tuple[Any, Any]:
    grads, metrics = jax.grad(loss_fn, has_aux=True)(copy, rows)
    if copy is not params:
      grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
      grads = partition.scatter(grads)
    return grads, metrics

  size = num_rows(rows)
  micro, _ = sizes(size, micro)
  if micro >= size:
    return grad_fn(rows)
  micro_batches = _split(rows, micro)

  def add(total: Any, rows: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, grad_fn(rows)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], micro_batches)),
  )
  total, _ = jax.lax.scan(add, zeros, micro_batches)
  return total


def map_rows(
  function: Callable[[Any, Any], Any], params: Any, rows: Any, *, micro: int
) -> Any:
  """function(params, rows), a micro-batch at a time."""
  size = num_rows(rows)
  rows = pad_rows(rows, micro)
  micro, padded = sizes(size, micro)
  if micro >= padded:
    out = function(params, rows)
  else:
    out = jax.lax.map(functools.partial(function, params), _split(rows, micro))
    out = jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(padded, *x.shape[2:]), out
    )
  if padded == size:
    return out
  return jax.tree.map(lambda x: partition.pin_or_replicate(x[:size]), out)


@functools.partial(jax.jit, static_argnums=2)
def slice_rows(tree: Any, first: chex.Numeric, count: int) -> Any:
  """`count` rows of each array, from `first` on, spread over the devices."""
  rows = functools.partial(
    jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=count
  )
  return jax.tree.map(lambda x: partition.pin_or_replicate(rows(x)), tree)


def num_rows(tree: Any) -> int:
  """The leading axis of all arrays."""
  return jax.tree.leaves(tree)[0].shape[0]


def sizes(rows: int, micro: int) -> tuple[int, int]:
  """Rows of a micro-batch, and of all, on the devices that share them."""
  return batches.micro_batches(rows, micro, partition.num_shards())


def _split(tree: Any, micro: int) -> Any:
  """Rows as [micro-batches, micro, ...]; each takes rows of every device."""

  def split(x: jax.Array) -> jax.Array:
    count = x.shape[0] // micro
    return x.reshape(micro, count, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, tree)
