"""Qwen2: Qwen2, Qwen2.5, their Math and Coder models, DeepSeek-distill-Qwen."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, windows

NAMES = llama.names("Qwen2")
# The fields that Qwen3 and SmolLM3 have too.
SHARED = {
  **kinds.with_defaults(
    llama.SHARED, max_position_embeddings=32768, num_key_value_heads=32
  ),
  **windows.FIELDS,
  "use_sliding_window": kinds.FLAG.field(False),
  "max_window_layers": kinds.COUNT.field(28),
}
FIELDS = {**SHARED, "use_mrope": kinds.only(False)}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Qwen2ForCausalLM's config.json."""
  return configs.ModelConfig(
    family="qwen2",
    **llama.read_shared(fields),
    windows=read_windows(fields),
    qkv_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {**llama.write_shared(config), **write_windows(config)}


def read_windows(fields: Mapping[str, Any]) -> tuple[int, ...]:
  """The window of each layer; layers from `max_window_layers` on have one."""
  return windows.read(
    fields,
    lambda layer: layer >= fields["max_window_layers"],
    used=fields["use_sliding_window"],
  )


def write_windows(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_windows` reads."""
  slides = [bool(window) for window in config.windows]
  return {
    **windows.write(config),
    "use_sliding_window": any(slides),
    # Older versions of transformers do not read layer_types.
    "max_window_layers": slides.index(True) if any(slides) else config.layers,
  }
