"""Gemma, and what all of its generations have in common."""

import math
from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama

NAMES = llama.NAMES._replace(
  model="GemmaForCausalLM", classifier="GemmaForSequenceClassification"
)

KINDS = {
  **llama.SHARED_KINDS,
  "hidden_activation": kinds.TEXT,
  "attention_bias": kinds.FLAG,
  "use_bidirectional_attention": kinds.only(False),
}
_TANH = "gelu_pytorch_tanh"

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GemmaForCausalLM's config.json."""
  return configs.ModelConfig(family="gemma", **read_shared(fields))


def read_shared(
  fields: Mapping[str, Any], max_positions: int = 8192, **rope: Any
) -> dict[str, Any]:
  """ModelConfig's fields that all generations name alike."""
  shared = llama.read_shared(
    fields, tied=True, max_positions=max_positions, head_size=256, **rope
  )
  # Early files say gelu where the models compute its tanh approximation.
  activation = fields.get("hidden_activation") or fields.get("hidden_act")
  bias = fields.get("attention_bias", False)
  return shared | {
    "activation": _TANH if activation in (None, "gelu") else activation,
    "embed_scale": math.sqrt(shared["width"]),
    "norm_offset": 1.0,
    "qkv_bias": bias,
    "o_bias": bias,
  }


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_shared` reads."""
  return {
    **llama.write_shared(config),
    "hidden_activation": config.activation,
    "attention_bias": config.qkv_bias,
  }
