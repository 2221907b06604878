"""Qwen3, its dense models."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, qwen2, rope_fields

CLASSIFIER = "Qwen3ForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED: dict[str, Any] = {}

KINDS = {**qwen2.KINDS, "attention_bias": kinds.FLAG}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Qwen3ForCausalLM's config.json."""
  window = qwen2.read_window(fields)
  kv_heads = None if "num_key_value_heads" in fields else 32
  fields = kinds.checked(fields, KINDS)
  shared = llama.shared_fields(
    fields, max_positions=32768, kv_heads=kv_heads, head_size=128
  )
  bias = fields.get("attention_bias", False)
  return configs.ModelConfig(
    family="qwen3",
    **shared,
    rope=llama.read_rope(fields, shared),
    windows=qwen2.read_windows(fields, shared, window),
    qk_norm="head",
    qkv_bias=bias,
    o_bias=bias,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["Qwen3ForCausalLM"],
    **llama.write_shared(config),
    **rope_fields.write(config.rope, config.head_size),
    **qwen2.write_windows(config),
    "attention_bias": config.qkv_bias,
  }
