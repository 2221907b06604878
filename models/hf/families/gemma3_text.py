"""Gemma 3: q/k norms, and a rope of their own for layers with a window."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import (
  gemma,
  gemma2,
  kinds,
  llama,
  rope_fields,
  windows,
)

CLASSIFIER = "Gemma3TextForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED = gemma.FIXED

KINDS = {
  **gemma2.KINDS,
  "rope_local_base_freq": kinds.POSITIVE,
  "sliding_window_pattern": kinds.SIZE,
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Gemma3ForCausalLM's config.json."""
  window = kinds.or_null(fields, "sliding_window", 4096)
  fields = kinds.checked(fields, KINDS)
  shared = gemma.shared_fields(fields, max_positions=131072)
  pattern = fields.get("sliding_window_pattern", 6)
  full, local = _ropes(fields, shared)
  return configs.ModelConfig(
    family="gemma3_text",
    **shared,
    rope=full,
    local_rope=local,
    norm_place="both",
    qk_norm="head",
    score_scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
    score_cap=fields.get("attn_logit_softcapping"),
    logit_cap=fields.get("final_logit_softcapping"),
    windows=windows.read(
      fields, shared["layers"], window, lambda layer: (layer + 1) % pattern
    ),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  size = config.head_size
  full = rope_fields.write(config.rope, size)
  return {
    "architectures": ["Gemma3ForCausalLM"],
    **gemma2.write_scores(config),
    **full,
    "rope_parameters": {
      _GLOBAL: full["rope_parameters"],
      _LOCAL: rope_fields.parameters_of(config.local_rope, size),
    },
    "rope_local_base_freq": config.local_rope.theta,
  }


def _ropes(fields, shared) -> tuple[configs.RopeConfig, configs.RopeConfig]:
  """Those of full and of sliding layers; only the first can be stretched."""
  both = fields.get("rope_parameters") or {}
  full = {name: fields.get(name) for name in ("rope_theta", "rope_scaling")}
  local = {"rope_theta": fields.get("rope_local_base_freq")}
  if both:
    full |= {"rope_parameters": both.get(_GLOBAL), "rope_scaling": None}
    local["rope_parameters"] = both.get(_LOCAL)
  return (
    llama.read_rope(full, shared, theta=1e6),
    llama.read_rope(local, shared, theta=1e4),
  )
