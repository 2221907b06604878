"""CodeGen: attention and feed-forward layer side by side, interleaved rope."""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models import errors
from reft_jax.models.hf.families import gpt2, kinds, table

# transformers has no such class: only this program opens CodeGen classifiers.
CLASSIFIER = "CodeGenForSequenceClassification"
PREFIX = "transformer."
HEAD = "lm_head.weight"
IGNORED = r".*\.attn\.(causal_mask|masked_bias|bias)"
FIXED: dict[str, Any] = {}

KINDS = {
  "vocab_size": kinds.SIZE,
  "n_positions": kinds.SIZE,
  "n_embd": kinds.SIZE,
  "n_layer": kinds.SIZE,
  "n_head": kinds.SIZE,
  "n_inner": kinds.SIZE,
  "rotary_dim": kinds.SIZE,
  "activation_function": kinds.TEXT,
  "layer_norm_epsilon": kinds.NUMBER,
  "initializer_range": kinds.NUMBER,
  "tie_word_embeddings": kinds.FLAG,
}

_BLOCKS = 4  # The machines that trained it, each with its share of q, v, k.
_BLOCK = "trunk/blocks"
_LAYER = "transformer.h.{}"


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of a CodeGenForCausalLM's config.json."""
  rotary = kinds.or_null(fields, "rotary_dim", 64)
  fields = kinds.checked(fields, KINDS)
  shared = gpt2.shared_fields(fields, max_positions=2048, tied=False)
  size = shared["head_size"]
  if shared["width"] % _BLOCKS:
    raise errors.UnsupportedModelError(
      f"the field 'n_embd' is {shared['width']} but must be a multiple of "
      f"{_BLOCKS}: queries, keys and values are stored in as many blocks."
    )
  return configs.ModelConfig(
    family="codegen",
    **shared,
    rope=configs.RopeConfig(
      size=None if rotary in (None, size) else rotary, interleaved=True
    ),
    parallel="shared_norm",
    head_bias=True,
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads."""
  return {
    "architectures": ["CodeGenForCausalLM"],
    **gpt2.write_shared(config),
    "n_ctx": config.max_positions,
    "rotary_dim": config.turning(config.rope),
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a CodeGenForCausalLM."""
  share = config.width // _BLOCKS
  q, v, k = table.alternating(_BLOCKS, (share, share, share))
  qkv = f"{_LAYER}.attn.qkv_proj.weight"
  attention = f"{_BLOCK}/attention"
  rows = [
    ("transformer.wte.weight", "trunk/embed_VD", "V D"),
    *table.norm(f"{_LAYER}.ln_1", f"{_BLOCK}/attention_norm_D"),
    (qkv, f"{attention}/q_DNH", "NH D", q),
    (qkv, f"{attention}/k_DKH", "KH D", k),
    (qkv, f"{attention}/v_DKH", "KH D", v),
    *table.linear(f"{_LAYER}.attn.out_proj", f"{attention}/o_NHD"),
    *table.linear(f"{_LAYER}.mlp.fc_in", f"{_BLOCK}/mlp/up_DF"),
    *table.linear(f"{_LAYER}.mlp.fc_out", f"{_BLOCK}/mlp/down_FD"),
    *table.norm("transformer.ln_f", "trunk/norm_D"),
    (HEAD, "lm_DV", "V D"),
    ("lm_head.bias", "lm_bias_V", "V"),
  ]
  return table.present(config, rows)
