"""Gemma 3: q/k norms, and another rope for layers with a window."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import (
  gemma2,
  kinds,
  llama,
  rope_fields,
  windows,
)

NAMES = llama.NAMES._replace(
  model="Gemma3ForCausalLM", classifier="Gemma3TextForSequenceClassification"
)
FIELDS = {
  **kinds.with_defaults(
    gemma2.FIELDS,
    max_position_embeddings=131072,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
  ),
  "rope_parameters": kinds.GROUP,
  "rope_theta": kinds.POSITIVE.field(1e6),
  "rope_local_base_freq": kinds.POSITIVE.field(1e4),
  "sliding_window_pattern": kinds.SIZE.field(6),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Gemma3ForCausalLM's config.json."""
  # Only the rope of full layers can be stretched by the older `rope_scaling`.
  full = {name: fields.get(name) for name in ("rope_theta", "rope_scaling")}
  local = {"rope_theta": fields["rope_local_base_freq"]}
  if both := fields.get("rope_parameters"):
    full |= {"rope_parameters": both.get(windows.FULL), "rope_scaling": None}
    local["rope_parameters"] = both.get(windows.SLIDING)
  own = {x: fields[x] for x in fields if x not in rope_fields.KINDS}
  shared = gemma2.read_shared(own | full)
  return configs.ModelConfig(
    family="gemma3_text",
    **shared,
    local_rope=rope_fields.read(
      local, shared["max_positions"], shared["head_size"]
    ),
    qk_norm="head",
    windows=windows.read(
      fields, lambda layer: bool((layer + 1) % fields["sliding_window_pattern"])
    ),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  fields = gemma2.write_config(config)
  local = config.local_rope or rope_fields.of(config)
  ropes = {
    windows.FULL: fields["rope_parameters"],
    windows.SLIDING: rope_fields.write_parameters(local, config.head_size),
  }
  return {
    **fields,
    "rope_parameters": ropes,
    "rope_local_base_freq": local.theta,
  }
