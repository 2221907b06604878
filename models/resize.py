"""More vocabulary rows, for a tokenizer with more ids than the model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.models import config as configs


def grow(
  config: configs.ModelConfig, policy: Mapping[str, Any], vocab_size: int
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """A model of `vocab_size` ids with the same logits for the ids it had.

  Every parameter with the axis V in its name grows along it: the embeddings,
  the head if it is not tied to them, and its bias. New rows are the mean of the
  old ones, so that a new id is as likely as an average one. transformers does
  the same by default, but adds noise of variance 1e-9; here the result is
  deterministic.

  Args:
    config: the architecture.
    policy: its parameters, numpy or jax arrays; not modified.
    vocab_size: the new number of ids.

  Raises:
    ValueError: the model has more ids than that.
  """
  more = vocab_size - config.vocab_size
  if more < 0:
    raise ValueError(
      f"vocab_size={vocab_size} is below the model's {config.vocab_size}."
    )
  grown = jax.tree_util.tree_map_with_path(
    lambda path, leaf: _grown(path[-1].key, leaf, more), policy
  )
  return dataclasses.replace(config, vocab_size=vocab_size), grown


def _grown(name: str, array: Any, more: int) -> Any:
  letters = configs.letters(name)
  if "V" not in letters or not more:
    return array
  # Counted from the end: stacked arrays have a leading layer axis.
  axis = letters.index("V") - len(letters)
  numpy = jnp if isinstance(array, jax.Array) else np
  mean = numpy.mean(array, axis=axis, keepdims=True, dtype=np.float32)
  rows = numpy.repeat(mean.astype(array.dtype), more, axis=axis)
  return numpy.concatenate([array, rows], axis=axis)
