"""Gemma 3 of 4B and more: the language model within a model that also sees.

Only its language model is read; it is written as a `gemma3_text` model.
"""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models.hf.families import gemma3_text, kinds

CLASSIFIER = gemma3_text.CLASSIFIER
PREFIX = gemma3_text.PREFIX
HEAD = gemma3_text.HEAD
# What sees, and what hands over what is seen.
IGNORED = r"(model\.)?(vision_tower|multi_modal_projector)\..*"
FIXED: dict[str, Any] = {}
# The language model's names, as older and newer versions wrap them.
RENAMED = {
  "model.language_model.": "model.",
  "language_model.model.": "model.",
  "language_model.lm_head.": "lm_head.",
}

KINDS = {
  "text_config": kinds.GROUP,
  "vision_config": kinds.GROUP,
  "boi_token_index": kinds.COUNT,
  "eoi_token_index": kinds.COUNT,
  "image_token_index": kinds.COUNT,
  "mm_tokens_per_image": kinds.COUNT,
  "initializer_range": kinds.NUMBER,
}

tensors = gemma3_text.tensors
write_config = gemma3_text.write_config


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The ModelConfig of the language model in a config.json."""
  fields = kinds.checked(fields, KINDS)
  text = {"vocab_size": 262208} | fields["text_config"]
  kinds.demand(text, gemma3_text.FIXED)
  return gemma3_text.read_config(_DEFAULTS | text)


# Published files leave out what is the default of their class.
_DEFAULTS = {
  "hidden_size": 2304,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "intermediate_size": 9216,
}
