"""Gemma 2: soft caps, norms before and after, a window in every other layer."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import gemma, kinds, llama, windows

NAMES = llama.names("Gemma2")
FIELDS = {
  **gemma.FIELDS,
  **windows.FIELDS,
  "query_pre_attn_scalar": kinds.POSITIVE.field(256),
  "attn_logit_softcapping": kinds.POSITIVE.field(50.0, nullable=True),
  "final_logit_softcapping": kinds.POSITIVE.field(30.0, nullable=True),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Gemma2ForCausalLM's config.json."""
  return configs.ModelConfig(
    family="gemma2",
    **read_shared(fields),
    windows=windows.read(fields, lambda layer: layer % 2 == 0),
  )


def read_shared(fields: Mapping[str, Any]) -> dict[str, Any]:
  """ModelConfig's fields that Gemma 2 and 3 name alike."""
  return gemma.read_shared(fields) | {
    "norm_place": "both",
    "score_scale": fields["query_pre_attn_scalar"] ** -0.5,
    "score_cap": fields["attn_logit_softcapping"],
    "logit_cap": fields["final_logit_softcapping"],
  }


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  scale = config.score_scale or config.head_size**-0.5
  scalar = scale**-2
  if round(scalar) ** -0.5 == scale:
    scalar = round(scalar)  # Without the rounding error.
  return gemma.write_config(
    config,
    **windows.write(config),
    query_pre_attn_scalar=scalar,
    attn_logit_softcapping=config.score_cap,
    final_logit_softcapping=config.logit_cap,
  )
