"""Qwen3's dense models."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, qwen2

NAMES = llama.names("Qwen3")
FIELDS = {
  **kinds.with_defaults(qwen2.SHARED, head_dim=128),
  "attention_bias": kinds.FLAG.field(False),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Qwen3ForCausalLM's config.json."""
  return configs.ModelConfig(
    family="qwen3",
    **llama.read_shared(fields),
    **llama.read_bias(fields),
    windows=qwen2.read_windows(fields),
    qk_norm="head",
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **llama.write_shared(config),
    **qwen2.write_windows(config),
    "attention_bias": config.qkv_bias,
  }
