"""OLMo 2: norms on the outputs of layers, and of all queries and keys."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama

NAMES = llama.NAMES._replace(
  model="Olmo2ForCausalLM", classifier="Olmo2ForSequenceClassification"
)

KINDS = {
  **llama.SHARED_KINDS,
  "attention_bias": kinds.FLAG,
  "clip_qkv": kinds.only(None),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of an Olmo2ForCausalLM's config.json."""
  bias = fields.get("attention_bias", False)
  return configs.ModelConfig(
    family="olmo2",
    **llama.read_shared(fields, eps=1e-5),
    norm_place="post",
    qk_norm="whole",
    qkv_bias=bias,
    o_bias=bias,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **llama.write_shared(config),
    "attention_bias": config.qkv_bias,
  }
