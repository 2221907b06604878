"""The subject of a plan: settings, an architecture, the number of problems.

The architecture is that of a published model, named in `published.json` or by
its hub id in model.path, or it is read from the folder in model.path. Weights
and tokenizers are not needed.
"""

import dataclasses
import difflib
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reft_jax import files
from reft_jax.config import schema
from reft_jax.config import stages as table
from reft_jax.data import batches, splits
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import config as configs
from reft_jax.models import networks as networks_lib
from reft_jax.models.hf import families
from reft_jax.models.hf import read as reader
from reft_jax.run import setup
from reft_jax.tasks import embedded

# Training problems in the files of github.com/lqtrung1998/mwp_ReFT, by their
# names in the packaged experiments.
_PUBLISHED_PROBLEMS = {
  "gsm8k_nl": 7465,
  "gsm8k_python_sdp": 7356,
  "svamp_nl": 3076,
  "svamp_python_sdp": 3043,
  "mathqa_nl": 14862,
  "mathqa_python_sdp": 15250,
  "mathqa-numeric_nl": 8955,
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """What a plan is made for, besides the hardware."""

  config: schema.Config
  shape: configs.ModelConfig
  model: str
  # The number of training problems; None if it is not known.
  problems: int | None

  @property
  def parameters(self) -> int:
    """The number of the policy's parameters."""
    return networks_lib.Networks(self.shape).parameters

  @property
  def prompt_slots(self) -> int:
    """P, for the longest prompt that the settings allow."""
    return batches.round_up(self.config.data.max_prompt_tokens)

  @property
  def response_slots(self) -> int:
    """T, the most tokens of a response."""
    return self.config.data.max_response_tokens

  @property
  def row_slots(self) -> int:
    """S of a supervised batch, for the longest rows."""
    data = self.config.data
    return batches.round_up(data.max_prompt_tokens + data.max_response_tokens)

  @property
  def supervised(self) -> str | None:
    """The supervised stage that is planned for all; None if there is none."""

    def rows_and_epochs(name: str) -> tuple[int, int]:
      stage = getattr(self.config, name)
      return stage.micro_batch, stage.epochs

    # The one with most rows in memory; of equal ones the longest.
    names = [n for n in self.config.stages if table.TABLE[n].supervised]
    return max(names, key=rows_and_epochs, default=None)

  @property
  def unplanned(self) -> list[str]:
    """The parts of the run that are not planned."""
    stages = set(self.config.stages)
    parts = ("base", "reward_model")
    found: list[str] = [name for name in parts if name in stages]
    if stages & {"offline_st", "reward_model"}:
      found.append("collecting samples")
    return found

  def changed(self, settings: Mapping[str, Any]) -> "Subject":
    """The subject with other settings, by their dotted keys."""
    config = self.config
    for key, value in settings.items():
      config = _with(config, key.split("."), value)
    return dataclasses.replace(self, config=config)


def _with(node: Any, path: list[str], value: Any) -> Any:
  name, *rest = path
  if rest:
    value = _with(getattr(node, name), rest, value)
  return dataclasses.replace(node, **{name: value})


@functools.cache
def published() -> dict[str, dict[str, Any]]:
  """Published models by name: the hub id, and config.json."""
  file = pathlib.Path(__file__).with_name("published.json")
  return json.loads(file.read_text())


def read_shape(name: str) -> configs.ModelConfig:
  """The architecture of a published model."""
  return families.read_config(published()[name]["config"])


def subject(config: schema.Config, model: str | None) -> Subject:
  """The subject of the settings and --model.

  Raises:
    UserError: the model is not known.
  """
  name, shape = _architecture(config, model)
  return Subject(config, shape, name, _problems(config))


def _architecture(
  config: schema.Config, model: str | None
) -> tuple[str, configs.ModelConfig]:
  """The name and the shape of a model."""
  if model is not None:
    name = model.lower()
    if name not in published():
      close = difflib.get_close_matches(name, published()) or published()
      raise UserError(
        f"--model {model}: no published model of that name; did you mean"
        f" {', '.join(close)}? For another model, set model.path to its folder."
      )
    return name, read_shape(name)
  path = config.model.path
  if path is None:
    return f"base ({config.base.family})", setup.open_model(config)[1].config
  folder = hub.find(path)
  if folder is not None:
    return path, reader.read_config(folder)
  lacks = "not the folder of a model; give one"
  if hub.is_id(path):
    bare = path.partition("@")[0].lower()
    for name, row in published().items():
      if row["hub"].lower() == bare:
        return name, read_shape(name)
    lacks = "not downloaded, and its shape is not known; download it"
  known = ", ".join(published())
  raise UserError(
    f"model.path={path}: {lacks}, or name a shape with --model: {known}."
  )


def _problems(config: schema.Config) -> int | None:
  """Training problems: counted if the file is here, else as published."""
  data = config.data
  if data.train == embedded.NAME:
    count = config.embedded.questions
  elif files.expand_user(data.train).is_file():
    count = len(splits.problems(config)["train"].problems)
  else:
    stem = pathlib.PurePath(data.train).stem
    if stem not in _PUBLISHED_PROBLEMS:
      return None
    count = _PUBLISHED_PROBLEMS[stem] - data.dev_size
  return min(count, data.train_limit or count)
