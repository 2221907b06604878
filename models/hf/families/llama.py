"""Llama: CodeLlama, Llama 2 and 3, TinyLlama, DeepSeek-distill-Llama.

Several families store their models as Llama does, with more or fewer tensors;
they call `read_shared`, `write_shared` and `tensors`.
"""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, rope_fields, table

NAMES = table.Names(
  model="LlamaForCausalLM",
  classifier="LlamaForSequenceClassification",
  prefix="model.",
  head="lm_head.weight",
  # Old checkpoints store the rope's frequencies.
  ignored=r".*rotary_emb\.inv_freq",
)

SHARED_KINDS = {
  "vocab_size": kinds.SIZE,
  "hidden_size": kinds.SIZE,
  "num_hidden_layers": kinds.SIZE,
  "num_attention_heads": kinds.SIZE,
  "num_key_value_heads": kinds.nullable(kinds.SIZE),
  "head_dim": kinds.SIZE,
  "intermediate_size": kinds.SIZE,
  "rms_norm_eps": kinds.NUMBER,
  "tie_word_embeddings": kinds.FLAG,
  "hidden_act": kinds.TEXT,
  "max_position_embeddings": kinds.SIZE,
  "initializer_range": kinds.NUMBER,
}
KINDS = {
  **SHARED_KINDS,
  "attention_bias": kinds.FLAG,
  "mlp_bias": kinds.FLAG,
}

_BLOCK = "trunk/blocks"
_LAYER = "model.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a LlamaForCausalLM's config.json."""
  bias = fields.get("attention_bias", False)
  return configs.ModelConfig(
    family="llama",
    **read_shared(fields),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=fields.get("mlp_bias", False),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **write_shared(config),
    "attention_bias": config.qkv_bias,
    "mlp_bias": config.mlp_bias,
  }


def read_shared(
  fields: Mapping[str, Any],
  *,
  eps: float = 1e-6,
  tied: bool = False,
  max_positions: int = 2048,
  kv_heads: int | None = None,
  head_size: int | None = None,
  **rope: Any,
) -> dict[str, Any]:
  """ModelConfig's fields that Llama and its relatives name alike.

  Args:
    fields: the config.json.
    eps: the default of `rms_norm_eps`. The arguments that follow are defaults
      too.
    tied: whether the LM head is tied.
    max_positions: the context.
    kv_heads: None: as many as query heads.
    head_size: None: the width, divided by the heads.
    **rope: those of the rope, as `rope_fields.read` takes them.
  """
  width, heads = fields["hidden_size"], fields["num_attention_heads"]
  shared = {
    "vocab_size": fields["vocab_size"],
    "width": width,
    "layers": fields["num_hidden_layers"],
    "heads": heads,
    "kv_heads": fields.get("num_key_value_heads", kv_heads) or heads,
    "head_size": fields.get("head_dim", head_size or width // heads),
    "ffn": fields["intermediate_size"],
    "norm_eps": fields.get("rms_norm_eps", eps),
    "tied_head": fields.get("tie_word_embeddings", tied),
    "activation": fields.get("hidden_act", "silu"),
    "max_positions": fields.get("max_position_embeddings", max_positions),
    "init_scale": fields.get("initializer_range", 0.02),
  }
  return shared | {"rope": read_rope(fields, shared, **rope)}


def read_rope(
  fields: Mapping[str, Any], shared: Mapping[str, Any], **defaults: Any
) -> configs.RopeConfig:
  """The rope of a model, given its context and the size of its heads."""
  return rope_fields.read(
    fields,
    max_positions=shared["max_positions"],
    head_size=shared["head_size"],
    **defaults,
  )


def write_shared(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_shared` reads."""
  return {
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_size,
    "intermediate_size": config.ffn,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied_head,
    "hidden_act": config.activation,
    "max_position_embeddings": config.max_positions,
    "initializer_range": config.init_scale,
    **rope_fields.write(rope_fields.of(config), config.head_size),
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a LlamaForCausalLM, or of a relative with its names."""
  attention, mlp = f"{_LAYER}.self_attn", f"{_LAYER}.mlp"
  rows = [
    ("model.embed_tokens.weight", "trunk/embed_VD", "V D"),
    *_norms(config),
    *table.linear(f"{attention}.q_proj", f"{_BLOCK}/attention/q_DNH"),
    *table.linear(f"{attention}.k_proj", f"{_BLOCK}/attention/k_DKH"),
    *table.linear(f"{attention}.v_proj", f"{_BLOCK}/attention/v_DKH"),
    *table.linear(f"{attention}.o_proj", f"{_BLOCK}/attention/o_NHD"),
    (f"{attention}.q_norm.weight", f"{_BLOCK}/attention/q_norm_H", "H"),
    (f"{attention}.k_norm.weight", f"{_BLOCK}/attention/k_norm_H", "H"),
    (f"{attention}.q_norm.weight", f"{_BLOCK}/attention/q_norm_NH", "NH"),
    (f"{attention}.k_norm.weight", f"{_BLOCK}/attention/k_norm_KH", "KH"),
    *table.linear(f"{mlp}.gate_proj", f"{_BLOCK}/mlp/gate_DF"),
    *table.linear(f"{mlp}.up_proj", f"{_BLOCK}/mlp/up_DF"),
    *table.linear(f"{mlp}.down_proj", f"{_BLOCK}/mlp/down_FD"),
    ("model.norm.weight", "trunk/norm_D", "D"),
    (NAMES.head, "lm_DV", "V D"),
  ]
  return table.present(config, rows)


def _norms(config: configs.ModelConfig) -> list[tuple[str, str, str]]:
  """A block's norms. The same name means different norms in two families."""
  names = {
    "pre": {
      "input_layernorm": "attention_norm_D",
      "post_attention_layernorm": "mlp_norm_D",
    },
    "post": {
      "post_attention_layernorm": "attention_out_norm_D",
      "post_feedforward_layernorm": "mlp_out_norm_D",
    },
    "both": {
      "input_layernorm": "attention_norm_D",
      "post_attention_layernorm": "attention_out_norm_D",
      "pre_feedforward_layernorm": "mlp_norm_D",
      "post_feedforward_layernorm": "mlp_out_norm_D",
    },
  }[config.norm_place]
  return [
    (f"{_LAYER}.{stored}.weight", f"{_BLOCK}/{path}", "D")
    for stored, path in names.items()
  ]
