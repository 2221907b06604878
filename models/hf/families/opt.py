"""OPT; Galactica has the same architecture."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, table

NAMES = table.Names(
  model="OPTForCausalLM",
  classifier="OPTForSequenceClassification",
  prefix="model.",
  head="lm_head.weight",
)

KINDS = {
  "vocab_size": kinds.SIZE,
  "hidden_size": kinds.SIZE,
  "num_hidden_layers": kinds.SIZE,
  "num_attention_heads": kinds.SIZE,
  "ffn_dim": kinds.SIZE,
  "max_position_embeddings": kinds.SIZE,
  "word_embed_proj_dim": kinds.SIZE,
  "do_layer_norm_before": kinds.FLAG,
  "_remove_final_layer_norm": kinds.FLAG,
  "enable_bias": kinds.FLAG,
  "layer_norm_elementwise_affine": kinds.FLAG,
  "activation_function": kinds.TEXT,
  "tie_word_embeddings": kinds.FLAG,
  "init_std": kinds.NUMBER,
}

_POSITION_OFFSET = 2  # Unused rows before the first position.
_BLOCK = "trunk/blocks"
_LAYER = "model.decoder.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of an OPTForCausalLM's config.json."""
  width, heads = fields["hidden_size"], fields["num_attention_heads"]
  embed = fields.get("word_embed_proj_dim", width)
  pre = fields.get("do_layer_norm_before", True)
  bias = fields.get("enable_bias", True)
  return configs.ModelConfig(
    family="opt",
    vocab_size=fields["vocab_size"],
    width=width,
    layers=fields["num_hidden_layers"],
    heads=heads,
    kv_heads=heads,
    head_size=width // heads,
    ffn=fields["ffn_dim"],
    max_positions=fields.get("max_position_embeddings", 2048),
    init_scale=fields.get("init_std", 0.02),
    embed_size=None if embed == width else embed,
    tied_head=fields.get("tie_word_embeddings", True),
    rope=None,
    position_offset=_POSITION_OFFSET,
    norm="layer",
    norm_affine=fields.get("layer_norm_elementwise_affine", True),
    norm_place="pre" if pre else "sum",
    final_norm=pre and not fields.get("_remove_final_layer_norm", False),
    qkv_bias=bias,
    o_bias=bias,
    gated=False,
    mlp_bias=bias,
    activation=fields.get("activation_function", "relu"),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  pre = config.norm_place == "pre"
  return {
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "ffn_dim": config.ffn,
    "max_position_embeddings": config.max_positions,
    "word_embed_proj_dim": config.embed_size or config.width,
    "do_layer_norm_before": pre,
    "_remove_final_layer_norm": pre and not config.final_norm,
    "enable_bias": config.qkv_bias,
    "layer_norm_elementwise_affine": config.norm_affine,
    "activation_function": config.activation,
    "tie_word_embeddings": config.tied_head,
    "init_std": config.init_scale,
    "dropout": 0.0,
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of an OPTForCausalLM."""
  attention, E = f"{_LAYER}.self_attn", config.outer
  rows = [
    (
      "model.decoder.embed_tokens.weight",
      f"trunk/{config.embed_name}",
      f"V {E}",
    ),
    ("model.decoder.embed_positions.weight", "trunk/positions_MD", "M D"),
    *table.linear(f"{attention}.q_proj", f"{_BLOCK}/attention/q_DNH"),
    *table.linear(f"{attention}.k_proj", f"{_BLOCK}/attention/k_DKH"),
    *table.linear(f"{attention}.v_proj", f"{_BLOCK}/attention/v_DKH"),
    *table.linear(f"{attention}.out_proj", f"{_BLOCK}/attention/o_NHD"),
    *table.linear(f"{_LAYER}.fc1", f"{_BLOCK}/mlp/up_DF"),
    *table.linear(f"{_LAYER}.fc2", f"{_BLOCK}/mlp/down_FD"),
    *table.norm(f"{_LAYER}.self_attn_layer_norm", f"{_BLOCK}/attention_norm_D"),
    *table.norm(f"{_LAYER}.final_layer_norm", f"{_BLOCK}/mlp_norm_D"),
    *table.norm("model.decoder.final_layer_norm", "trunk/norm_D"),
    ("model.decoder.project_in.weight", "trunk/into_ED", "D E"),
    ("model.decoder.project_out.weight", "trunk/out_of_DE", "E D"),
    (NAMES.head, config.head_name, f"V {E}"),
  ]
  return table.present(config, rows)
