"""Any model on disk, written as a Hugging Face folder with its card."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax

from reft_jax.config import loading, schema
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import card, folders, hub
from reft_jax.models import config as configs
from reft_jax.models.hf import read as reader
from reft_jax.run import model_paths, setup
from reft_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Opened:
  """A policy or a classifier on the devices, with all that is written of it."""

  shape: configs.ModelConfig
  tokenizer: tokenizer_lib.Tokenizer
  model: Any
  classifier: bool
  value: Any = None


def check_output(output: pathlib.Path, *, force: bool) -> None:
  """Raises UserError for a place that must not be written to."""
  if output.exists() and not output.is_dir():
    raise UserError(f"{output} is a file; choose another OUTPUT")
  if not force and output.is_dir() and any(output.iterdir()):
    raise UserError(
      f"{output} is not empty; choose another OUTPUT, or replace the model in"
      " it with --force"
    )


def export(
  model: model_paths.Model,
  output: pathlib.Path,
  *,
  dtype: str,
  max_shard_bytes: int,
) -> int:
  """Writes a model to a folder, in one move; returns the size of its weights.

  Raises:
    UserError: the checkpoint holds no model of its run's shape.
    UnsupportedModelError: the model's files do not fit together.
  """
  opened = _open(model)
  critic = None
  if opened.value is not None:
    critic = "separate" if "trunk" in opened.value else "shared"
  exported = card.Exported(
    model=model,
    shape=opened.shape,
    classifier=opened.classifier,
    value=critic,
    dtype=dtype,
    name=output.resolve().name,
  )
  text = card.render(exported)
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
    new = pathlib.Path(scratch) / "model"
    folders.fill(
      new,
      opened.shape,
      opened.tokenizer,
      opened.model,
      classifier=opened.classifier,
      value=opened.value,
      dtype=dtype,
      max_shard_bytes=max_shard_bytes,
    )
    (new / "README.md").write_text(text, encoding="utf-8")
    folders.merge(new, output)
  return sum(file.stat().st_size for file in output.rglob("*.safetensors"))


def _open(model: model_paths.Model) -> Opened:
  """Reads a model onto all devices."""
  mesh = mesh_lib.make_mesh(data=1, fsdp=-1, tensor=1)
  if model.checkpoint:
    return _open_checkpoint(model, mesh)
  folder = hub.folder(str(model.folder))
  if model.run is None:
    tokenizer = tokenizer_lib.load(folder)
  else:
    tokenizer = tokenizer_lib.for_run(_settings(model), folder)
  classifier = reader.is_classifier(folder)
  load = reader.load_classifier if classifier else reader.load
  shape, params = load(folder, mesh_lib.placement(mesh))
  return Opened(shape, tokenizer, params, classifier)


def _settings(model: model_paths.Model) -> schema.Config:
  """Of the run that a model lies in."""
  return loading.load([f"{model.run}/config.yaml"])


def _open_checkpoint(
  model: model_paths.Model, mesh: jax.sharding.Mesh
) -> Opened:
  tokenizer, networks = setup.open_model(_settings(model))
  parts = model_paths.parts(model.folder, networks)
  classifier = "scorer" in parts
  wanted = "scorer" if classifier else "policy"
  if wanted not in parts:
    raise UserError(
      f"{model.folder}: no model of the shape that the settings of {model.run}"
      " describe; give another checkpoint."
    )
  names = [wanted, *({"value"} & parts.keys())]
  held = model_paths.read(model.folder, networks, mesh, names)
  return Opened(
    networks.config, tokenizer, held[wanted], classifier, held.get("value")
  )
