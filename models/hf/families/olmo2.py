"""OLMo 2: norms on the outputs of layers, and of all queries and keys."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields

CLASSIFIER = "Olmo2ForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED = {"clip_qkv": None}

KINDS = {**llama.SHARED_KINDS, "attention_bias": kinds.FLAG}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of an Olmo2ForCausalLM's config.json."""
  fields = kinds.checked(fields, KINDS)
  shared = llama.shared_fields(fields, eps=1e-5)
  bias = fields.get("attention_bias", False)
  return configs.ModelConfig(
    family="olmo2",
    **shared,
    rope=llama.read_rope(fields, shared),
    norm_place="post",
    qk_norm="whole",
    qkv_bias=bias,
    o_bias=bias,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["Olmo2ForCausalLM"],
    **llama.write_shared(config),
    **rope_fields.write(config.rope, config.head_size),
    "attention_bias": config.qkv_bias,
  }
