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
FIELDS = {
  "vocab_size": kinds.SIZE.field(ours="vocab_size"),
  "hidden_size": kinds.SIZE.field(ours="width"),
  "num_hidden_layers": kinds.SIZE.field(ours="layers"),
  "num_attention_heads": kinds.SIZE.field(ours="heads"),
  "ffn_dim": kinds.SIZE.field(ours="ffn"),
  "max_position_embeddings": kinds.SIZE.field(2048, "max_positions"),
  "word_embed_proj_dim": kinds.SIZE,
  "do_layer_norm_before": kinds.FLAG.field(True),
  "_remove_final_layer_norm": kinds.FLAG.field(False),
  "enable_bias": kinds.FLAG.field(True, "qkv_bias"),
  "layer_norm_elementwise_affine": kinds.FLAG.field(True, "norm_affine"),
  "activation_function": kinds.TEXT.field("relu", "activation"),
  "tie_word_embeddings": kinds.FLAG.field(True, "tied_head"),
  "init_std": kinds.NUMBER.field(0.02, "init_scale"),
}

_BLOCK = "trunk/blocks"
_LAYER = "model.decoder.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of an OPTForCausalLM's config.json."""
  width, heads = fields["hidden_size"], fields["num_attention_heads"]
  embed = fields.get("word_embed_proj_dim", width)
  pre, bias = fields["do_layer_norm_before"], fields["enable_bias"]
  return configs.ModelConfig(
    family="opt",
    **kinds.read_ours(FIELDS, fields),
    kv_heads=heads,
    head_size=width // heads,
    embed_size=None if embed == width else embed,
    rope=None,
    position_offset=2,  # Unused rows before the first position.
    norm="layer",
    norm_place="pre" if pre else "sum",
    final_norm=pre and not fields["_remove_final_layer_norm"],
    o_bias=bias,
    gated=False,
    mlp_bias=bias,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  pre = config.norm_place == "pre"
  fields = {
    **kinds.write_ours(FIELDS, config),
    "word_embed_proj_dim": config.embed_size or config.width,
    "do_layer_norm_before": pre,
    "_remove_final_layer_norm": pre and not config.final_norm,
  }
  return {name: fields[name] for name in FIELDS} | {"dropout": 0.0}


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
    *table.pair(f"{attention}.q_proj", f"{_BLOCK}/attention/q_DNH"),
    *table.pair(f"{attention}.k_proj", f"{_BLOCK}/attention/k_DKH"),
    *table.pair(f"{attention}.v_proj", f"{_BLOCK}/attention/v_DKH"),
    *table.pair(f"{attention}.out_proj", f"{_BLOCK}/attention/o_NHD"),
    *table.pair(f"{_LAYER}.fc1", f"{_BLOCK}/mlp/up_DF"),
    *table.pair(f"{_LAYER}.fc2", f"{_BLOCK}/mlp/down_FD"),
    *table.pair(f"{_LAYER}.self_attn_layer_norm", f"{_BLOCK}/attention_norm_D"),
    *table.pair(f"{_LAYER}.final_layer_norm", f"{_BLOCK}/mlp_norm_D"),
    *table.pair("model.decoder.final_layer_norm", "trunk/norm_D"),
    ("model.decoder.project_in.weight", "trunk/into_ED", "D E"),
    ("model.decoder.project_out.weight", "trunk/out_of_DE", "E D"),
    (NAMES.head, config.head_name, f"V {E}"),
  ]
  return table.present(config, rows)
