"""Qwen2: Qwen2, Qwen2.5, their Math and Coder models, DeepSeek-distill-Qwen."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, windows

NAMES = llama.NAMES._replace(
  model="Qwen2ForCausalLM", classifier="Qwen2ForSequenceClassification"
)

WINDOW_KINDS = {
  **windows.KINDS,
  "use_sliding_window": kinds.FLAG,
  "max_window_layers": kinds.COUNT,
}
KINDS = {
  **llama.SHARED_KINDS,
  **WINDOW_KINDS,
  "use_mrope": kinds.only(False),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Qwen2ForCausalLM's config.json."""
  shared = llama.read_shared(fields, max_positions=32768, kv_heads=32)
  return configs.ModelConfig(
    family="qwen2",
    **shared,
    windows=read_windows(fields, shared["layers"]),
    qkv_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **llama.write_shared(config),
    **write_windows(config),
  }


def read_windows(fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
  """The window of each layer; layers from `max_window_layers` on have one."""
  first = fields.get("max_window_layers", 28)
  return windows.read(
    fields, layers, read_window(fields), lambda layer: layer >= first
  )


def read_window(fields: Mapping[str, Any]) -> int | None:
  """The window's size; most files give one and switch it off."""
  if not fields.get("use_sliding_window"):
    return None
  return fields.get("sliding_window", 4096)


def write_windows(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_windows` reads."""
  slides = [bool(window) for window in config.windows]
  return {
    **windows.write(config.windows, config.layers),
    "use_sliding_window": any(slides),
    # Older versions of transformers do not read layer_types.
    "max_window_layers": slides.index(True) if any(slides) else config.layers,
  }
