"""Phi-3 and Phi-4-mini: Llama with fused q, k, v and fused gate, up."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields, table

NAMES = llama.NAMES._replace(
  model="Phi3ForCausalLM", classifier="Phi3ForSequenceClassification"
)

KINDS = {
  **llama.SHARED_KINDS,
  "original_max_position_embeddings": kinds.SIZE,
  "sliding_window": kinds.SIZE,
  "attention_bias": kinds.only(False),
}
# Early files call Phi-3's rope by these names.
_RENAMED = {"su": "longrope", "yarn": "longrope"}


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Phi3ForCausalLM's config.json."""
  shared = llama.read_shared(
    {"original_max_position_embeddings": 4096, **fields},
    eps=1e-5,
    max_positions=4096,
    renamed=_RENAMED,
  )
  window = fields.get("sliding_window")
  return configs.ModelConfig(
    family="phi3",
    **shared,
    windows=(window,) * shared["layers"] if window else (),
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  fields = {
    **llama.write_shared(config),
    "sliding_window": max(config.windows, default=None),
  }
  if rope_fields.of(config).kind == "longrope":
    original = rope_fields.of(config).original_max_positions
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

  def stored(row: table.Tensor) -> table.Tensor:
    for apart, (together, part) in fused.items():
      if f".{apart}." in row.stored:
        name = row.stored.replace(apart, together)
        return row._replace(stored=name, part=part)
    return row

  return [stored(row) for row in llama.tensors(config)]
