"""Gemma 2: soft caps, norms before and after, every second layer a window."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import (
  gemma,
  kinds,
  llama,
  rope_fields,
  windows,
)

CLASSIFIER = "Gemma2ForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED = gemma.FIXED

KINDS = {
  **gemma.KINDS,
  **windows.KINDS,
  "query_pre_attn_scalar": kinds.POSITIVE,
  "attn_logit_softcapping": kinds.POSITIVE,
  "final_logit_softcapping": kinds.POSITIVE,
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Gemma2ForCausalLM's config.json."""
  caps = {
    "score_cap": kinds.or_null(fields, "attn_logit_softcapping", 50.0),
    "logit_cap": kinds.or_null(fields, "final_logit_softcapping", 30.0),
  }
  window = kinds.or_null(fields, "sliding_window", 4096)
  fields = kinds.checked(fields, KINDS)
  shared = gemma.shared_fields(fields)
  return configs.ModelConfig(
    family="gemma2",
    **shared,
    **caps,
    rope=llama.read_rope(fields, shared),
    norm_place="both",
    score_scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
    windows=windows.read(
      fields, shared["layers"], window, lambda layer: layer % 2 == 0
    ),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["Gemma2ForCausalLM"],
    **write_scores(config),
    **rope_fields.write(config.rope, config.head_size),
  }


def write_scores(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that Gemma 2 and 3 share."""
  return {
    **gemma.write_shared(config),
    **windows.write(config.windows, config.layers),
    "query_pre_attn_scalar": scalar(config.score_scale),
    "attn_logit_softcapping": config.score_cap,
    "final_logit_softcapping": config.logit_cap,
  }


def scalar(score_scale: float) -> float:
  """The `query_pre_attn_scalar` of a scale: a whole number where it is one."""
  value = score_scale**-2
  return round(value) if round(value) ** -0.5 == score_scale else value
