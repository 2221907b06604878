"""What an evaluation reads before it samples: settings, problems, folders."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from reft_jax import files
from reft_jax.config import checks, cli, loading, schema
from reft_jax.data import encode
from reft_jax.data import splits as splits_lib
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.evaluation import evaluation as evaluation_lib
from reft_jax.evaluation import settings
from reft_jax.huggingface import fingerprint, hub
from reft_jax.run import files_check, model_paths, preflight, setup
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost
from reft_jax.tasks import grader as grader_lib


def read_settings(
  model: model_paths.Model, command: cli.Command
) -> schema.Config:
  """A model's settings: those of its run, under those of the command line.

  Raises:
    UserError: as `loading.load`; or the model is in no run and no file is
      given.
  """
  given, overrides = command.files, command.overrides
  if model.run:
    given = (str(model.run / "config.yaml"), *given)
    # The run's output is where it was trained, not where it is evaluated.
    overrides = ("output=null", *overrides)
  elif not given:
    raise UserError(
      f"{model.folder} lies in no run, whose settings would say how it is "
      "asked; name an experiment, such as --config gsm8k_nl_codellama_7b."
    )
  config = loading.load(given, overrides)
  path = config.model.path if model.checkpoint else str(model.folder)
  return settings.settings_of(config, path)


def check(configs: Sequence[schema.Config]) -> None:
  """Raises UserError for settings that cannot be evaluated."""
  for config in configs:
    checks.validate(config)
    files_check.check_files(_without_training_set(config))
    settings.check(config.evaluation)


def directories(
  models: Sequence[model_paths.Model], configs: Sequence[schema.Config]
) -> list[pathlib.Path]:
  """The folders of the models' answers.

  Raises:
    UserError: two models have the same folder.
  """
  found: dict[pathlib.Path, model_paths.Model] = {}
  for model, config in zip(models, configs, strict=True):
    folder = settings.folder(model.run, model.name, config.evaluation.split)
    if config.output:
      name = folder.name if len(models) > 1 else ""
      folder = files.expand_user(config.output) / name
    if folder in found:
      raise UserError(
        f"{found[folder].folder} and {model.folder} would both be kept in "
        f"{folder}; evaluate one at a time, each with its own output."
      )
    found[folder] = model
  return list(found)


def missing(
  models: Sequence[model_paths.Model], configs: Sequence[schema.Config]
) -> Iterator[str]:
  """The names of models on the hub that are not downloaded yet."""
  for model, config in zip(models, configs, strict=True):
    own = None if model.checkpoint else str(model.folder)
    for name in (own, config.model.path, config.evaluation.reward_model):
      if name and hub.is_id(name) and hub.find(name) is None:
        yield name


def open_graders(
  configs: Sequence[schema.Config], exits: contextlib.ExitStack
) -> list[grader_lib.Grader]:
  """A grader for each model; models that are graded alike share one."""
  opened: dict[Any, grader_lib.Grader] = {}
  keys = [(c.data.reasoning, c.data.answers, c.programs) for c in configs]
  for key, config in zip(keys, configs, strict=True):
    if key not in opened:
      opened[key] = setup.open_grader(config, exits)
  return [opened[key] for key in keys]


def prepare(
  model: model_paths.Model,
  config: schema.Config,
  directory: pathlib.Path,
  grader: grader_lib.Grader,
  console: console_lib.Console,
) -> evaluation_lib.Evaluation:
  """Everything that an evaluation needs but the weights.

  Raises:
    UserError: something of it is missing or does not fit.
  """
  if not model.checkpoint:
    model = dataclasses.replace(model, folder=hub.folder(str(model.folder)))
  tokenizer, network = setup.open_model(config)
  preflight.check_lengths(config, network)
  layout = setup.lay_out(config, network)
  meshes = mesh_lib.make_meshes(layout)
  problems = _read_problems(config, tokenizer)
  split = config.evaluation.split
  if not problems.examples:
    setting = "data.dev_size" if split == "dev" else f"data.{split}"
    raise UserError(
      f"evaluation.split={split}: {model.name} has no such problems; set "
      f"{setting}, or another split."
    )
  engine = setup.open_engine(
    config,
    dataclasses.replace(network, gather=layout.gather),
    meshes,
    tokenizer,
    grader,
    problems.examples,
  )
  return evaluation_lib.Evaluation(engine, directory, model, problems, console)


def _read_problems(
  config: schema.Config, tokenizer: tokenizer_lib.Tokenizer
) -> encode.Encoded:
  """The problems of the split, as ids; raises as `splits.encoded`."""
  splits = splits_lib.encoded(_without_training_set(config), tokenizer)
  asked = splits[config.evaluation.split]
  # Nor does it matter which annotations could be learned.
  return dataclasses.replace(asked, long_targets=0, unusable_targets=())


def _without_training_set(config: schema.Config) -> schema.Config:
  """Settings that read a separate test set, if it is asked, and no other.

  A model can be tested without its training set; the test set is read in its
  place.
  """
  data = config.data
  if config.evaluation.split != "test" or data.test is None:
    return config
  data = dataclasses.replace(
    data, train=data.test, train_limit=data.test_limit, dev_size=0
  )
  return dataclasses.replace(config, data=data)


def claim(directory: pathlib.Path) -> None:
  """Makes the folder of an evaluation.

  Raises:
    UserError: it cannot be written.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=directory).close()
  except OSError as error:
    raise UserError(
      f"the evaluation's folder {directory} cannot be written "
      f"({error.strerror}); set output to another place."
    ) from error


def check_equal_on_all(
  evaluations: Sequence[evaluation_lib.Evaluation],
) -> None:
  """All processes must evaluate the same.

  Raises:
    UserError: models, settings or problems differ.
  """
  names = [str(each.model.folder) for each in evaluations]
  multihost.check_equal_on_all({"models": repr(names)})
  for name, each in zip(names, evaluations, strict=True):
    engine, config = each.engine, each.engine.config
    split = config.evaluation.split
    multihost.check_equal_on_all(
      {
        f"settings of {name}": loading.to_yaml(config),
        f"layout of {name}": repr(engine.mesh.shape),
        f"tokenizer of {name}": engine.tokenizer.fingerprint,
        f"problems of {name}": encode.fingerprint({split: each.problems}),
        f"weights of {name}": fingerprint.of_weights(each.model.folder),
      }
    )
