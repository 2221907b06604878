"""Model cards: the README.md of an exported model, as the hub shows it."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import huggingface_hub

from reft_jax import files
from reft_jax.config import loading, schema, stages
from reft_jax.evaluation import settings
from reft_jax.huggingface import hub
from reft_jax.models import config as configs
from reft_jax.models.hf import write as writer
from reft_jax.run import model_paths
from reft_jax.runtime import pages
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts

_TEMPLATE = pages.TEMPLATES / "model_card.md"
# The settings of a stage that a card lists, if the stage has them.
_SETTINGS = (
  *("steps", "epochs", "batch_size", "minibatch_size"),
  *("samples_per_question", "temperature", "ppo_epochs", "advantages"),
  *("gamma", "lam", "kl_coef", "kl_in", "clip", "value_clip", "vf_coef"),
  *("partial_reward", "choice_reward", "passes", "gold_share", "keep"),
)
_OPTIMIZER = ("kind", "schedule", "warmup_fraction", "weight_decay")

_Rows = Iterator[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Exported:
  """What a card is about.

  Attributes:
    model: where it was.
    shape: its architecture.
    classifier: whether it judges solutions, and writes none.
    value: where its value function is stored: None, "shared" or "separate".
    dtype: of the weights.
    name: the card's title.
  """

  model: model_paths.Model
  shape: configs.ModelConfig
  classifier: bool
  value: str | None
  dtype: str
  name: str

  @property
  def stage(self) -> str | None:
    """The stage that trained it, if a run did."""
    if self.model.run is None:
      return None
    # RUN/models/STAGE, or RUN/stages/STAGE[-lrX]/best/N/state.
    inside = self.model.folder.relative_to(self.model.run).parts
    name = inside[1].partition("-lr")[0]
    return name if name in stages.TABLE else None

  def read(self, *path: str) -> dict[str, Any]:
    """A JSON file of its run; empty if the run has not written it."""
    run = self.model.run
    return files.read_json(run.joinpath(*path)) if run else {}

  def result(self) -> dict[str, Any]:
    """The result of its stage."""
    stage = self.stage
    return self.read("stages", stage, "result.json") if stage else {}

  def questions(self, split: str) -> int | None:
    """The number of questions of a split that its run used."""
    problems = self.read("summary.json").get("problems", {})
    return problems.get(split, {}).get("used")


def render(exported: Exported) -> str:
  """The text of README.md, with the hub's metadata at its top."""
  run, stage = exported.model.run, exported.stage
  config = loading.load([str(run / "config.yaml")]) if run else None
  kind = "text-classification" if exported.classifier else "text-generation"
  tags = ["reft_jax", exported.shape.family, stage, config and _task(config)]
  card = huggingface_hub.ModelCard.from_template(
    huggingface_hub.ModelCardData(
      library_name="transformers",
      pipeline_tag=kind,
      base_model=base_model(exported.model, config),
      tags=[tag for tag in tags if tag],
    ),
    template_path=str(_TEMPLATE),
    exported=exported,
    stage=stages.TABLE[stage] if stage else None,
    data=config and config.data,
    facts=list(_facts(exported, config)),
    scores=list(_scores(exported, run, config)) if run and config else [],
    value_head=writer.VALUE_HEAD,
    value_trunk=writer.VALUE_TRUNK,
    **(_prompt(config.data) if config else {}),
  )
  return card.content.rstrip("\n") + "\n"


def base_model(
  model: model_paths.Model, config: schema.Config | None
) -> str | None:
  """The hub's name of the model that it started from, if it is known."""
  path = config.model.path if config else str(model.folder)
  if path is None:
    return None
  if hub.is_id(path):
    return path.partition("@")[0]
  # The hub's cache: .../models--OWNER--NAME/snapshots/REVISION.
  for part in pathlib.Path(path).parts:
    words = part.split("--")
    if words[0] == "models" and len(words) == 3:
      return "/".join(words[1:])
  return None


def _task(config: schema.Config) -> str:
  """The task's name, or that of the data that it is read from."""
  source = config.data.train.removeprefix("hub:")
  name = pathlib.PurePath(source).stem.partition(":")[0]
  return config.data.task or name


def _facts(exported: Exported, config: schema.Config | None) -> _Rows:
  """What the model is and how it was trained: names and values."""
  yield "Architecture", f"{exported.shape.family}, weights in {exported.dtype}"
  if config is None:
    return
  path, data, stage = config.model.path, config.data, exported.stage
  trained_on = pathlib.PurePath(path).name if path else "trained in this run"
  yield "Base model", base_model(exported.model, config) or trained_on
  if stage:
    yield "Method", stages.TABLE[stage].about
  if start := exported.result().get("start"):
    yield "Started from", f"the {start} model"
  if exported.model.checkpoint:
    yield "Checkpoint", exported.model.name
  kind = {"nl": "words", "python": "programs"}[data.reasoning]
  yield "Task", f"{_task(config)}, chains of thought in {kind}"
  source = data.train
  if not source.startswith("hub:"):
    source = pathlib.PurePath(source).name
  yield "Training data", source
  for split, title in (("train", "Training"), ("dev", "Dev"), ("test", "Test")):
    if count := exported.questions(split):
      yield f"{title} questions", f"{count:,}"
  yield "Seed", config.seed
  if stage:
    yield from _settings(exported, getattr(config, stage))


def _settings(exported: Exported, stage: Any) -> _Rows:
  """The settings of the stage that trained the model."""
  result = exported.result()
  rate = result.get("learning_rate", stage.optimizer.learning_rate)
  yield "learning_rate", f"{rate:g}"
  if "best_step" in result and not exported.model.checkpoint:
    yield "Kept after step", f"{result['best_step']:,}"
  for name in _OPTIMIZER:
    yield f"optimizer.{name}", getattr(stage.optimizer, name)
  for name in _SETTINGS:
    value = getattr(stage, name, None)
    # Where there are steps, epochs are not read.
    unread = name == "epochs" and getattr(stage, "steps", None) is not None
    if value is not None and not unread:
      yield name, value


def _scores(
  exported: Exported, run: pathlib.Path, config: schema.Config
) -> _Rows:
  """What was measured of this model: split, answer, accuracy, questions."""
  if not exported.model.checkpoint:
    result = exported.result()
    votes = config.evaluation.majority_samples
    for name, split, title in (
      ("test_accuracy", "test", "greedy"),
      ("majority_accuracy", "test", f"majority of {votes} samples"),
      ("dev_accuracy", "dev", "greedy, chosen by"),
    ):
      if result.get(name) is not None:
        count = exported.questions(split) or ""
        yield split, title, f"{result[name]:.3f}", count
  for file in sorted(run.glob(f"evaluations/*/{settings.FILE}")):
    found = json.loads(file.read_text("utf-8"))
    if found.get("model") != exported.model.name:
      continue
    for name, figure in found["accuracy"].items():
      if not name.endswith("@1"):
        accuracy = "{value:.3f} ({low:.3f} to {high:.3f})".format(**figure)
        yield found["split"], name, accuracy, found["questions"]


def _prompt(data: schema.DataConfig) -> dict[str, str]:
  """The texts that the model is given."""
  question = problem_lib.Problem("", "", "{question}", None, "")
  kind = "nl" if data.chat_template else data.reasoning
  return {
    "prompt": prompts.prompt(question, kind),
    "prompt_start": prompts.start(question, data.reasoning),
    "system_prompt": json.dumps(data.system_prompt),
    "answer_trigger": prompts.ANSWER_TRIGGER.strip(),
  }
