"""SmolLM3: every fourth layer without rope."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, qwen2, windows

NAMES = llama.NAMES._replace(
  model="SmolLM3ForCausalLM", classifier="SmolLM3ForSequenceClassification"
)

KINDS = {
  **llama.KINDS,
  **qwen2.WINDOW_KINDS,
  "no_rope_layers": kinds.FLAGS,
  "no_rope_layer_interval": kinds.SIZE,
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a SmolLM3ForCausalLM's config.json."""
  shared = llama.read_shared(
    fields, tied=True, max_positions=32768, kv_heads=4, theta=2e6
  )
  every = fields.get("no_rope_layer_interval", 4)
  turns = fields.get("no_rope_layers") or [
    (layer + 1) % every for layer in range(shared["layers"])
  ]
  bias = fields.get("attention_bias", False)
  return configs.ModelConfig(
    family="smollm3",
    **shared,
    rope_layers=() if all(turns) else tuple(map(bool, turns)),
    windows=windows.read(
      fields,
      shared["layers"],
      qwen2.read_window(fields),
      lambda layer: not turns[layer],
    ),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=fields.get("mlp_bias", False),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  turns = config.rope_layers or (True,) * config.layers
  return {
    **llama.write_config(config),
    **windows.write(config.windows, config.layers),
    "use_sliding_window": any(config.windows),
    "no_rope_layers": [int(turned) for turned in turns],
  }
