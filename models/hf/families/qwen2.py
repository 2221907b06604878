"""Qwen2: Qwen2, Qwen2.5, their Math and Coder models, DeepSeek-distill-Qwen."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields, windows

CLASSIFIER = "Qwen2ForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED = {"use_mrope": False}

KINDS = {
  **llama.SHARED_KINDS,
  **windows.KINDS,
  "use_sliding_window": kinds.FLAG,
  "max_window_layers": kinds.COUNT,
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Qwen2ForCausalLM's config.json."""
  window = read_window(fields)
  kv_heads = None if "num_key_value_heads" in fields else 32
  fields = kinds.checked(fields, KINDS)
  shared = llama.shared_fields(fields, max_positions=32768, kv_heads=kv_heads)
  return configs.ModelConfig(
    family="qwen2",
    **shared,
    rope=llama.read_rope(fields, shared),
    windows=read_windows(fields, shared, window),
    qkv_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["Qwen2ForCausalLM"],
    **llama.write_shared(config),
    **rope_fields.write(config.rope, config.head_size),
    **write_windows(config),
  }


def read_window(fields: Mapping[str, Any]) -> int | None:
  """The window of Qwen models; they have one that is switched off."""
  if not fields.get("use_sliding_window"):
    return None
  return kinds.or_null(fields, "sliding_window", 4096)


def read_windows(
  fields: Mapping[str, Any], shared: Mapping[str, Any], window: int | None
) -> tuple[int, ...]:
  """Of each layer: those from `max_window_layers` on slide."""
  first = fields.get("max_window_layers", 28)
  return windows.read(
    fields, shared["layers"], window, lambda layer: layer >= first
  )


def write_windows(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_window` and `read_windows` read."""
  slides = [bool(window) for window in config.windows]
  return {
    **windows.write(config.windows, config.layers),
    "use_sliding_window": any(slides),
    # For readers that do not know layer_types.
    "max_window_layers": slides.index(True) if any(slides) else config.layers,
  }
