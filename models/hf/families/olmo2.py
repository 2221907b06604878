"""OLMo 2: norms on the outputs of layers, and of all queries and keys."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama

NAMES = llama.names("Olmo2")
FIELDS = {
  **kinds.with_defaults(llama.SHARED, rms_norm_eps=1e-5),
  "attention_bias": kinds.FLAG.field(False),
  "clip_qkv": kinds.only(None),
}

tensors = llama.tensors


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of an Olmo2ForCausalLM's config.json."""
  return configs.ModelConfig(
    family="olmo2",
    **llama.read_shared(fields),
    **llama.read_bias(fields),
    norm_place="post",
    qk_norm="whole",
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {**llama.write_shared(config), "attention_bias": config.qkv_bias}
