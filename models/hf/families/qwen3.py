"""Qwen3's dense models."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, qwen2

NAMES = llama.NAMES._replace(
  model="Qwen3ForCausalLM", classifier="Qwen3ForSequenceClassification"
)

KINDS = {
  **llama.SHARED_KINDS,
  **qwen2.WINDOW_KINDS,
  "attention_bias": kinds.FLAG,
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Qwen3ForCausalLM's config.json."""
  shared = llama.read_shared(
    fields, max_positions=32768, kv_heads=32, head_size=128
  )
  bias = fields.get("attention_bias", False)
  return configs.ModelConfig(
    family="qwen3",
    **shared,
    windows=qwen2.read_windows(fields, shared["layers"]),
    qk_norm="head",
    qkv_bias=bias,
    o_bias=bias,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **llama.write_shared(config),
    **qwen2.write_windows(config),
    "attention_bias": config.qkv_bias,
  }
