"""Llama: CodeLlama, Llama 2 and 3, TinyLlama, DeepSeek-distill-Llama."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.families import kinds, rope_fields, table

CLASSIFIER = "LlamaForSequenceClassification"
# Old checkpoints store rope frequencies; they follow from the config.
IGNORED = r".*rotary_emb\.inv_freq"

_KINDS = {
  "vocab_size": kinds.SIZE,
  "hidden_size": kinds.SIZE,
  "num_hidden_layers": kinds.SIZE,
  "num_attention_heads": kinds.SIZE,
  "num_key_value_heads": kinds.SIZE,
  "head_dim": kinds.SIZE,
  "intermediate_size": kinds.SIZE,
  "rms_norm_eps": kinds.NUMBER,
  "tie_word_embeddings": kinds.FLAG,
  "attention_bias": kinds.FLAG,
  "mlp_bias": kinds.FLAG,
  "hidden_act": kinds.TEXT,
  "max_position_embeddings": kinds.SIZE,
  "initializer_range": kinds.NUMBER,
}

_BLOCK = "trunk/blocks"
_LAYER = "model.layers.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a LlamaForCausalLM's config.json."""
  fields = kinds.checked(fields, _KINDS)
  width, heads = fields["hidden_size"], fields["num_attention_heads"]
  max_positions = fields.get("max_position_embeddings", 2048)
  return configs.ModelConfig(
    family="llama",
    vocab_size=fields["vocab_size"],
    width=width,
    layers=fields["num_hidden_layers"],
    heads=heads,
    kv_heads=fields.get("num_key_value_heads", heads),
    head_size=fields.get("head_dim", width // heads),
    ffn=fields["intermediate_size"],
    norm_eps=fields.get("rms_norm_eps", 1e-6),
    rope=rope_fields.read(fields, max_positions),
    tied_head=fields.get("tie_word_embeddings", False),
    attention_bias=fields.get("attention_bias", False),
    mlp_bias=fields.get("mlp_bias", False),
    activation=fields.get("hidden_act", "silu"),
    max_positions=max_positions,
    init_scale=fields.get("initializer_range", 0.02),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_size,
    "intermediate_size": config.ffn,
    "rms_norm_eps": config.norm_eps,
    "rope_parameters": rope_fields.write(config.rope),
    "tie_word_embeddings": config.tied_head,
    "attention_bias": config.attention_bias,
    "mlp_bias": config.mlp_bias,
    "hidden_act": config.activation,
    "max_position_embeddings": config.max_positions,
    "initializer_range": config.init_scale,
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a LlamaForCausalLM."""
  attention, mlp = f"{_LAYER}.self_attn", f"{_LAYER}.mlp"
  rows = [
    ("model.embed_tokens.weight", "trunk/embed_VD", "V D"),
    (f"{_LAYER}.input_layernorm.weight", f"{_BLOCK}/attention_norm_D", "D"),
    (f"{attention}.q_proj.weight", f"{_BLOCK}/attention/q_DNH", "NH D"),
    (f"{attention}.k_proj.weight", f"{_BLOCK}/attention/k_DKH", "KH D"),
    (f"{attention}.v_proj.weight", f"{_BLOCK}/attention/v_DKH", "KH D"),
    (f"{attention}.o_proj.weight", f"{_BLOCK}/attention/o_NHD", "D NH"),
    (f"{_LAYER}.post_attention_layernorm.weight", f"{_BLOCK}/mlp_norm_D", "D"),
    (f"{mlp}.gate_proj.weight", f"{_BLOCK}/mlp/gate_DF", "F D"),
    (f"{mlp}.up_proj.weight", f"{_BLOCK}/mlp/up_DF", "F D"),
    (f"{mlp}.down_proj.weight", f"{_BLOCK}/mlp/down_FD", "D F"),
    ("model.norm.weight", "trunk/norm_D", "D"),
  ]
  if config.attention_bias:
    rows += [
      (f"{attention}.q_proj.bias", f"{_BLOCK}/attention/q_bias_NH", "NH"),
      (f"{attention}.k_proj.bias", f"{_BLOCK}/attention/k_bias_KH", "KH"),
      (f"{attention}.v_proj.bias", f"{_BLOCK}/attention/v_bias_KH", "KH"),
      (f"{attention}.o_proj.bias", f"{_BLOCK}/attention/o_bias_D", "D"),
    ]
  if config.mlp_bias:
    rows += [
      (f"{mlp}.gate_proj.bias", f"{_BLOCK}/mlp/gate_bias_F", "F"),
      (f"{mlp}.up_proj.bias", f"{_BLOCK}/mlp/up_bias_F", "F"),
      (f"{mlp}.down_proj.bias", f"{_BLOCK}/mlp/down_bias_D", "D"),
    ]
  if not config.tied_head:
    rows.append(("lm_head.weight", "lm_DV", "V D"))
  return [table.Tensor(*row) for row in rows]
