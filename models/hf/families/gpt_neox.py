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
FIELDS = {
  **kinds.with_defaults(llama.SHARED, hidden_act="gelu"),
  "layer_norm_eps": kinds.NUMBER.field(1e-5),
  "use_parallel_residual": kinds.FLAG.field(True),
  "attention_bias": kinds.FLAG.field(True),
  "rotary_pct": kinds.POSITIVE.field(0.25),
  "rotary_emb_base": kinds.POSITIVE.field(10000.0),
}

_BLOCK = "trunk/blocks"
_LAYER = "gpt_neox.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GPTNeoXForCausalLM's config.json."""
  own = {
    "rope_theta": fields["rotary_emb_base"],
    "partial_rotary_factor": fields["rotary_pct"],
    **fields,
    "num_key_value_heads": None,
  }
  own.pop("head_dim", None)
  shared = llama.read_shared(own)
  return configs.ModelConfig(
    family="gpt_neox",
    **shared | {"norm_eps": fields["layer_norm_eps"]},
    **llama.read_bias(fields),
    norm="layer",
    parallel="own_norms" if fields["use_parallel_residual"] else "none",
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
  for name in ("rms_norm_eps", "num_key_value_heads", "head_dim"):
    del fields[name]
  rope_fields.write_share(fields, config)
  return {**fields, "rotary_pct": fields["partial_rotary_factor"]}


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a GPTNeoXForCausalLM."""
  H, attention = config.head_size, f"{_BLOCK}/attention"
  shares = table.alternating(config.heads, (H, H, H))
  qkv = f"{_LAYER}.attention.query_key_value"
  rows = [
    ("gpt_neox.embed_in.weight", "trunk/embed_VD", "V D"),
    *table.pair(f"{_LAYER}.input_layernorm", f"{_BLOCK}/attention_norm_D"),
    *table.fused_qkv(f"{qkv}.weight", attention + "/{}_D{}H", "{}H D", shares),
    *table.fused_qkv(f"{qkv}.bias", attention + "/{}_bias_{}H", "{}H", shares),
    *table.pair(f"{_LAYER}.attention.dense", f"{attention}/o_NHD"),
    *table.pair(f"{_LAYER}.post_attention_layernorm", f"{_BLOCK}/mlp_norm_D"),
    *table.pair(f"{_LAYER}.mlp.dense_h_to_4h", f"{_BLOCK}/mlp/up_DF"),
    *table.pair(f"{_LAYER}.mlp.dense_4h_to_h", f"{_BLOCK}/mlp/down_FD"),
    *table.pair("gpt_neox.final_layer_norm", "trunk/norm_D"),
    (NAMES.head, "lm_DV", "V D"),
  ]
  return table.present(config, rows)
