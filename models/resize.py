"""More rows for the vocabulary, where a tokenizer has more ids than a model."""

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
  """A model of `vocab_size` ids that answers as before on those it had.

  Whatever has the axis V, by the letters of its name, grows along it: the
  embeddings, the head if it is not tied to them, and its bias. New rows are the
  mean of the old ones, so that a new id is as likely as an average one. So does
  transformers by default, but for a noise of variance 1e-9 that it adds; here
  the same model always comes out.

  Args:
    config: the architecture.
    policy: its parameters, numpy or jax arrays; left as they are.
    vocab_size: no fewer ids than the model has.

  Raises:
    ValueError: it is fewer.
  """
  more = vocab_size - config.vocab_size
  if more < 0:
    raise ValueError(
      f"vocab_size={vocab_size} is below the {config.vocab_size} of the model."
    )
  grown = {name: _grown(name, node, more) for name, node in policy.items()}
  return dataclasses.replace(config, vocab_size=vocab_size), grown


def _grown(name: str, node: Any, more: int) -> Any:
  if isinstance(node, Mapping):
    return {key: _grown(key, each, more) for key, each in node.items()}
  letters = configs.letters(name)
  if "V" not in letters or not more:
    return node
  # Counted from the end: arrays of all layers have one more axis in front.
  axis = letters.index("V") - len(letters)
  numpy = jnp if isinstance(node, jax.Array) else np
  mean = numpy.mean(node, axis=axis, keepdims=True, dtype=np.float32)
  rows = numpy.repeat(mean.astype(node.dtype), more, axis=axis)
  return numpy.concatenate([node, rows], axis=axis)
