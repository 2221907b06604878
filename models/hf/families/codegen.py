"""CodeGen: attention and feed-forward layer in parallel, interleaved rope."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models import errors
from reft_jax.models.hf.families import gpt2, kinds, rope_fields, table

NAMES = table.Names(
  model="CodeGenForCausalLM",
  # transformers has no such class: only this program opens these classifiers.
  classifier="CodeGenForSequenceClassification",
  prefix="transformer.",
  head="lm_head.weight",
  ignored=r".*\.attn\.(causal_mask|masked_bias|bias)",
)
FIELDS = {
  **kinds.with_defaults(
    gpt2.SHARED, n_positions=2048, tie_word_embeddings=False
  ),
  "rotary_dim": kinds.SIZE.field(64, nullable=True),
}

_BLOCKS = 4  # It was trained on 4 devices, each with a share of q, v and k.
_BLOCK = "trunk/blocks"
_LAYER = "transformer.h.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a CodeGenForCausalLM's config.json."""
  shared = gpt2.read_shared(fields)
  rotary = fields["rotary_dim"]
  if shared["width"] % _BLOCKS:
    raise errors.UnsupportedModelError(
      f"the field 'n_embd' is {shared['width']} but must be a multiple of "
      f"{_BLOCKS}: queries, keys and values are stored in as many blocks."
    )
  return configs.ModelConfig(
    family="codegen",
    **shared,
    rope=configs.RopeConfig(
      size=None if rotary == shared["head_size"] else rotary, interleaved=True
    ),
    parallel="shared_norm",
    head_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read_config` reads."""
  return {
    **gpt2.write_shared(config),
    "n_ctx": config.max_positions,
    "rotary_dim": config.turning(rope_fields.of(config)),
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a CodeGenForCausalLM."""
  share = config.width // _BLOCKS
  q, v, k = table.alternating(_BLOCKS, (share, share, share))
  qkv, attention = f"{_LAYER}.attn.qkv_proj.weight", f"{_BLOCK}/attention"
  rows = [
    ("transformer.wte.weight", "trunk/embed_VD", "V D"),
    *table.pair(f"{_LAYER}.ln_1", f"{_BLOCK}/attention_norm_D"),
    *table.fused_qkv(qkv, attention + "/{}_D{}H", "{}H D", (q, k, v)),
    *table.pair(f"{_LAYER}.attn.out_proj", f"{attention}/o_NHD"),
    *table.pair(f"{_LAYER}.mlp.fc_in", f"{_BLOCK}/mlp/up_DF"),
    *table.pair(f"{_LAYER}.mlp.fc_out", f"{_BLOCK}/mlp/down_FD"),
    *table.pair("transformer.ln_f", "trunk/norm_D"),
    *table.pair("lm_head", "lm_DV"),
  ]
  return table.present(config, rows)
