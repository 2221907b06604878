"""SmolLM3: every fourth layer without rope."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, qwen2, windows

NAMES = llama.names("SmolLM3")
FIELDS = {
  **llama.FIELDS,
  **kinds.with_defaults(
    qwen2.SHARED, tie_word_embeddings=True, num_key_value_heads=4
  ),
  "rope_theta": kinds.POSITIVE.field(2e6),
  "no_rope_layers": kinds.FLAGS,
  "no_rope_layer_interval": kinds.SIZE.field(4),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a SmolLM3ForCausalLM's config.json."""
  shared = llama.read_shared(fields)
  turns = fields.get("no_rope_layers") or [
    (layer + 1) % fields["no_rope_layer_interval"]
    for layer in range(shared["layers"])
  ]
  return configs.ModelConfig(
    family="smollm3",
    **shared,
    **llama.read_bias(fields),
    rope_layers=() if all(turns) else tuple(map(bool, turns)),
    windows=windows.read(
      fields, lambda layer: not turns[layer], used=fields["use_sliding_window"]
    ),
    mlp_bias=fields["mlp_bias"],
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  turns = config.rope_layers or (True,) * config.layers
  return {
    **llama.write_config(config),
    **windows.write(config),
    "use_sliding_window": any(config.windows),
    "no_rope_layers": [int(turned) for turned in turns],
  }
