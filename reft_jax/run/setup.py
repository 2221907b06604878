"""What a command builds from its settings before it runs anything."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from reft_jax.algorithms import pretrain
from reft_jax.config import loading, schema
from reft_jax.config import stages as table
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import fingerprint, hub
from reft_jax.models import networks, resize
from reft_jax.models.hf import read as reader
from reft_jax.run import context, files_check, preflight
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import layout as layout_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import metrics, multihost
from reft_jax.sampling import engine as engine_lib
from reft_jax.tasks import embedded
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks.sandbox import executor as executor_lib


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a run of settings needs, checked, without weights.

  `policies` read the models that lie in folders, by stage; `inputs` are
  fingerprints of what the settings only point to.
  """

  engine: engine_lib.Engine
  layout: layout_lib.Layout
  splits: Mapping[str, encode.Encoded]
  failures: Sequence[preflight.Failure]
  policies: Mapping[str, Callable[[], Any]]
  inputs: Mapping[str, str]


def prepare(config: schema.Config, exits: contextlib.ExitStack) -> Prepared:
  """Opens and checks everything that a run reads, but the weights.

  What runs programs ends with `exits`.

  Raises:
    UserError: something is missing or does not fit.
    UnsupportedModelError: a model cannot be read.
  """
  files_check.check_files(config)
  grader = open_grader(config, exits)
  tokenizer, network = open_model(config)
  laid_out = lay_out(config, network)
  meshes = mesh_lib.make_meshes(laid_out)
  network = dataclasses.replace(network, gather=laid_out.gather)
  preflight.check_lengths(config, network)
  preflight.check_lora(config, network)
  preflight.check_warmup(config, tokenizer, network)
  splits, failures = preflight.check_problems(config, tokenizer, grader)
  examples = [each for split in splits.values() for each in split.examples]
  engine = open_engine(config, network, meshes, tokenizer, grader, examples)
  return Prepared(
    engine=engine,
    layout=laid_out,
    splits=splits,
    failures=failures,
    policies=open_policies(config, engine.mesh, network.config.vocab_size),
    inputs={
      "tokenizer": tokenizer.fingerprint,
      "problems": encode.fingerprint(splits),
      **weights(config),
    },
  )


def check_equal_on_all(config: schema.Config, ready: Prepared) -> None:
  """Raises UserError if processes differ in settings, inputs or layout."""
  facts = {f"setting {key}": repr(v) for key, _, v in loading.settings(config)}
  layout = {"layout": repr(ready.layout)}
  multihost.check_equal_on_all(facts | dict(ready.inputs) | layout)


def open_run(
  config: schema.Config,
  directory: pathlib.Path,
  ready: Prepared,
  console: console_lib.Console,
  exits: contextlib.ExitStack,
) -> context.Run:
  """The run in its folder; its recorder closes with `exits`."""
  recorder: metrics.Recorder | metrics.Silent = metrics.Silent()
  if multihost.is_lead():
    tensorboard = config.logging.tensorboard
    recorder = metrics.Recorder(directory, tensorboard=tensorboard)
  exits.callback(recorder.close)
  return context.Run(
    config=config,
    directory=directory,
    engine=ready.engine,
    **{name: split.examples for name, split in ready.splits.items()},
    recorder=recorder,
    console=console,
  )


def configure_libraries() -> None:
  """Keeps compiled programs, unless set otherwise; silences orbax's logs."""
  logging.getLogger("absl").setLevel(logging.WARNING)
  if jax.config.values["jax_compilation_cache_dir"] is None:
    folder = pathlib.Path("~/.cache/reft_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def open_grader(
  config: schema.Config, exits: contextlib.ExitStack
) -> grader_lib.Grader:
  """What grades completions; what runs their programs ends with `exits`.

  Raises UserError if programs cannot be run safely here.
  """
  executor = None
  if config.data.reasoning == "python":
    executor = executor_lib.Executor(**vars(config.programs))
    exits.enter_context(executor)
  return grader_lib.Grader(config.data.reasoning, config.data.answers, executor)


def open_model(
  config: schema.Config,
) -> tuple[tokenizer_lib.Tokenizer, networks.Networks]:
  """The tokenizer and the networks, without weights.

  Raises UserError if the tokenizer has ids that the embedding has not.
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
    shape = reader.read_config(folder)
    tokenizer = tokenizer_lib.for_run(config, folder)
    shape = preflight.with_room_for(config, shape, tokenizer)
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
) -> layout_lib.Layout:
  """How the devices are laid out for a model, if it is known.

  Raises UserError if the wanted layout does not use all devices.
  """
  return layout_lib.choose(
    config.mesh,
    network.config if network else None,
    parameters=network.parameters if network else 0,
    compute_dtype=config.model.compute_dtype,
    devices=mesh_lib.available_devices(),
  )


def open_engine(
  config: schema.Config,
  network: networks.Networks,
  meshes: tuple[jax.sharding.Mesh, jax.sharding.Mesh],
  tokenizer: tokenizer_lib.Tokenizer,
  grader: grader_lib.Grader,
  examples: Sequence[encode.Example],
) -> engine_lib.Engine:
  """The engine that answers these examples."""
  mesh, sampling_mesh = meshes
  return engine_lib.Engine(
    config=config,
    networks=network,
    mesh=mesh,
    sampling_mesh=sampling_mesh,
    tokenizer=tokenizer,
    grader=grader,
    prompt_slots=engine_lib.prompt_slots(examples),
  )


def open_policies(
  config: schema.Config, mesh: jax.sharding.Mesh, vocab_size: int
) -> dict[str, Callable[[], Any]]:
  """What reads the policies that lie in folders, by the stages they stand for.

  Only those that a stage of this run starts from or samples with. Each is read
  onto the mesh when it is called; here it is checked without its weights. They
  have `vocab_size` rows, or get them.

  Raises:
    UnsupportedModelError: one of them cannot be read.
  """
  wanted = {table.starts_from(config, stage) for stage in config.stages}
  if table.collected_splits(config):
    wanted.add(table.sampling_policy_stage(config))
  policies: dict[str, Callable[[], Any]] = {}
  for name, setting in (("base", "path"), ("warmup", "warmup")):
    path = getattr(config.model, setting)
    if path and name in wanted:
      folder = hub.folder(path, f"model.{setting}")
      reader.check_policy(folder)
      policies[name] = functools.partial(read_policy, folder, mesh, vocab_size)
  return policies


def read_policy(
  folder: pathlib.Path, mesh: jax.sharding.Mesh, vocab_size: int
) -> Any:
  """The policy of a folder, on the mesh's shards, with a row for each id."""
  shape, policy = reader.load(folder, mesh_lib.placement(mesh))
  if shape.vocab_size < vocab_size:
    policy = mesh_lib.put(mesh, resize.grow(shape, policy, vocab_size)[1])
  return policy


def weights(config: schema.Config) -> dict[str, str]:
  """Fingerprints of the models that a run starts from."""
  paths = {"model.path": config.model.path, "model.warmup": config.model.warmup}
  return {
    f"weights in {name}": fingerprint.of_weights(hub.folder(path, name))
    for name, path in paths.items()
    if path
  }
