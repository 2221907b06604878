"""Gemma, and what all generations of it have in common."""

import math
from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields

CLASSIFIER = "GemmaForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED = {"use_bidirectional_attention": False}

KINDS = {
  **llama.SHARED_KINDS,
  "hidden_activation": kinds.TEXT,
  "attention_bias": kinds.FLAG,
}
_TANH = "gelu_pytorch_tanh"

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GemmaForCausalLM's config.json."""
  fields = kinds.checked(fields, KINDS)
  shared = shared_fields(fields)
  return configs.ModelConfig(
    family="gemma", **shared, rope=llama.read_rope(fields, shared)
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["GemmaForCausalLM"],
    **write_shared(config),
    **rope_fields.write(config.rope, config.head_size),
  }


def shared_fields(
  fields: Mapping[str, Any], max_positions: int = 8192
) -> dict[str, Any]:
  """Settings that all generations name alike."""
  shared = llama.shared_fields(
    fields, tied=True, max_positions=max_positions, head_size=256
  )
  # Early files say gelu and mean its tanh approximation.
  activation = fields.get("hidden_activation") or fields.get("hidden_act")
  bias = fields.get("attention_bias", False)
  return shared | {
    "activation": _TANH if activation in (None, "gelu") else activation,
    "embed_scale": math.sqrt(shared["width"]),
    "norm_offset": 1.0,
    "qkv_bias": bias,
    "o_bias": bias,
  }


def write_shared(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `shared_fields` reads."""
  return {
    **llama.write_shared(config),
    "hidden_activation": config.activation,
    "attention_bias": config.qkv_bias,
  }
