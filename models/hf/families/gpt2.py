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

KINDS = {
  "vocab_size": kinds.SIZE,
  "n_positions": kinds.SIZE,
  "n_embd": kinds.SIZE,
  "n_layer": kinds.SIZE,
  "n_head": kinds.SIZE,
  "n_inner": kinds.SIZE,
  "activation_function": kinds.TEXT,
  "layer_norm_epsilon": kinds.NUMBER,
  "initializer_range": kinds.NUMBER,
  "scale_attn_weights": kinds.FLAG,
  "scale_attn_by_inverse_layer_idx": kinds.FLAG,
  "tie_word_embeddings": kinds.FLAG,
  "add_cross_attention": kinds.only(False),
}

_BLOCK = "trunk/blocks"
_LAYER = "transformer.h.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a GPT2LMHeadModel's config.json."""
  return configs.ModelConfig(
    family="gpt2",
    **read_shared(fields, max_positions=1024, tied=True),
    rope=None,
    qkv_bias=True,
    o_bias=True,
    score_scale=None if fields.get("scale_attn_weights", True) else 1.0,
    scale_by_layer=fields.get("scale_attn_by_inverse_layer_idx", False),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **write_shared(config),
    "scale_attn_weights": config.score_scale is None,
    "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
  }


def read_shared(
  fields: Mapping[str, Any], *, max_positions: int, tied: bool
) -> dict[str, Any]:
  """ModelConfig's fields that GPT-2 and CodeGen name alike.

  Args:
    fields: the config.json.
    max_positions: the default context.
    tied: whether the LM head is tied by default.
  """
  width, heads = fields["n_embd"], fields["n_head"]
  return {
    "vocab_size": fields["vocab_size"],
    "width": width,
    "layers": fields["n_layer"],
    "heads": heads,
    "kv_heads": heads,
    "head_size": width // heads,
    "ffn": fields.get("n_inner", 4 * width),
    "max_positions": fields.get("n_positions", max_positions),
    "init_scale": fields.get("initializer_range", 0.02),
    "tied_head": fields.get("tie_word_embeddings", tied),
    "norm": "layer",
    "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
    "gated": False,
    "mlp_bias": True,
    "activation": fields.get("activation_function", "gelu_new"),
  }


def write_shared(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_shared` reads."""
  return {
    "vocab_size": config.vocab_size,
    "n_positions": config.max_positions,
    "n_embd": config.width,
    "n_layer": config.layers,
    "n_head": config.heads,
    "n_inner": config.ffn,
    "activation_function": config.activation,
    "layer_norm_epsilon": config.norm_eps,
    "initializer_range": config.init_scale,
    "tie_word_embeddings": config.tied_head,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a GPT2LMHeadModel; its matrices are stored in x out."""
  attention, size = f"{_LAYER}.attn", config.heads * config.head_size
  columns = table.parts(size, size, size, axis=1)
  entries = table.parts(size, size, size)
  qkv, path = f"{attention}.c_attn", f"{_BLOCK}/attention"
  rows = [
    ("transformer.wte.weight", "trunk/embed_VD", "V D"),
    ("transformer.wpe.weight", "trunk/positions_MD", "M D"),
    *table.norm(f"{_LAYER}.ln_1", f"{_BLOCK}/attention_norm_D"),
    *table.fused_qkv(f"{qkv}.weight", path + "/{}_D{}H", "D {}H", columns),
    *table.fused_qkv(f"{qkv}.bias", path + "/{}_bias_{}H", "{}H", entries),
    (f"{attention}.c_proj.weight", f"{_BLOCK}/attention/o_NHD", "NH D"),
    (f"{attention}.c_proj.bias", f"{_BLOCK}/attention/o_bias_D", "D"),
    *table.norm(f"{_LAYER}.ln_2", f"{_BLOCK}/mlp_norm_D"),
    (f"{_LAYER}.mlp.c_fc.weight", f"{_BLOCK}/mlp/up_DF", "D F"),
    (f"{_LAYER}.mlp.c_fc.bias", f"{_BLOCK}/mlp/up_bias_F", "F"),
    (f"{_LAYER}.mlp.c_proj.weight", f"{_BLOCK}/mlp/down_FD", "F D"),
    (f"{_LAYER}.mlp.c_proj.bias", f"{_BLOCK}/mlp/down_bias_D", "D"),
    *table.norm("transformer.ln_f", "trunk/norm_D"),
    (NAMES.head, "lm_DV", "V D"),
  ]
  return table.present(config, rows)
