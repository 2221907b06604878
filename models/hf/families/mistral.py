"""Mistral 7B and its relatives."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama

NAMES = llama.names("Mistral")
FIELDS = {
  **kinds.with_defaults(
    llama.SHARED, max_position_embeddings=131072, num_key_value_heads=8
  ),
  "sliding_window": kinds.SIZE.field(4096, nullable=True),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a MistralForCausalLM's config.json."""
  shared = llama.read_shared(fields)
  window = fields["sliding_window"]
  return configs.ModelConfig(
    family="mistral",
    **shared,
    windows=(window,) * shared["layers"] if window else (),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **llama.write_shared(config),
    "sliding_window": max(config.windows, default=None),
  }
