"""Families: how each architecture's checkpoints are named and laid out.

A family is a module with

  KINDS                                   the fields it reads, what they hold
  FIXED                                   settings of which one value is done
  read_config(fields) -> ModelConfig      the fields of its config.json
  write_config(config) -> dict            those fields again
  tensors(config) -> list[table.Tensor]   one row for each parameter
  CLASSIFIER                              its classifiers' architecture
  PREFIX                                  what a bare trunk's names lack
  HEAD                                    the LM head's name
  IGNORED                                 a pattern of tensors with no weights

`BY_TYPE` has them by the `model_type` of config.json.
"""

from reft_jax.models.hf.families import (
  codegen,
  gemma,
  gemma2,
  gemma3,
  gemma3_text,
  gpt2,
  gpt_neox,
  llama,
  mistral,
  olmo2,
  opt,
  phi,
  phi3,
  qwen2,
  qwen3,
  smollm3,
)

BY_TYPE = {
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
