"""Mistral 7B and its relatives."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields

CLASSIFIER = "MistralForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED: dict[str, Any] = {}

KINDS = {**llama.SHARED_KINDS, "sliding_window": kinds.SIZE}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a MistralForCausalLM's config.json."""
  window = kinds.or_null(fields, "sliding_window", 4096)
  kv_heads = None if "num_key_value_heads" in fields else 8
  fields = kinds.checked(fields, KINDS)
  shared = llama.shared_fields(fields, max_positions=131072, kv_heads=kv_heads)
  return configs.ModelConfig(
    family="mistral",
    **shared,
    rope=llama.read_rope(fields, shared),
    windows=(window,) * shared["layers"] if window else (),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["MistralForCausalLM"],
    **llama.write_shared(config),
    **rope_fields.write(config.rope, config.head_size),
    "sliding_window": max(config.windows, default=None),
  }
