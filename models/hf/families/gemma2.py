"""Gemma 2: soft caps, norms before and after, a window in every other layer."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import gemma, kinds, llama, windows

NAMES = llama.NAMES._replace(
  model="Gemma2ForCausalLM", classifier="Gemma2ForSequenceClassification"
)

KINDS = {
  **gemma.KINDS,
  **windows.KINDS,
  "query_pre_attn_scalar": kinds.POSITIVE,
  "attn_logit_softcapping": kinds.nullable(kinds.POSITIVE),
  "final_logit_softcapping": kinds.nullable(kinds.POSITIVE),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Gemma2ForCausalLM's config.json."""
  shared = gemma.read_shared(fields)
  return configs.ModelConfig(
    family="gemma2",
    **shared,
    score_cap=fields.get("attn_logit_softcapping", 50.0),
    logit_cap=fields.get("final_logit_softcapping", 30.0),
    norm_place="both",
    score_scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
    windows=windows.read(
      fields,
      shared["layers"],
      fields.get("sliding_window", 4096),
      lambda layer: layer % 2 == 0,
    ),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **gemma.write_config(config),
    **windows.write(config.windows, config.layers),
    "query_pre_attn_scalar": _scalar(config),
    "attn_logit_softcapping": config.score_cap,
    "final_logit_softcapping": config.logit_cap,
  }


def _scalar(config: configs.ModelConfig) -> float:
  """The `query_pre_attn_scalar` of a scale, without a rounding error."""
  scale = config.score_scale or config.head_size**-0.5
  value = scale**-2
  return round(value) if round(value) ** -0.5 == scale else value
