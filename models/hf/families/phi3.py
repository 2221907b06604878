"""Phi-3 and Phi-4-mini: Llama with fused q, k, v and fused gate, up."""

import re
from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import kinds, llama, rope_fields, table

NAMES = llama.names("Phi3")
FIELDS = {
  **kinds.with_defaults(
    llama.SHARED, rms_norm_eps=1e-5, max_position_embeddings=4096
  ),
  "original_max_position_embeddings": kinds.SIZE.field(4096),
  "sliding_window": kinds.SIZE,
  "attention_bias": kinds.only(False),
}
# Early files call Phi-3's rope by these names.
_RENAMED = {"su": "longrope", "yarn": "longrope"}


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a Phi3ForCausalLM's config.json."""
  shared = llama.read_shared(fields, rope_kinds=_RENAMED)
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
  parts = dict(zip("qkv", table.parts(N * H, K * H, K * H), strict=True))
  parts |= dict(zip(("gate", "up"), table.parts(F, F), strict=True))

  def fuse(row: table.Tensor) -> table.Tensor:
    stored = re.sub(r"\.[qkv]_proj\.", ".qkv_proj.", row.stored)
    stored = re.sub(r"\.(gate|up)_proj\.", ".gate_up_proj.", stored)
    if stored == row.stored:
      return row
    name = row.path.rpartition("/")[2].partition("_")[0]
    return row._replace(stored=stored, part=parts[name])

  return [fuse(row) for row in llama.tensors(config)]
