"""Llama: CodeLlama, Llama 2 and 3, TinyLlama, DeepSeek-distill-Llama.

Several families store their models as Llama does, with more or fewer tensors;
they call `names`, `read_shared`, `write_shared` and `tensors`.
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

# The fields that its relatives have too.
SHARED = {
  "vocab_size": kinds.SIZE.field(ours="vocab_size"),
  "hidden_size": kinds.SIZE.field(ours="width"),
  "num_hidden_layers": kinds.SIZE.field(ours="layers"),
  "num_attention_heads": kinds.SIZE.field(ours="heads"),
  "num_key_value_heads": kinds.SIZE.field(None, "kv_heads", nullable=True),
  "head_dim": kinds.SIZE.field(ours="head_size"),
  "intermediate_size": kinds.SIZE.field(ours="ffn"),
  "rms_norm_eps": kinds.NUMBER.field(1e-6, "norm_eps"),
  "tie_word_embeddings": kinds.FLAG.field(False, "tied_head"),
  "hidden_act": kinds.TEXT.field("silu", "activation"),
  "max_position_embeddings": kinds.SIZE.field(2048, "max_positions"),
  "initializer_range": kinds.NUMBER.field(0.02, "init_scale"),
}
FIELDS = {
  **SHARED,
  "attention_bias": kinds.FLAG.field(False),
  "mlp_bias": kinds.FLAG.field(False),
}

_BLOCK = "trunk/blocks"
_LAYER = "model.layers.{}"


def names(start: str) -> table.Names:
  """The names of a relative, whose classes' names start so."""
  return NAMES._replace(
    model=f"{start}ForCausalLM", classifier=f"{start}ForSequenceClassification"
  )


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a LlamaForCausalLM's config.json."""
  return configs.ModelConfig(
    family="llama",
    **read_shared(fields),
    **read_bias(fields),
    mlp_bias=fields["mlp_bias"],
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **write_shared(config),
    "attention_bias": config.qkv_bias,
    "mlp_bias": config.mlp_bias,
  }


def read_shared(
  fields: Mapping[str, Any], rope_kinds: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """ModelConfig's fields that Llama and its relatives name alike.

  Args:
    fields: the config.json, completed by a relative's FIELDS.
    rope_kinds: its own names of the ropes' kinds, and what we call them.
  """
  heads = fields["num_attention_heads"]
  head_size = fields["hidden_size"] // heads
  shared = kinds.read_ours(SHARED, {"head_dim": head_size, **fields})
  shared["kv_heads"] = shared["kv_heads"] or heads
  shared["rope"] = rope_fields.read(
    fields, shared["max_positions"], shared["head_size"], rope_kinds
  )
  return shared


def read_bias(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Whether all projections of attention have biases."""
  return dict.fromkeys(("qkv_bias", "o_bias"), fields["attention_bias"])


def write_shared(config: configs.ModelConfig, **own: Any) -> dict[str, Any]:
  """The fields that `read_shared` reads; `own` ones come before the rope's."""
  return {
    **kinds.write_ours(SHARED, config),
    **own,
    **rope_fields.write(rope_fields.of(config), config.head_size),
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a LlamaForCausalLM, or of a relative with its names."""
  attention, mlp = f"{_LAYER}.self_attn", f"{_LAYER}.mlp"
  rows = [
    ("model.embed_tokens.weight", "trunk/embed_VD", "V D"),
    *_norms(config),
    *table.pair(f"{attention}.q_proj", f"{_BLOCK}/attention/q_DNH"),
    *table.pair(f"{attention}.k_proj", f"{_BLOCK}/attention/k_DKH"),
    *table.pair(f"{attention}.v_proj", f"{_BLOCK}/attention/v_DKH"),
    *table.pair(f"{attention}.o_proj", f"{_BLOCK}/attention/o_NHD"),
    (f"{attention}.q_norm.weight", f"{_BLOCK}/attention/q_norm_H", "H"),
    (f"{attention}.k_norm.weight", f"{_BLOCK}/attention/k_norm_H", "H"),
    (f"{attention}.q_norm.weight", f"{_BLOCK}/attention/q_norm_NH", "NH"),
    (f"{attention}.k_norm.weight", f"{_BLOCK}/attention/k_norm_KH", "KH"),
    *table.pair(f"{mlp}.gate_proj", f"{_BLOCK}/mlp/gate_DF"),
    *table.pair(f"{mlp}.up_proj", f"{_BLOCK}/mlp/up_DF"),
    *table.pair(f"{mlp}.down_proj", f"{_BLOCK}/mlp/down_FD"),
    ("model.norm.weight", "trunk/norm_D", "D"),
    (NAMES.head, "lm_DV", "V D"),
  ]
  return table.present(config, rows)


def _norms(config: configs.ModelConfig) -> list[tuple[str, str, str]]:
  """A block's norms. The same name means different norms in two families."""
  pre = config.norm_place == "pre"
  names = {
    "attention_norm_D": "input",
    "attention_out_norm_D": "post_attention",
    "mlp_norm_D": "post_attention" if pre else "pre_feedforward",
    "mlp_out_norm_D": "post_feedforward",
  }
  return [
    (f"{_LAYER}.{stored}_layernorm.weight", f"{_BLOCK}/{path}", "D")
    for path, stored in names.items()
  ]
