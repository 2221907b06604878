"""What a command builds from its settings before it runs anything."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax

from reft_jax import config as config_lib
from reft_jax import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.methods import pipeline, pretrain
from reft_jax.models import networks, pretrained
from reft_jax.tasks import embedded, grading
from reft_jax.tasks.sandbox import executor as executor_lib


def use_compilation_cache() -> None:
  """Compiled programs are kept for the next start, unless set otherwise."""
  if jax.config.jax_compilation_cache_dir is None:
    folder = pathlib.Path("~/.cache/reft_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def open_grader(
  config: config_lib.Config, exits: contextlib.ExitStack
) -> grading.Grader:
  """What grades completions; what runs their programs ends with `exits`.

  Raises:
    UserError: programs cannot be run safely here.
  """
  executor = None
  if config.data.reasoning == "python":
    executor = executor_lib.Executor(**vars(config.programs))
    exits.enter_context(executor)
  return grading.Grader(config.data.reasoning, config.data.answers, executor)


def open_model(
  config: config_lib.Config,
) -> tuple[tokenizer_lib.Tokenizer, networks.Networks]:
  """The tokenizer and the networks, without weights.

  Raises:
    UserError: if the tokenizer has ids that the embedding has not.
  """
  path = config.model.path
  if path is None:
    words = config.embedded
    tokenizer = tokenizer_lib.wrap(
      embedded.tokenizer(choices=words.choices > 0, programs=words.programs > 0)
    )
    shape = pretrain.architecture(config, tokenizer.vocab_size)
  else:
    folder = config_lib.expanded(path)
    shape = pretrained.read_config(folder)
    tokenizer = tokenizer_lib.load(folder)
    if tokenizer.vocab_size > shape.vocab_size:
      raise UserError(
        f"model.path={path}: the tokenizer has {tokenizer.vocab_size} ids but "
        f"the model's embedding only {shape.vocab_size} rows; use the "
        "tokenizer the model was trained with."
      )
  network = networks.Networks(
    config=shape,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
  )
  return tokenizer, network


def check_lengths(
  config: config_lib.Config, network: networks.Networks
) -> None:
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


def check_warmup(
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  network: networks.Networks,
) -> None:
  """A warmed-up model must be one of the same kind, only trained further.

  Raises:
    UserError: its architecture or its tokenizer is another.
  """
  if config.model.warmup is None:
    return
  folder = config_lib.expanded(config.model.warmup)
  if pretrained.is_classifier(folder):
    raise UserError(
      f"model.warmup={config.model.warmup} holds a reward model; give a"
      " language model."
    )
  shape = pretrained.read_config(folder)
  different = [
    f"{field.name} {getattr(shape, field.name)!r}, not"
    f" {getattr(network.config, field.name)!r}"
    for field in dataclasses.fields(shape)
    if getattr(shape, field.name) != getattr(network.config, field.name)
  ]
  if tokenizer_lib.load(folder).fingerprint != tokenizer.fingerprint:
    different.append("another tokenizer")
  if different:
    raise UserError(
      f"model.warmup={config.model.warmup} did not start from"
      f" model.path={config.model.path}: it has {', '.join(different)}; set"
      " model.path to the model it started from."
    )


def open_policies(config: config_lib.Config) -> dict[str, Any]:
  """The policies, by the stages they stand for, that are read from folders.

  Those alone that a stage of this run starts from or draws from.
  """
  stages = set(config.stages)
  wanted = {pipeline.starts_from(config, stage) for stage in stages}
  if stages & {"offline_st", "reward_model"}:
    wanted.add(pipeline.drawer(config))
  folders = {"base": config.model.path, "warmup": config.model.warmup}
  return {
    name: pretrained.load(config_lib.expanded(folder))[1]
    for name, folder in folders.items()
    if folder and name in wanted
  }
