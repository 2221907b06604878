"""Gemma, and what all of its generations have in common."""

import math
from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama

NAMES = llama.names("Gemma")
FIELDS = {
  **kinds.with_defaults(
    llama.SHARED,
    tie_word_embeddings=True,
    hidden_act="gelu",
    max_position_embeddings=8192,
    head_dim=256,
  ),
  "hidden_activation": kinds.TEXT,
  "attention_bias": kinds.FLAG.field(False),
  "use_bidirectional_attention": kinds.only(False),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GemmaForCausalLM's config.json."""
  return configs.ModelConfig(family="gemma", **read_shared(fields))


def read_shared(fields: Mapping[str, Any]) -> dict[str, Any]:
  """ModelConfig's fields that all generations name alike."""
  shared = llama.read_shared(fields) | llama.read_bias(fields)
  # Early files say gelu where the models compute its tanh approximation.
  activation = fields.get("hidden_activation") or fields["hidden_act"]
  return shared | {
    "activation": activation if activation != "gelu" else "gelu_pytorch_tanh",
    "embed_scale": math.sqrt(shared["width"]),
    "norm_offset": 1.0,
  }


def write_config(config: configs.ModelConfig, **own: Any) -> dict[str, Any]:
  """The fields that `read_shared` reads, with a later generation's `own`."""
  return llama.write_shared(
    config,
    hidden_activation=config.activation,
    attention_bias=config.qkv_bias,
    **own,
  )
