"""What a command builds from its settings before it runs anything."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from reft_jax.algorithms import pretrain
from reft_jax.config import schema
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import config as configs
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks, resize
from reft_jax.models.hf import pretrained
from reft_jax.run import stages as stages_lib
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.tasks import embedded, grader
from reft_jax.tasks.sandbox import executor as executor_lib


def use_compilation_cache() -> None:
  """Compiled programs are kept for the next start, unless set otherwise."""
  if jax.config.jax_compilation_cache_dir is None:
    folder = pathlib.Path("~/.cache/reft_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def open_grader(
  config: schema.Config, exits: contextlib.ExitStack
) -> grader.Grader:
  """What grades completions; what runs their programs ends with `exits`.

  Raises:
    UserError: programs cannot be run safely here.
  """
  executor = None
  if config.data.reasoning == "python":
    executor = executor_lib.Executor(**vars(config.programs))
    exits.enter_context(executor)
  return grader.Grader(config.data.reasoning, config.data.answers, executor)


def open_model(
  config: schema.Config,
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
    folder = hub.folder(path, "model.path")
    shape = pretrained.read_config(folder)
    tokenizer = tokenizer_lib.for_run(config, folder)
    shape = _with_room(config, shape, tokenizer)
    if tokenizer.vocab_size > shape.vocab_size:
      raise UserError(
        f"model.path={path}: the tokenizer has {tokenizer.vocab_size} ids but "
        f"the model's embedding only {shape.vocab_size} rows; use the "
        "tokenizer the model was trained with, or add rows with "
        "model.resize_vocab=true."
      )
  network = networks.Networks(
    config=shape,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
    adapter_scale=config.lora.scale,
  )
  return tokenizer, network


def lay_out(
  config: schema.Config, network: networks.Networks | None
) -> layout.Layout:
  """How the devices of this run are laid out for a model, if it is known.

  Raises:
    UserError: what is wanted does not use all devices.
  """
  return layout.choose(
    config.mesh,
    network and network.config,
    parameters=network.parameters if network else 0,
    compute_dtype=config.model.compute_dtype,
    devices=mesh_lib.present(),
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
  except pretrained.UnsupportedModelError as error:
    raise UserError(f"{targets}: {error}") from None
  if lora.rank > most:
    raise UserError(
      f"lora.rank={lora.rank} is above {most}, the rank of a weight of"
      f" {targets}; lower it, or learn the weights themselves with lora.rank=0."
    )


def _with_room(
  config: schema.Config,
  shape: configs.ModelConfig,
  tokenizer: tokenizer_lib.Tokenizer,
) -> configs.ModelConfig:
  """The architecture with a row for each id, where rows may be added."""
  if not config.model.resize_vocab:
    return shape
  size = max(shape.vocab_size, tokenizer.vocab_size)
  return dataclasses.replace(shape, vocab_size=size)


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
  if pretrained.is_classifier(folder):
    raise UserError(
      f"model.warmup={config.model.warmup} holds a reward model; give a"
      " language model."
    )
  shape = _with_room(config, pretrained.read_config(folder), tokenizer)
  different = [
    f"{field.name} {getattr(shape, field.name)!r}, not"
    f" {getattr(network.config, field.name)!r}"
    for field in dataclasses.fields(shape)
    if getattr(shape, field.name) != getattr(network.config, field.name)
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


def open_policies(
  config: schema.Config, mesh: jax.sharding.Mesh, vocab_size: int
) -> dict[str, Callable[[], Any]]:
  """What reads the policies that lie in folders, by the stages they stand for.

  Those alone that a stage of this run starts from or draws from. Each is read
  onto the mesh when it is called, and looked at without its weights here. They
  have `vocab_size` rows, or get them.

  Raises:
    UnsupportedModelError: one of them cannot be read.
  """
  stages = set(config.stages)
  wanted = {stages_lib.starts_from(config, stage) for stage in stages}
  if stages & {"offline_st", "reward_model"}:
    wanted.add(stages_lib.sampling_policy_stage(config))
  paths = {"base": config.model.path, "warmup": config.model.warmup}
  folders = {
    name: hub.folder(path, f"model.{'path' if name == 'base' else name}")
    for name, path in paths.items()
    if path and name in wanted
  }
  for folder in folders.values():
    pretrained.check_policy(folder)
  return {
    name: functools.partial(read_policy, folder, mesh, vocab_size)
    for name, folder in folders.items()
  }


def read_policy(
  folder: pathlib.Path, mesh: jax.sharding.Mesh, vocab_size: int
) -> Any:
  """The policy of a folder, on the mesh's shards, with a row for each id."""
  shape, policy = pretrained.load(folder, mesh_lib.placement(mesh))
  if shape.vocab_size < vocab_size:
    policy = mesh_lib.put(mesh, resize.grow(shape, policy, vocab_size)[1])
  return policy
