"""What the stages of one run share, and what one of them is given."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.huggingface import folders
from reft_jax.models.hf import peft
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import keys, metrics
from reft_jax.sampling import engine as engine_lib
from reft_jax.sampling import grading

# Answers of a model to the dev questions.
EvaluateFn = Callable[[Any], list[grading.Answer]]
# Samples of each question.
Groups = Sequence[Sequence[grading.Answer]]


@dataclasses.dataclass(frozen=True)
class Run:
  """One run: its settings, its data as ids, its engine, its outputs."""

  config: schema.Config
  directory: pathlib.Path
  engine: engine_lib.Engine
  train: Sequence[encode.Example]
  dev: Sequence[encode.Example]
  test: Sequence[encode.Example]
  recorder: metrics.Recorder | metrics.Silent
  console: console_lib.Console

  def key(self, *path: int | str) -> jax.Array:
    """The random key of a purpose, such as `key("reft", "vote")`."""
    return keys.derive(self.config.seed, *path)

  def learner_arguments(self) -> tuple[Any, ...]:
    """What every learner takes first: networks, mesh and settings."""
    return self.engine.networks, self.engine.mesh, self.config

  def stage_directory(self, name: str) -> pathlib.Path:
    """Where a stage keeps its checkpoints and its result."""
    return self.directory / "stages" / name

  def save_model(
    self,
    folder: pathlib.Path,
    model: Any,
    metadata: Mapping[str, Any],
    *,
    classifier: bool = False,
    adapter: peft.Adapter | None = None,
  ) -> None:
    """Writes a Hugging Face folder in one move, whole or not at all.

    Beside model and tokenizer it holds `metadata` as training.json. The model
    is a policy, or a `classifier`; an `adapter` that was merged into it is
    written to a folder of its own in there.
    """
    folders.write(
      folder,
      self.engine.networks.config,
      self.engine.tokenizer,
      model,
      classifier=classifier,
      adapter=adapter,
      texts={"training.json": json.dumps(metadata, indent=2) + "\n"},
    )


@dataclasses.dataclass(frozen=True)
class StageRun:
  """What the training of one stage is given.

  Attributes:
    name: the stage's; its random streams follow from it.
    config: its settings.
    start_policy: gives the policy that it starts from, once for each learning
      rate.
    evaluate_fn: a policy's answers to the dev questions; None without them.
    keep: "best", the model that does best on dev, or "last".
    collected: by split, the graded samples that it learns from.
    part: what this training is called among those of a learning-rate sweep.
  """

  name: str
  config: Any
  start_policy: Callable[[], Any]
  evaluate_fn: EvaluateFn | None
  keep: str = "best"
  collected: Mapping[str, Groups] = dataclasses.field(default_factory=dict)
  part: str | None = None

  @property
  def label(self) -> str:
    """The name of its folder and in its metrics."""
    return self.part or self.name


@dataclasses.dataclass(frozen=True)
class Trained:
  """The model that a stage ends with, and where in the stage it was best."""

  model: Any
  dev_accuracy: float | None
  best_step: int
  seconds: float
  learning_rate: float
  cached: bool = False

  def metadata(self) -> dict[str, Any]:
    """Everything but the model, and whether it was cached."""
    left_out = ("model", "cached")
    return {k: v for k, v in vars(self).items() if k not in left_out}
