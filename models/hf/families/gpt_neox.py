"""GPT-NeoX: Pythia. Queries, keys and values are stored head by head."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields, table

NAMES = table.Names(
  model="GPTNeoXForCausalLM",
  classifier="GPTNeoXForSequenceClassification",
  prefix="gpt_neox.",
  head="embed_out.weight",
  ignored=r".*(rotary_emb\.inv_freq|attention\.(bias|masked_bias))",
)

KINDS = {
  **llama.SHARED_KINDS,
  "layer_norm_eps": kinds.NUMBER,
  "use_parallel_residual": kinds.FLAG,
  "attention_bias": kinds.FLAG,
  "rotary_pct": kinds.POSITIVE,
  "rotary_emb_base": kinds.POSITIVE,
}

# Of Llama's fields.
_NOT_READ = ("rms_norm_eps", "num_key_value_heads", "head_dim")
_BLOCK = "trunk/blocks"
_LAYER = "gpt_neox.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GPTNeoXForCausalLM's config.json."""
  own = {name: x for name, x in fields.items() if name not in _NOT_READ}
  shared = llama.read_shared(
    own,
    theta=fields.get("rotary_emb_base", 10000.0),
    share=fields.get("rotary_pct", 0.25),
  ) | {
    "norm_eps": fields.get("layer_norm_eps", 1e-5),
    "activation": fields.get("hidden_act", "gelu"),
  }
  bias = fields.get("attention_bias", True)
  parallel = fields.get("use_parallel_residual", True)
  return configs.ModelConfig(
    family="gpt_neox",
    **shared,
    norm="layer",
    parallel="own_norms" if parallel else "none",
    qkv_bias=bias,
    o_bias=bias,
    gated=False,
    mlp_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  fields = {
    **llama.write_shared(config),
    "layer_norm_eps": config.norm_eps,
    "use_parallel_residual": config.parallel == "own_norms",
    "attention_bias": config.qkv_bias,
    "rotary_emb_base": rope_fields.of(config).theta,
  }
  for name in _NOT_READ:
    del fields[name]
  share = config.turning(rope_fields.of(config)) / config.head_size
  fields["rotary_pct"] = fields["partial_rotary_factor"] = share
  fields["rope_parameters"]["partial_rotary_factor"] = share
  return fields


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a GPTNeoXForCausalLM."""
  H, attention = config.head_size, f"{_BLOCK}/attention"
  shares = table.alternating(config.heads, (H, H, H))
  qkv = f"{_LAYER}.attention.query_key_value"
  rows = [
    ("gpt_neox.embed_in.weight", "trunk/embed_VD", "V D"),
    *table.norm(f"{_LAYER}.input_layernorm", f"{_BLOCK}/attention_norm_D"),
    *table.fused_qkv(f"{qkv}.weight", attention + "/{}_D{}H", "{}H D", shares),
    *table.fused_qkv(f"{qkv}.bias", attention + "/{}_bias_{}H", "{}H", shares),
    *table.linear(f"{_LAYER}.attention.dense", f"{attention}/o_NHD"),
    *table.norm(f"{_LAYER}.post_attention_layernorm", f"{_BLOCK}/mlp_norm_D"),
    *table.linear(f"{_LAYER}.mlp.dense_h_to_4h", f"{_BLOCK}/mlp/up_DF"),
    *table.linear(f"{_LAYER}.mlp.dense_4h_to_h", f"{_BLOCK}/mlp/down_FD"),
    *table.norm("gpt_neox.final_layer_norm", "trunk/norm_D"),
    (NAMES.head, "lm_DV", "V D"),
  ]
  return table.present(config, rows)
