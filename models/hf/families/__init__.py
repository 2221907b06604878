"""Families: how each architecture's checkpoints are named and laid out.

A family is a module, as `table.Family` describes it. The functions here choose
the module by the `model_type` of config.json.
"""

from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models import errors, layers
from reft_jax.models.hf.families import (
  codegen,
  gemma,
  gemma2,
  gemma3,
  gemma3_text,
  gpt2,
  gpt_neox,
  kinds,
  llama,
  mistral,
  olmo2,
  opt,
  phi,
  phi3,
  qwen2,
  qwen3,
  rope_fields,
  smollm3,
  table,
)

CONFIG = "config.json"
BY_TYPE: dict[str, table.Family] = {
  module.__name__.rpartition(".")[2]: module
  for module in (
    llama,
    opt,
    gpt2,
    codegen,
    qwen2,
    qwen3,
    mistral,
    gemma,
    gemma2,
    gemma3,
    gemma3_text,
    phi3,
    phi,
    gpt_neox,
    olmo2,
    smollm3,
  )
}


def read_config(fields: Mapping[str, Any]) -> configs.ModelConfig:
  """The architecture that a config.json describes.

  Raises:
    UnsupportedModelError: a field is missing or has a wrong value, or the
      networks cannot compute this model.
  """
  model_type = fields.get("model_type")
  if model_type not in list(BY_TYPE):  # It may not be hashable.
    raise errors.UnsupportedModelError(
      f"model_type {model_type!r} is not supported; "
      f"supported: {', '.join(BY_TYPE)}."
    )
  if fields.get("quantization_config"):
    raise errors.UnsupportedModelError(
      "quantized weights cannot be trained; use the original model."
    )
  family = BY_TYPE[model_type]
  try:
    config = family.read_config(kinds.check_fields(fields, family.FIELDS))
  except KeyError as missing:
    raise errors.UnsupportedModelError(
      f"the field {missing} is missing."
    ) from None
  if config.activation not in layers.ACTIVATIONS:
    raise errors.UnsupportedModelError(
      f"hidden_act {config.activation!r} is not one of "
      f"{', '.join(layers.ACTIVATIONS)}."
    )
  return config


def unknown_fields(fields: Mapping[str, Any]) -> list[str]:
  """Those set in a config.json that `read_config` neither reads nor refuses."""
  own = BY_TYPE[fields["model_type"]].FIELDS
  known = {*own, *rope_fields.KINDS, *kinds.HARMLESS}
  return sorted(
    name
    for name, value in fields.items()
    if value not in (None, False)
    and name not in known
    and not name.startswith("_")
  )


def write_config(config: configs.ModelConfig) -> dict[str, Any]:
  """The config.json of a language model, which `read_config` reads back."""
  family = BY_TYPE[config.family]
  return {
    "architectures": [family.NAMES.model],
    "model_type": config.family,
    **family.write_config(config),
  }


def tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a language model."""
  return BY_TYPE[config.family].tensors(config)


def trunk_tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a model without a head."""
  return [row for row in tensors(config) if row.path.startswith("trunk/")]


def classifier_tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a classifier: a trunk and a head of its own."""
  outer = config.outer
  head = table.Tensor("score.weight", f"score_{outer}C", f"C {outer}")
  return [*trunk_tensors(config), head]
