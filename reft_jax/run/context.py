"""What the stages of one run share, and what one of them is given."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from reft_jax import files
from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.huggingface import folders
from reft_jax.models.hf import peft
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import keys, metrics, multihost
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

    Beside model and tokenizer it holds `metadata` as training.json, and in a
    folder of its own an `adapter` that was merged into the model.
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


class Samples:
  """Completions and verdicts in `samples/NAME.jsonl`; the lead writes them."""

  def __init__(self, run: Run, name: str):
    self._run = run
    self._name = name
    self._path = run.directory / "samples" / f"{name}.jsonl"
    self._writes = multihost.is_lead()
    if self._writes:
      self._path.parent.mkdir(parents=True, exist_ok=True)

  def write(
    self, step: int, answers: Sequence[grading.Answer], *, show: bool
  ) -> None:
    """Appends completions of a step; the first is shown if asked to."""
    if not self._writes:
      return
    with self._path.open("a", encoding="utf-8") as file:
      file.writelines(
        json.dumps({"step": step, **answer.row()}) + "\n" for answer in answers
      )
    if show:
      problem, solution = answers[0].example.problem, answers[0].solution()
      self._run.console.sample(
        self._name, step, problem.question, solution, problem.answer
      )

  def replace(self, answers: Sequence[grading.Answer]) -> None:
    """Makes these the file's only rows."""
    if self._writes:
      rows = (json.dumps(answer.row()) + "\n" for answer in answers)
      files.replace(self._path, "".join(rows))

  def rewind(self, next_step: int) -> None:
    """Drops the rows of steps that are to be run again, and a torn line."""
    if self._writes and self._path.exists():
      lines = self._path.read_text(encoding="utf-8").splitlines(True)
      whole = [line for line in lines if line.endswith("\n")]
      kept = [line for line in whole if json.loads(line)["step"] < next_step]
      self._path.write_text("".join(kept), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class StageRun:
  """What the training of one stage is given.

  Attributes:
    name: the stage's; its random streams follow from it.
    config: its settings.
    start_policy: gives its first policy, once for each learning rate.
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
