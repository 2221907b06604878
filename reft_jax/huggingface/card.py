"""Model cards: the README.md of an exported model, as the hub shows it."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from reft_jax.config import loading, schema
from reft_jax.evaluation import settings
from reft_jax.huggingface import hub
from reft_jax.models import config as configs
from reft_jax.models.hf import pretrained
from reft_jax.run import model_paths
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts

_ABOUT = {
  "base": "trained from scratch on a generated corpus",
  "warmup": "supervised fine-tuning on annotated solutions, as a warm-up",
  "sft": "supervised fine-tuning on annotated solutions",
  "offline_st": "offline self-training: fine-tuning on its own right solutions",
  "online_st": "online self-training: imitation of its own right solutions",
  "reft": "ReFT: PPO rewarded by whether the final answer is right",
  "reward_model": "a classifier of solutions by whether their answer is right",
}
_PAPER = "https://arxiv.org/abs/2401.08967"
# What is told of a stage's settings, where it has them.
_SETTINGS = (
  *("steps", "epochs", "batch_size", "minibatch_size"),
  *("samples_per_question", "temperature", "ppo_epochs", "advantages"),
  *("gamma", "lam", "kl_coef", "kl_in", "clip", "value_clip", "vf_coef"),
  *("partial_reward", "choice_reward", "passes", "gold_share", "keep"),
)
_OPTIMIZER = ("kind", "schedule", "warmup_fraction", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Exported:
  """What a card is about.

  Attributes:
    model: where it was.
    shape: its architecture.
    classifier: whether it judges solutions, and writes none.
    value: how its value function is stored: None, "shared" or "separate".
    dtype: of the weights.
    name: what the card is headed with.
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
    folder = self.model.folder
    if self.model.run is None:
      return None
    # RUN/models/STAGE, or RUN/stages/STAGE[-lrX]/best/N/state.
    inside = folder.relative_to(self.model.run).parts
    name = inside[1].partition("-lr")[0]
    return name if name in schema.STAGES else None


def render(exported: Exported) -> str:
  """The text of README.md, with the hub's block of facts at its top."""
  run = exported.model.run
  config = loading.load([str(run / "config.yaml")]) if run else None
  sections = [
    f"# {exported.name}",
    "\n".join(_introduction(exported, config)),
    *_table("Training", ["", ""], list(_facts(exported, config))),
    *_scores(exported),
    *_prompt(exported, config),
    *_use(exported),
    *_value(exported),
    "## License\n\nNot chosen yet. Whoever publishes this model adds `license:`"
    " to the block at the top; the licenses of the model that it started from"
    " and of the data it was trained on apply.",
  ]
  fields = yaml.safe_dump(_front_matter(exported, config), sort_keys=False)
  return f"---\n{fields}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(exported, config) -> dict[str, Any]:
  fields: dict[str, Any] = {
    "library_name": "transformers",
    "pipeline_tag": "text-classification"
    if exported.classifier
    else "text-generation",
  }
  base = base_model(exported.model, config)
  if base:
    fields["base_model"] = base
  tags = ["reft_jax", exported.shape.family]
  if exported.stage:
    tags.append(exported.stage)
  if config:
    tags.append(_task(config))
  return fields | {"tags": list(dict.fromkeys(tags))}


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


def _introduction(exported, config) -> Iterator[str]:
  about = _ABOUT.get(exported.stage)
  if config is None:
    yield (
      f"A `{exported.shape.family}` model, written by reft_jax from"
      f" `{exported.model.folder.name}`."
    )
  elif about:
    yield (
      f"Made with reft_jax, an implementation of [ReFT]({_PAPER}): {about}."
    )


def _facts(exported, config) -> Iterator[Sequence[str]]:
  """Rows of what the model is and how it came about."""
  model = exported.model
  yield "Architecture", f"{exported.shape.family}, weights in {exported.dtype}"
  if config is None:
    return
  base = base_model(model, config)
  path = config.model.path
  yield (
    "Base model",
    base or (pathlib.PurePath(path).name if path else "trained in this run"),
  )
  if exported.stage:
    yield "Method", _ABOUT[exported.stage]
    start = _read(model.run / "stages" / exported.stage / "result.json")
    if start.get("start"):
      yield "Started from", f"the {start['start']} model"
  if model.checkpoint:
    yield "Checkpoint", model.name
  data = config.data
  kind = {"nl": "words", "python": "programs"}[data.reasoning]
  yield "Task", f"{_task(config)}, chains of thought in {kind}"
  of_hub = data.train.startswith("hub:")
  source = data.train if of_hub else pathlib.PurePath(data.train).name
  yield "Training data", source
  problems = _read(model.run / "summary.json").get("problems", {})
  for split, title in (("train", "Training"), ("dev", "Dev"), ("test", "Test")):
    if problems.get(split, {}).get("used"):
      yield f"{title} questions", f"{problems[split]['used']:,}"
  yield "Seed", str(config.seed)
  if exported.stage:
    yield from _settings(exported, getattr(config, exported.stage))


def _settings(exported, stage) -> Iterator[tuple[str, str]]:
  """The settings of the stage that trained the model."""
  result = _read(exported.model.run / "stages" / exported.stage / "result.json")
  rate = result.get("learning_rate", stage.optimizer.learning_rate)
  yield "learning_rate", f"{rate:g}"
  if "best_step" in result and not exported.model.checkpoint:
    yield "Kept after step", f"{result['best_step']:,}"
  for name in _OPTIMIZER:
    yield f"optimizer.{name}", str(getattr(stage.optimizer, name))
  for name in _SETTINGS:
    value = getattr(stage, name, None)
    unread = name == "epochs" and getattr(stage, "steps", None) is not None
    if value is not None and not unread:
      yield name, str(value)


def _scores(exported) -> list[str]:
  """What was measured of this model, if anything was."""
  run, stage = exported.model.run, exported.stage
  if run is None:
    return []
  rows = []
  if stage and not exported.model.checkpoint:
    result = _read(run / "stages" / stage / "result.json")
    used = _read(run / "summary.json").get("problems", {})
    config = loading.load([str(run / "config.yaml")])
    votes = config.evaluation.majority_samples
    for name, split, title in (
      ("test_accuracy", "test", "greedy"),
      ("majority_accuracy", "test", f"majority of {votes} samples"),
      ("dev_accuracy", "dev", "greedy, chosen by"),
    ):
      if result.get(name) is not None:
        count = used.get(split, {}).get("used")
        rows.append((split, title, f"{result[name]:.3f}", count or ""))
  for file in sorted(run.glob(f"evaluations/*/{settings.FILE}")):
    found = _read(file)
    if found.get("model") != exported.model.name:
      continue
    rows += [
      (
        found["split"],
        name,
        "{value:.3f} ({low:.3f} to {high:.3f})".format(**figure),
        found["questions"],
      )
      for name, figure in found["accuracy"].items()
      if not name.endswith("@1")
    ]
  return _table(
    "Scores",
    ["split", "answer", "accuracy (95 % interval)", "questions"],
    [tuple(map(str, row)) for row in rows],
  )


def _prompt(exported, config) -> list[str]:
  """What the model is given, word by word."""
  if config is None:
    return []
  question = problem_lib.Problem("", "", "{question}", None, "")
  data = config.data
  if data.chat_template:
    text, start = (
      prompts.prompt(question),
      prompts.start(question, data.reasoning),
    )
    how = "The user's message in the tokenizer's chat template"
    if data.system_prompt is not None:
      how += f", after the system message {json.dumps(data.system_prompt)}"
    blocks = [f"{how}:\n\n{_block(text)}"]
    if start:
      blocks.append(f"The assistant's turn starts with\n\n{_block(start)}")
  else:
    text = prompts.prompt(question, data.reasoning)
    begin = " The beginning-of-sequence token comes first." * data.add_bos
    blocks = [f"As one text, without special tokens.{begin}\n\n{_block(text)}"]
  ends = {
    "nl": "The solution ends with"
    f" `{prompts.ANSWER_TRIGGER.strip()} ...` and the end of sequence.",
    "python": "The answer is what `solution()` returns.",
  }
  if exported.classifier:
    ends[data.reasoning] += (
      " The solution follows the prompt directly, without an end of sequence."
    )
  return ["## Prompt\n\n" + "\n\n".join([*blocks, ends[data.reasoning]])]


def _block(text: str) -> str:
  # A text that ends in a line break has an empty line here.
  note = "\n\nIt ends in a line break." * text.endswith("\n")
  return f"```text\n{text}\n```{note}"


def _use(exported) -> list[str]:
  """How it is opened by other programs."""
  name = exported.name
  if exported.classifier:
    code = (
      "from transformers import AutoModelForSequenceClassification\n"
      f"model = AutoModelForSequenceClassification.from_pretrained({name!r})\n"
      "# logits[:, 1] is `correct`: the solution's answer is right."
    )
    return [f"## Use\n\n```python\n{code}\n```"]
  code = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
    f"model = AutoModelForCausalLM.from_pretrained({name!r})\n"
    "inputs = tokenizer(\n"
    '  prompt, add_special_tokens=False, return_tensors="pt"\n'
    ")\n"
    "ids = model.generate(**inputs, max_new_tokens=400, do_sample=False)"
  )
  shell = (
    f"vllm serve {name}\n"
    f"lm_eval --model hf --model_args pretrained={name} --tasks gsm8k\n"
    f"python -m reft_jax.evaluate ./{name} --config EXPERIMENT"
  )
  note = (
    "Tasks of lm-eval ask in their own words, and so measure something else"
    " than the scores here."
  )
  return [
    f"## Use\n\n```python\n{code}\n```\n\n```bash\n{shell}\n```\n\n{note}"
  ]


def _value(exported) -> list[str]:
  if exported.value is None:
    return []
  reads = {
    "shared": "`hidden_states[-1]` of this model",
    "separate": "the last hidden states of the model in"
    f" `{pretrained.VALUE_TRUNK}/` (`AutoModel`)",
  }[exported.value]
  w = f"w_{exported.shape.outer}"
  return [
    f"## Value function\n\n`{pretrained.VALUE_HEAD}` holds the critic's head:"
    f" `{w}` and `b`, in float32. The value of a token is `{w} @ h + b`, where"
    f" h is its row of {reads}, after the final norm."
  ]


def _table(
  title: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[str]:
  """A section with a table; none if it has no rows."""
  if not rows:
    return []
  lines = [head, ["---"] * len(head), *rows]
  cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
  table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
  return [f"## {title}\n\n{table}"]


def _read(file: pathlib.Path) -> Mapping[str, Any]:
  """A file that a run has written; nothing if it has not come so far."""
  return json.loads(file.read_text("utf-8")) if file.is_file() else {}
