"""Gemma 3 of 4B and more, which also read images.

Only the language model is read. It is written as a `gemma3_text` model.
"""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import gemma3_text, kinds

NAMES = gemma3_text.NAMES._replace(
  ignored=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
  # Newer and older versions wrap the language model's names.
  renamed={
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
  },
)

FIELDS = {
  "text_config": kinds.GROUP,
  "vision_config": kinds.GROUP,
  "boi_token_index": kinds.COUNT,
  "eoi_token_index": kinds.COUNT,
  "image_token_index": kinds.COUNT,
  "mm_tokens_per_image": kinds.COUNT,
  "initializer_range": kinds.NUMBER,
}
# Published files leave out the defaults of transformers' class.
_DEFAULTS = {
  "vocab_size": 262208,
  "hidden_size": 2304,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "intermediate_size": 9216,
}

tensors = gemma3_text.tensors
write_config = gemma3_text.write_config


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of the language model in a config.json."""
  text = _DEFAULTS | fields["text_config"]
  return gemma3_text.read_config(kinds.check_fields(text, gemma3_text.FIELDS))
