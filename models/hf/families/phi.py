"""Phi-1, Phi-1.5 and Phi-2: attention and feed-forward layer in parallel."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields, table

NAMES = llama.names("Phi")
FIELDS = {
  **kinds.with_defaults(llama.SHARED, hidden_act="gelu_new"),
  "layer_norm_eps": kinds.NUMBER.field(1e-5),
  "qk_layernorm": kinds.FLAG.field(False),
  "partial_rotary_factor": kinds.POSITIVE.field(0.5),
}

_BLOCK = "trunk/blocks"
_LAYER = "model.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a PhiForCausalLM's config.json."""
  shared = llama.read_shared(fields)
  return configs.ModelConfig(
    family="phi",
    **shared | {"norm_eps": fields["layer_norm_eps"]},
    norm="layer",
    parallel="shared_norm",
    qkv_bias=True,
    o_bias=True,
    qk_norm="head" if fields["qk_layernorm"] else "none",
    gated=False,
    mlp_bias=True,
    head_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  fields = {
    **llama.write_shared(config),
    "layer_norm_eps": config.norm_eps,
    "qk_layernorm": config.qk_norm == "head",
  }
  del fields["rms_norm_eps"]
  return rope_fields.write_share(fields, config)


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a PhiForCausalLM."""
  stored, attention = f"{_LAYER}.self_attn", f"{_BLOCK}/attention"
  rows = [
    ("model.embed_tokens.weight", "trunk/embed_VD", "V D"),
    *table.pair(f"{_LAYER}.input_layernorm", f"{_BLOCK}/attention_norm_D"),
    *table.pair(f"{stored}.q_proj", f"{attention}/q_DNH"),
    *table.pair(f"{stored}.k_proj", f"{attention}/k_DKH"),
    *table.pair(f"{stored}.v_proj", f"{attention}/v_DKH"),
    *table.pair(f"{stored}.dense", f"{attention}/o_NHD"),
    *table.pair(f"{stored}.q_layernorm", f"{attention}/q_norm_H"),
    *table.pair(f"{stored}.k_layernorm", f"{attention}/k_norm_H"),
    *table.pair(f"{_LAYER}.mlp.fc1", f"{_BLOCK}/mlp/up_DF"),
    *table.pair(f"{_LAYER}.mlp.fc2", f"{_BLOCK}/mlp/down_FD"),
    *table.pair("model.final_layernorm", "trunk/norm_D"),
    *table.pair("lm_head", "lm_DV"),
  ]
  return table.present(config, rows)
