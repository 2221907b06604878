"""Models by the paths that commands take: folders, runs and checkpoints."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from reft_jax import files
from reft_jax.config import loading, schema
from reft_jax.config import stages as table
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.run import setup
from reft_jax.run import stages as stages_lib
from reft_jax.runtime import checkpoints
from reft_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Model:
  """A model on disk, or on the hub.

  Its `folder` is a Hugging Face folder, its name on the hub, or the `state` of
  a `checkpoint`; `run` is the folder of the run that it lies in, if it does.
  """

  name: str
  folder: pathlib.Path
  run: pathlib.Path | None
  checkpoint: bool = False


def find(path: str) -> list[Model]:
  """The models that a path stands for; raises UserError if there is none."""
  if hub.is_id(path):
    name = path.partition("@")[0].rpartition("/")[2]
    return [Model(name, pathlib.Path(path), None)]
  folder = pathlib.Path(os.path.abspath(files.expand_user(path)))
  if not folder.is_dir():
    others = sorted(
      each.name for each in folder.parent.glob("*") if each.is_dir()
    )
    beside = f"; beside it are {', '.join(others)}" if others else ""
    raise UserError(f"{path}: no such folder{beside}.")
  if (folder / "config.json").is_file():
    return [Model(folder.name, folder, _run_of(folder.parent))]
  models = folder / "models"
  found = [
    Model(name, models / name, _run_of(models))
    for name, stage in table.TABLE.items()
    if not stage.classifier and (models / name / "config.json").is_file()
  ]
  return found or [_checkpoint(path, folder)]


def _checkpoint(path: str, folder: pathlib.Path) -> Model:
  """The newest model among checkpoints, or the one of a numbered folder."""
  steps = [each for each in folder.glob("*") if each.name.isdigit()]
  newest = max(steps, key=lambda step: int(step.name), default=folder)
  state, kept = newest / "state", newest.parent
  run = _run_of(kept.parent.parent)
  known = kept.name in ("best", "checkpoints") and state.is_dir()
  if run is None or not known:
    raise UserError(
      f"{path}: no model there; give a run's folder, its models/STAGE, "
      "stages/STAGE/best or stages/STAGE/checkpoints, or a Hugging Face folder "
      "(config.json, *.safetensors and tokenizer.json)."
    )
  name = "best" if kept.name == "best" else f"step{newest.name}"
  return Model(f"{kept.parent.name}-{name}", state, run, checkpoint=True)


def _run_of(folder: pathlib.Path) -> pathlib.Path | None:
  """The run whose `models` or `stages` a folder is."""
  if folder.name not in ("models", "stages"):
    return None
  return folder.parent if (folder.parent / "config.yaml").is_file() else None


def parts(
  state: pathlib.Path, networks: networks_lib.Networks
) -> dict[str, Any]:
  """What a checkpoint holds of `policy`, `value` and `scorer`.

  Those alone whose arrays have the networks' shapes, as ShapeDtypeStructs; with
  LoRA those of the adapters.
  """
  saved = checkpoints.shapes(state)
  held = saved.get("params", {"policy": saved, "scorer": saved})
  key = jax.random.key(0)
  init: Callable[..., Any] = networks.init
  if lora_lib.split(held)[1]:
    lora = _settings(state).lora
    init = functools.partial(
      lora_lib.init, networks.config, rank=lora.rank, targets=lora.targets
    )
  policy = jax.eval_shape(init, key)
  kind = "separate" if "trunk" in (held.get("value") or {}) else "shared"
  init_value = functools.partial(networks.init_value, kind=kind)
  known = {
    "policy": policy,
    "value": jax.eval_shape(init_value, policy),
    "scorer": jax.eval_shape(networks.init_scorer, policy, key),
  }
  return {
    name: shapes
    for name, shapes in known.items()
    if held.get(name) == jax.tree.map(lambda leaf: leaf.shape, shapes)
  }


def read(
  state: pathlib.Path,
  networks: networks_lib.Networks,
  mesh: jax.sharding.Mesh,
  names: Sequence[str],
) -> dict[str, Any]:
  """Some of the `parts` of a checkpoint, whole, on their shards.

  Adapters are merged into the model that they were made for, which is read from
  where it lies.

  Raises:
    UserError: they cannot be read.
  """
  shapes = parts(state, networks)
  like = {
    name: jax.tree.map(
      lambda leaf, sharding: leaf.update(sharding=sharding),
      shapes[name],
      mesh_lib.shardings(mesh, shapes[name]),
    )
    for name in names
  }
  if "params" in checkpoints.shapes(state):
    held = checkpoints.read(state, {"params": like})["params"]
  else:
    (name,) = names
    held = {name: checkpoints.read(state, like[name])}
  vocab_size = networks.config.vocab_size
  for name, part in held.items():
    adapter = {name: part}
    if lora_lib.split(adapter)[1]:
      base = setup.read_policy(_origin(state), mesh, vocab_size)
      joined = lora_lib.join(lora_lib.frozen_base(base, adapter), adapter)
      scale = _settings(state).lora.scale
      held[name] = lora_lib.merge_in_place(joined[name], scale)
  return held


def _settings(state: pathlib.Path) -> schema.Config:
  """Of the run whose `stages/STAGE/KIND/STEP/state` a checkpoint is."""
  return loading.load([str(state.parents[4] / "config.yaml")])


def _origin(state: pathlib.Path) -> pathlib.Path:
  """The model that the stage of a checkpoint started from."""
  run, config = state.parents[4], _settings(state)
  stage = state.parents[2].name.partition("-lr")[0]  # Without a sweep's rate.
  report = run / "stages" / stage / "result.json"
  start = table.starts_from(config, stage)
  if report.exists():
    start = json.loads(report.read_text())["start"]
  origin = stages_lib.origin(config, run, start or "base")
  return hub.folder(origin, f"{state} adapts")
