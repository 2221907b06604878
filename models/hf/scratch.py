"""Small architectures of any family, from their sizes alone."""

from reft_jax.models import config as configs
from reft_jax.models import errors
from reft_jax.models.hf import families

FAMILIES = tuple(sorted(families.BY_TYPE.keys() - {"gemma3"}))


def architecture(
  family: str,
  *,
  vocab_size: int,
  width: int,
  layers: int,
  heads: int,
  kv_heads: int,
  ffn: int,
  max_positions: int,
) -> configs.ModelConfig:
  """A model of a family with these sizes, a tied head and its other defaults.

  The family is one of FAMILIES; the sizes are named as in ModelConfig. A head
  has width / heads coordinates. Some families require K to be N.

  Raises:
    UnsupportedModelError: the family has no model of these sizes.
  """
  head_size = width // heads
  # The sizes by the names that all families have for them.
  config = families.read_config(
    {
      "model_type": family,
      "vocab_size": vocab_size,
      **dict.fromkeys(("hidden_size", "n_embd"), width),
      **dict.fromkeys(("num_hidden_layers", "n_layer"), layers),
      **dict.fromkeys(("num_attention_heads", "n_head"), heads),
      "num_key_value_heads": kv_heads,
      **dict.fromkeys(("head_dim", "query_pre_attn_scalar"), head_size),
      "rotary_dim": head_size,
      "rotary_pct": 0.5,
      **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), ffn),
      **dict.fromkeys(
        ("max_position_embeddings", "n_positions"), max_positions
      ),
      "original_max_position_embeddings": max_positions,
      "rms_norm_eps": 1e-5,
      "tie_word_embeddings": True,
    }
  )
  if config.kv_heads != kv_heads:
    raise errors.UnsupportedModelError(
      f"heads of {family} do not share keys and values: kv_heads={kv_heads} "
      f"must be heads={heads}."
    )
  return config
