"""GPT-2, and codeparrot, which divides a layer's scores by its number."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, table

NAMES = table.Names(
  model="GPT2LMHeadModel",
  classifier="GPT2ForSequenceClassification",
  prefix="transformer.",
  head="lm_head.weight",
  ignored=r".*\.attn\.(bias|masked_bias)",  # Old versions stored the masks.
)
# The fields that CodeGen has too.
SHARED = {
  "vocab_size": kinds.SIZE.field(ours="vocab_size"),
  "n_positions": kinds.SIZE.field(1024, "max_positions"),
  "n_embd": kinds.SIZE.field(ours="width"),
  "n_layer": kinds.SIZE.field(ours="layers"),
  "n_head": kinds.SIZE.field(ours="heads"),
  "n_inner": kinds.SIZE.field(ours="ffn"),
  "activation_function": kinds.TEXT.field("gelu_new", "activation"),
  "layer_norm_epsilon": kinds.NUMBER.field(1e-5, "norm_eps"),
  "initializer_range": kinds.NUMBER.field(0.02, "init_scale"),
  "tie_word_embeddings": kinds.FLAG.field(True, "tied_head"),
}
FIELDS = {
  **SHARED,
  "scale_attn_weights": kinds.FLAG.field(True),
  "scale_attn_by_inverse_layer_idx": kinds.FLAG.field(False),
  "add_cross_attention": kinds.only(False),
}

_BLOCK = "trunk/blocks"
_LAYER = "transformer.h.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GPT2LMHeadModel's config.json."""
  return configs.ModelConfig(
    family="gpt2",
    **read_shared(fields),
    rope=None,
    qkv_bias=True,
    o_bias=True,
    score_scale=None if fields["scale_attn_weights"] else 1.0,
    scale_by_layer=fields["scale_attn_by_inverse_layer_idx"],
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **write_shared(config),
    "scale_attn_weights": config.score_scale is None,
    "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
  }


def read_shared(fields: Mapping[str, Any]) -> dict[str, Any]:
  """ModelConfig's fields that are alike in GPT-2 and CodeGen."""
  width, heads = fields["n_embd"], fields["n_head"]
  return {
    **kinds.read_ours(SHARED, {"n_inner": 4 * width, **fields}),
    "kv_heads": heads,
    "head_size": width // heads,
    "norm": "layer",
    "gated": False,
    "mlp_bias": True,
  }


def write_shared(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_shared` reads."""
  dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
  return kinds.write_ours(SHARED, config) | dropout


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a GPT2LMHeadModel; its matrices are stored in x out."""
  attention, size = f"{_LAYER}.attn", config.heads * config.head_size
  columns = table.parts(size, size, size, axis=1)
  entries = table.parts(size, size, size)
  qkv, path = f"{attention}.c_attn", f"{_BLOCK}/attention"
  rows = [
    ("transformer.wte.weight", "trunk/embed_VD", "V D"),
    ("transformer.wpe.weight", "trunk/positions_MD", "M D"),
    *table.pair(f"{_LAYER}.ln_1", f"{_BLOCK}/attention_norm_D"),
    *table.fused_qkv(f"{qkv}.weight", path + "/{}_D{}H", "D {}H", columns),
    *table.fused_qkv(f"{qkv}.bias", path + "/{}_bias_{}H", "{}H", entries),
    (f"{attention}.c_proj.weight", f"{_BLOCK}/attention/o_NHD", "NH D"),
    (f"{attention}.c_proj.bias", f"{_BLOCK}/attention/o_bias_D", "D"),
    *table.pair(f"{_LAYER}.ln_2", f"{_BLOCK}/mlp_norm_D"),
    (f"{_LAYER}.mlp.c_fc.weight", f"{_BLOCK}/mlp/up_DF", "D F"),
    (f"{_LAYER}.mlp.c_fc.bias", f"{_BLOCK}/mlp/up_bias_F", "F"),
    (f"{_LAYER}.mlp.c_proj.weight", f"{_BLOCK}/mlp/down_FD", "F D"),
    (f"{_LAYER}.mlp.c_proj.bias", f"{_BLOCK}/mlp/down_bias_D", "D"),
    *table.pair("transformer.ln_f", "trunk/norm_D"),
    (NAMES.head, "lm_DV", "V D"),
  ]
  return table.present(config, rows)
