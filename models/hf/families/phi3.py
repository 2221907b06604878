"""Phi-3 and Phi-4-mini: Llama with q, k, v and gate, up stored as one."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields, table

CLASSIFIER = "Phi3ForSequenceClassification"
PREFIX = llama.PREFIX
HEAD = llama.HEAD
IGNORED = llama.IGNORED
FIXED = {"attention_bias": False}

KINDS = {
  **llama.SHARED_KINDS,
  "original_max_position_embeddings": kinds.SIZE,
  "sliding_window": kinds.SIZE,
}
# What early files call the rope of Phi-3.
_RENAMED = {"su": "longrope", "yarn": "longrope"}


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Phi3ForCausalLM's config.json."""
  fields = kinds.checked(fields, KINDS)
  shared = llama.shared_fields(fields, eps=1e-5, max_positions=4096)
  original = fields.get("original_max_position_embeddings", 4096)
  window = fields.get("sliding_window")
  return configs.ModelConfig(
    family="phi3",
    **shared,
    rope=llama.read_rope(
      {**fields, "original_max_position_embeddings": original},
      shared,
      renamed=_RENAMED,
    ),
    windows=(window,) * shared["layers"] if window else (),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  fields = {
    "architectures": ["Phi3ForCausalLM"],
    **llama.write_shared(config),
    **rope_fields.write(config.rope, config.head_size),
    "sliding_window": max(config.windows, default=None),
  }
  if config.rope.kind == "longrope":
    original = config.rope.original_max_positions
    fields["original_max_position_embeddings"] = original
  return fields


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a Phi3ForCausalLM."""
  N, K, H, F = config.heads, config.kv_heads, config.head_size, config.ffn
  q, k, v = table.parts(N * H, K * H, K * H)
  gate, up = table.parts(F, F)
  fused = {
    "self_attn.q_proj": ("self_attn.qkv_proj", q),
    "self_attn.k_proj": ("self_attn.qkv_proj", k),
    "self_attn.v_proj": ("self_attn.qkv_proj", v),
    "mlp.gate_proj": ("mlp.gate_up_proj", gate),
    "mlp.up_proj": ("mlp.gate_up_proj", up),
  }

  def stored(row):
    for apart, (together, part) in fused.items():
      if f".{apart}." in row.stored:
        name = row.stored.replace(apart, together)
        return row._replace(stored=name, part=part)
    return row

  return [stored(row) for row in llama.tensors(config)]
