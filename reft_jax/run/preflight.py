"""Checks of what a run is given, before anything is compiled."""

import dataclasses

from reft_jax.config import schema
from reft_jax.config import stages as table
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import config as configs
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.models.hf import read as reader


def check_lengths(config: schema.Config, network: networks.Networks) -> None:
  """Prompt and response must fit into the model's context.

  Raises:
    UserError: says by how much they do not.
  """
  data, most = config.data, network.config.max_positions
  if data.max_prompt_tokens + data.max_response_tokens > most:
    raise UserError(
      f"data.max_prompt_tokens={data.max_prompt_tokens} and "
      f"data.max_response_tokens={data.max_response_tokens} exceed the model's "
      f"context of {most} tokens together; lower one of them."
    )


def check_lora(config: schema.Config, network: networks.Networks) -> None:
  """Adapters must fit the architecture.

  Raises:
    UserError: it lacks a target, or the rank is that of the weights.
  """
  lora = config.lora
  if not lora.rank:
    return
  targets = f"lora.targets=[{', '.join(lora.targets)}]"
  try:
    most = lora_lib.largest_rank(network.config, lora.targets)
  except UnsupportedModelError as error:
    raise UserError(f"{targets}: {error}") from None
  if lora.rank > most:
    raise UserError(
      f"lora.rank={lora.rank} is above {most}, the rank of a weight of"
      f" {targets}; lower it, or train the weights themselves with lora.rank=0."
    )


def check_warmup(
  config: schema.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  network: networks.Networks,
) -> None:
  """A warmed-up model must be one of the same kind, only trained further.

  Raises:
    UserError: its architecture or its tokenizer is another.
  """
  if config.model.warmup is None:
    return
  folder = hub.folder(config.model.warmup, "model.warmup")
  if reader.is_classifier(folder):
    raise UserError(
      f"model.warmup={config.model.warmup} holds a reward model; give a"
      " language model."
    )
  shape = with_room_for(config, reader.read_config(folder), tokenizer)
  ours = vars(network.config)
  different = [
    f"{name} {value!r}, not {ours[name]!r}"
    for name, value in vars(shape).items()
    if value != ours[name]
  ]
  theirs = tokenizer_lib.for_run(config, folder)
  if theirs.fingerprint != tokenizer.fingerprint:
    different.append("another tokenizer")
  if different:
    raise UserError(
      f"model.warmup={config.model.warmup} did not start from"
      f" model.path={config.model.path}: it has {', '.join(different)}; set"
      " model.path to the model it started from."
    )


def check_rationales(config: schema.Config, train_set: encode.Encoded) -> None:
  """Stages that imitate need annotated chains of thought.

  Raises:
    UserError: if no training problem has one.
  """
  imitating = [name for name, stage in table.TABLE.items() if stage.supervised]
  if config.online_st.gold_share:
    imitating.append("online_st")
  stages = [name for name in imitating if name in config.stages]
  if not stages or any(each.target for each in train_set.examples):
    return
  if train_set.unusable_targets:
    raise UserError(
      f"data.train={config.data.train}: {train_set.unusable_targets[0]}"
    )
  if train_set.long_targets:
    raise UserError(
      f"data.train={config.data.train}: every chain of thought is longer than "
      f"data.max_response_tokens={config.data.max_response_tokens}; raise it."
    )
  raise UserError(
    f"data.train={config.data.train}: no problem has a chain of thought "
    f"(answer_cot) for {' and '.join(stages)} to learn from; choose data "
    "that has them, or set stages=[reft]."
  )


def with_room_for(
  config: schema.Config,
  shape: configs.ModelConfig,
  tokenizer: tokenizer_lib.Tokenizer,
) -> configs.ModelConfig:
  """The architecture with a row for each id, where rows may be added."""
  if not config.model.resize_vocab:
    return shape
  size = max(shape.vocab_size, tokenizer.vocab_size)
  return dataclasses.replace(shape, vocab_size=size)
