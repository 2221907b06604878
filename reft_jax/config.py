"""The run's settings: a frozen tree, its files, its command line, its checks.

Defaults are the paper's (7B models, natural-language chains of thought). An
experiment is a YAML file laid over them; the ones in `launch/experiments`
travel inside the package and can be named without their path. A run that
names none is the `embedded` experiment.
"""

import collections
import dataclasses
import difflib
import math
import operator
import os
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import omegaconf
import yaml

from reft_jax import errors, files, hub

Stage = Literal[
  "base",
  "warmup",
  "sft",
  "offline_st",
  "online_st",
  "reft",
  "reward_model",
]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)
# Stages that imitate annotated chains of thought.
SUPERVISED: tuple[Stage, ...] = ("warmup", "sft", "offline_st")
# Stages that sample as they learn.
REINFORCED: tuple[Stage, ...] = ("online_st", "reft")

USAGE = (
  "[--config FILE]... [key=value]... [--print-config] [--dry-run] [--help]"
)

EXPERIMENTS = files.packaged("experiments")
DEFAULT_EXPERIMENT = "embedded"
_REAL_EXPERIMENT = "gsm8k_nl_codellama_7b"


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers a setting may take, in words and as a test."""

  text: str
  holds: Callable[[float], bool]


_POSITIVE = Range("above 0", lambda x: x > 0)
_NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
_SHARE = Range("between 0 and 1", lambda x: 0 <= x <= 1)
_DECAY = Range("at least 0 and below 1", lambda x: 0 <= x < 1)
_SEED = Range("between 0 and 2**32 - 1", lambda x: 0 <= x < 2**32)
_AXIS = Range("above 0, or -1 for the rest", lambda x: x > 0 or x == -1)


def _setting(default: Any, text: str, allowed: Range | None = None) -> Any:
  """A field with its line of help and the range of its numbers."""
  return dataclasses.field(
    default=default, metadata={"help": text, "range": allowed}
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The problems, and how they become tokens."""

  train: str = _setting(
    "embedded", "training problems: embedded, a file, or hub:owner/name[:split]"
  )
  test: str | None = _setting(
    None, "held-out problems, as for train (embedded brings its own)"
  )
  task: str | None = _setting(
    None, "gsm8k, mathqa-numeric ...; null: read from the problems' ids"
  )
  dev_size: int = _setting(
    200, "training problems set aside to choose models on", _NOT_NEGATIVE
  )
  train_limit: int | None = _setting(
    None, "keep this many training problems", _POSITIVE
  )
  test_limit: int | None = _setting(
    None, "keep this many test problems", _POSITIVE
  )
  reasoning: Literal["nl", "python"] = _setting(
    "nl", "chains of thought: nl, natural language, or python, programs"
  )
  answers: Literal["strict", "official"] = _setting(
    "strict", "answer matching; official repeats the released code's rules"
  )
  calculator_marks: bool = _setting(
    False, "keep the <<48/2=24>> of GSM8K's own files"
  )
  add_bos: bool = _setting(
    False, "start prompts with the beginning-of-sequence token"
  )
  chat_template: bool = _setting(
    False, "ask in the chat that an instruct model's tokenizer describes"
  )
  system_prompt: str | None = _setting(
    None, "system message of that chat; null: what its template says"
  )
  max_prompt_tokens: int = _setting(
    300, "prompt slots; longer problems are left out", _POSITIVE
  )
  max_response_tokens: int = _setting(
    400, "response slots; sampling ends there", _POSITIVE
  )
  length_bucket: int = _setting(
    128, "rows learnt from are filled up to a multiple of this", _POSITIVE
  )


@dataclasses.dataclass(frozen=True)
class EmbeddedConfig:
  """The generated word problems, for runs that need no files."""

  questions: int = _setting(500, "training questions", _POSITIVE)
  test: int = _setting(1000, "held-out questions", _POSITIVE)
  merge: float = _setting(
    0.7, "chance that an annotation merges two steps into one", _SHARE
  )
  documents: int = _setting(
    89_600, "documents the base model is trained on", _POSITIVE
  )
  noise: float = _setting(0.4, "share of documents with a mistake", _SHARE)
  answer_phrase: float = _setting(
    0.15,
    "share of documents with a question that end as the annotations do",
    _SHARE,
  )
  drills: float = _setting(
    0.5, "share of documents without a question: equations, lookups", _SHARE
  )
  choices: float = _setting(
    0.0, "share of documents that offer options, drills included", _SHARE
  )
  programs: float = _setting(
    0.0, "share of documents with a question solved by a program", _SHARE
  )
  min_events: int = _setting(3, "fewest events in a question", _POSITIVE)
  max_events: int = _setting(4, "most events in a question", _POSITIVE)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The pretrained model and how it is run."""

  path: str | None = _setting(
    None,
    "Hugging Face folder, or owner/name[@revision] on the hub; null: the base"
    " stage trains one",
  )
  compute_dtype: Literal["float32", "bfloat16"] = _setting(
    "float32", "activations; weights and losses stay float32"
  )
  remat: Literal["none", "block", "dots"] = _setting(
    "none", "what the backward pass computes again to save memory"
  )
  warmup: str | None = _setting(
    None,
    "a warmed-up model, named as path is; null: the warmup stage trains one",
  )
  value: Literal["shared", "separate"] = _setting(
    "shared", "the critic's trunk: the policy's, or its own"
  )
  logit_chunk: int = _setting(
    1024, "tokens for which a device has logits at a time", _POSITIVE
  )
  eos_token: str | None = _setting(
    None, "token that ends responses; null: as tokenizer and configs say"
  )
  pad_token: str | None = _setting(
    None, "token that fills rows; null: as they say, or what ends responses"
  )
  resize_vocab: bool = _setting(
    False, "add rows to a vocabulary that has fewer than the tokenizer has ids"
  )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters: all stages but base learn these instead of weights."""

  rank: int = _setting(
    0, "of the adapters; 0: none, all weights are learnt", _NOT_NEGATIVE
  )
  alpha: float = _setting(
    16.0, "what is added is scaled by alpha / rank", _POSITIVE
  )
  targets: tuple[
    Literal["all", "q", "k", "v", "o", "gate", "up", "down"], ...
  ] = _setting(("all",), "projections that have an adapter")

  @property
  def scale(self) -> float:
    """What multiplies an adapter's product."""
    return self.alpha / self.rank if self.rank else 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices are laid out; null: as fits the model's size.

  Of the axes -1 takes the devices that are left.
  """

  data: int | None = _setting(None, "copies of the weights, batch split", _AXIS)
  fsdp: int | None = _setting(None, "shards of the weights, batch split", _AXIS)
  tensor: int | None = _setting(None, "shards of heads and hidden units", _AXIS)
  gather: Literal["auto", "step", "layer"] = _setting(
    "auto", "weights: a copy gathered once an optimizer step, or layer by layer"
  )
  sampler_tensor: int | None = _setting(
    None, "shards of heads and hidden units where it samples", _POSITIVE
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """One optimizer and its schedule."""

  kind: Literal["adamw", "muon"] = _setting(
    "adamw", "muon: Muon for the blocks' matrices, NAdamW for the rest"
  )
  learning_rate: float = _setting(
    1e-5, "peak; with muon, that of the matrices", _POSITIVE
  )
  adam_learning_rate: float = _setting(
    3e-3, "with muon, the peak of everything else", _POSITIVE
  )
  schedule: Literal["constant", "linear", "cosine"] = _setting(
    "linear", "the way down from the peak"
  )
  warmup_fraction: float = _setting(
    0.1, "share of the steps that climb to the peak", _SHARE
  )
  final_fraction: float = _setting(
    0.0, "share of the peak that is left at the end", _SHARE
  )
  weight_decay: float = _setting(0.0, "decoupled weight decay", _NOT_NEGATIVE)
  b1: float = _setting(0.9, "decay of the first moment", _DECAY)
  b2: float = _setting(0.999, "decay of the second moment", _DECAY)
  eps: float = _setting(1e-8, "added to the second moment's root", _POSITIVE)
  clip_norm: float | None = _setting(
    1.0, "largest global norm of a gradient; null: any", _POSITIVE
  )


@dataclasses.dataclass(frozen=True)
class BaseConfig:
  """The small model that is trained from scratch for embedded runs."""

  # The families of models.scratch.
  family: Literal[
    "codegen",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
  ] = _setting("llama", "architecture, by its model_type")
  layers: int = _setting(2, "transformer blocks", _POSITIVE)
  width: int = _setting(64, "size of the residual stream", _POSITIVE)
  heads: int = _setting(4, "query heads", _POSITIVE)
  kv_heads: int = _setting(4, "key and value heads", _POSITIVE)
  ffn: int = _setting(172, "hidden units of a feed-forward layer", _POSITIVE)
  steps: int = _setting(1400, "optimizer steps", _POSITIVE)
  batch_size: int = _setting(64, "documents in a step", _POSITIVE)
  cache: str | None = _setting(
    None, "folder of trained base models; null: ~/.cache/reft_jax"
  )
  optimizer: OptimizerConfig = OptimizerConfig(
    kind="muon", learning_rate=0.015, schedule="cosine", warmup_fraction=0.0
  )


_TOP_K = "likeliest tokens drawn from; 0: all (the released code: 50)"
_TRIED = "tried one by one, the best on dev stays; null: the optimizer's"


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Fine-tuning on the annotated chains of thought."""

  epochs: int = _setting(40, "passes over the training problems", _POSITIVE)
  batch_size: int = _setting(48, "problems in a step, all devices", _POSITIVE)
  micro_batch_size: int | None = _setting(
    None, "problems held in memory at once; null: the batch", _POSITIVE
  )
  learning_rates: tuple[float, ...] | None = _setting(None, _TRIED, _POSITIVE)
  start: Literal["base", "warmup"] = _setting(
    "base", "model to start from: base is model.path or the base stage's"
  )
  evaluate_every: int = _setting(1, "epochs between evaluations", _POSITIVE)
  optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class DrawsConfig:
  """Solutions drawn from the warmed-up model, to learn from or to judge."""

  samples: int = _setting(100, "solutions a training question", _POSITIVE)
  temperature: float = _setting(1.0, "of the draws", _POSITIVE)
  top_k: int = _setting(0, _TOP_K, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class OfflineConfig(SupervisedConfig):
  """Offline self-training: fine-tuning on draws whose answer is right."""

  epochs: int = _setting(20, "passes over draws and annotations", _POSITIVE)
  keep: int = _setting(10, "right draws of a question, at most", _POSITIVE)
  choose: Literal["random", "official"] = _setting(
    "random", "official: the first ones drawn, and the annotation twice"
  )


@dataclasses.dataclass(frozen=True)
class RolloutsConfig:
  """A stage that samples as it learns."""

  steps: int | None = _setting(
    None, "steps of sampling and learning; null: as epochs says", _POSITIVE
  )
  epochs: int = _setting(300, "passes, where steps is null", _POSITIVE)
  batch_size: int = _setting(32, "rollouts in a step, all devices", _POSITIVE)
  samples_per_question: int = _setting(
    1, "rollouts of one question in a step", _POSITIVE
  )
  minibatch_size: int | None = _setting(
    None, "rollouts in an update; null: the batch", _POSITIVE
  )
  micro_batch_size: int | None = _setting(
    None, "rollouts held in memory at once; null: the minibatch", _POSITIVE
  )
  temperature: float = _setting(1.0, "of the rollouts", _POSITIVE)
  learning_rates: tuple[float, ...] | None = _setting(None, _TRIED, _POSITIVE)
  evaluate_every: int = _setting(100, "steps between evaluations", _POSITIVE)
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=3e-7, schedule="constant", warmup_fraction=0.0
  )


@dataclasses.dataclass(frozen=True)
class OnlineConfig(RolloutsConfig):
  """Online self-training: imitation of right samples of the policy itself."""

  passes: int = _setting(2, "passes over the rollouts of a step", _POSITIVE)
  gold_share: float = _setting(
    0.5, "weight of the annotations' loss; 0: right samples alone", _SHARE
  )


@dataclasses.dataclass(frozen=True)
class ReftConfig(RolloutsConfig):
  """Reinforced fine-tuning by PPO."""

  ppo_epochs: int = _setting(2, "passes over the rollouts of a step", _POSITIVE)
  gamma: float = _setting(1.0, "discount of rewards", _SHARE)
  lam: float = _setting(0.95, "lambda of the advantages", _SHARE)
  kl_coef: float = _setting(
    0.05, "cost of drifting from the starting model", _NOT_NEGATIVE
  )
  kl_in: Literal["reward", "loss"] = _setting(
    "reward", "where that cost is paid: at each action, or as a loss"
  )
  kl_estimator: Literal["k1", "k2", "k3"] | None = _setting(
    None,
    "of x = log p - log p_ref: x (no use as a loss), x^2/2, exp(-x)-1+x;"
    " null: k1 in the reward, k3 in the loss",
  )
  kl_target: float | None = _setting(
    None, "KL of a response that kl_coef is adapted to; null: fixed", _POSITIVE
  )
  kl_horizon: int = _setting(
    10_000, "rollouts in which kl_coef changes by a fifth, at most", _POSITIVE
  )
  entropy_coef: float = _setting(
    0.0, "weight of the entropy bonus", _NOT_NEGATIVE
  )
  advantages: Literal["gae", "grpo", "dr_grpo", "rloo"] = _setting(
    "gae",
    "gae: from a critic; else from samples_per_question rollouts, no critic",
  )
  aggregation: Literal["sequence_mean", "token_mean", "constant"] = _setting(
    "sequence_mean", "mean of rows' means; of all tokens; sum over all slots"
  )
  drop_groups_without_signal: bool = _setting(
    False, "leave out questions whose rollouts all earn the same"
  )
  clip: float = _setting(0.2, "clip range of the ratio", _POSITIVE)
  clip_high: float | None = _setting(
    None, "clip range above 1; null: clip", _POSITIVE
  )
  value_clip: float = _setting(0.2, "clip range of the values", _POSITIVE)
  vf_coef: float = _setting(5.0, "weight of the value loss", _NOT_NEGATIVE)
  value_warmup_steps: int = _setting(
    0, "first steps in which the critic alone learns", _NOT_NEGATIVE
  )
  whiten: bool = _setting(True, "whiten the advantages of a step (gae)")
  partial_reward: float = _setting(
    0.1, "reward of a wrong answer, where a right one earns 1", _SHARE
  )
  choice_reward: Literal["letter", "value"] = _setting(
    "letter",
    "multiple choice: value pays a letter only if the reasoning reaches it",
  )
  unreached_limit: float = _setting(
    0.2, "warn when more right letters come from another value", _SHARE
  )


@dataclasses.dataclass(frozen=True)
class ProgramsConfig:
  """How the programs of data.reasoning=python are run."""

  isolation: Literal["strict", "monty", "unsafe"] = _setting(
    "strict",
    "strict: monty, then CPython under seccomp; monty: the first alone;"
    " unsafe: CPython too where it cannot be confined",
  )
  workers: int | None = _setting(
    None, "programs run at once; null: one a CPU core, at most 32", _POSITIVE
  )
  cpu_seconds: float = _setting(
    1.0, "CPU time of a program (the released code: 10 of the clock)", _POSITIVE
  )
  memory_mb: int = _setting(64, "memory of a program", _POSITIVE)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How models are compared."""

  batch_size: int = _setting(64, "problems answered at once", _POSITIVE)
  dev_limit: int | None = _setting(
    None, "dev problems in an evaluation during training", _POSITIVE
  )
  majority_samples: int = _setting(
    16, "samples in the vote that ends a stage; 0: no vote", _NOT_NEGATIVE
  )
  temperature: float = _setting(1.0, "of samples", _POSITIVE)
  top_k: int = _setting(0, _TOP_K, _NOT_NEGATIVE)
  split: Literal["test", "dev", "train"] = _setting(
    "test", "problems that reft_jax.evaluate asks"
  )
  samples: int = _setting(
    100, "samples a problem in reft_jax.evaluate; 0: none", _NOT_NEGATIVE
  )
  at: tuple[int, ...] | None = _setting(
    None,
    "numbers of samples to vote among; null: 1, 10, ... up to all",
    _POSITIVE,
  )
  reward_model: str | None = _setting(
    None, "a reward model to rerank by: a folder, or owner/name on the hub"
  )
  resamples: int = _setting(
    1000, "bootstrap resamples behind an interval", _POSITIVE
  )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """What is told along the way."""

  every: int | None = _setting(
    None, "steps between rows of metrics; null: about 50 a stage", _POSITIVE
  )
  sample_every: int = _setting(
    10, "steps between samples shown; 0: never", _NOT_NEGATIVE
  )
  tensorboard: bool = _setting(True, "write TensorBoard files too")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What survives an interruption."""

  every: int = _setting(50, "steps between checkpoints", _POSITIVE)
  keep: int = _setting(2, "newest checkpoints kept", _POSITIVE)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that defines a run."""

  name: str = _setting("embedded", "what the run is called")
  seed: int = _setting(0, "every random choice follows from it", _SEED)
  output: str | None = _setting(None, "run folder; null: runs/NAME-seedSEED")
  resume: Literal["auto", "never"] = _setting(
    "auto", "auto goes on where the run folder's last checkpoint ends"
  )
  distributed: str = _setting(
    "auto", "processes of one run: auto joins those it finds; off; HOST:PORT"
  )
  xla_flags: Literal["none", "fast"] = _setting(
    "none", "fast: compiler flags for GPUs and TPUs that overlap collectives"
  )
  stages: tuple[Stage, ...] = _setting(
    ("base", "warmup", "sft", "reft"), "what is run, in this order"
  )
  data: DataConfig = DataConfig()
  embedded: EmbeddedConfig = EmbeddedConfig()
  model: ModelConfig = ModelConfig()
  lora: LoraConfig = LoraConfig()
  mesh: MeshConfig = MeshConfig()
  base: BaseConfig = BaseConfig()
  warmup: SupervisedConfig = SupervisedConfig(epochs=2)
  sft: SupervisedConfig = SupervisedConfig()
  draws: DrawsConfig = DrawsConfig()
  offline_st: OfflineConfig = OfflineConfig()
  online_st: OnlineConfig = OnlineConfig()
  reft: ReftConfig = ReftConfig()
  reward_model: SupervisedConfig = SupervisedConfig(
    epochs=3,
    batch_size=24,
    start="warmup",
    optimizer=OptimizerConfig(learning_rate=1e-6),
  )
  programs: ProgramsConfig = ProgramsConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  logging: LoggingConfig = LoggingConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line, understood."""

  config: Config
  action: Literal["run", "dry-run", "help", "print-config"]
  overrides: tuple[str, ...]


def parse(argv: Sequence[str], options: str = "") -> Command:
  """Reads a command line: `--config FILE`, `key=value`, a flag.

  Files are laid over the defaults in their order, then the overrides. The
  result has the right types; `validate` and `check_files` say if it makes
  sense. Of a program's own `options` only what is expected tells.

  Raises:
    UserError: An unknown argument or key, a value of the wrong type, a file
      that is missing or is not YAML, or real data or a model without a
      `--config` to say how to train it.
  """
  files, overrides, action = [], [], "run"
  arguments = collections.deque(argv)
  while arguments:
    argument = arguments.popleft()
    if argument in ("-h", "--help"):
      return Command(config=Config(), action="help", overrides=())
    if argument in ("--print-config", "--dry-run"):
      action = argument.removeprefix("--")
    elif argument == "--config":
      if not arguments:
        raise errors.UserError("--config needs a file after it")
      files.append(arguments.popleft())
    elif argument.startswith("--config="):
      files.append(argument.removeprefix("--config="))
    elif "=" in argument and not argument.startswith("-"):
      overrides.append(argument)
    else:
      expected = f"{options} {USAGE}".lstrip()
      raise errors.UserError(
        f"unknown argument {argument!r}; expected {expected}"
      )
  config = load(files or [DEFAULT_EXPERIMENT], overrides)
  if not files:
    _check_generated(config)
  return Command(config=config, action=action, overrides=tuple(overrides))


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> Config:
  """Lays files, then `key=value` overrides, over the defaults.

  Raises:
    UserError: See `parse`.
  """
  tree = omegaconf.OmegaConf.structured(Config)
  _unlock(tree)
  for file in files:
    for where, layer in _layers(file):
      _overlay(tree, layer, where)
  for override in overrides:
    try:
      layer = omegaconf.OmegaConf.from_dotlist([override])
    except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException) as error:
      raise errors.UserError(
        f"command line: cannot read {override!r}; quote its value"
      ) from error
    _overlay(tree, layer, where="command line")
  try:
    return omegaconf.OmegaConf.to_object(tree)
  except omegaconf.errors.OmegaConfBaseException as error:
    raise errors.UserError(_first_line(error)) from error


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
  """Every setting below a node: dotted key, dataclass field and value."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from settings(value, f"{prefix}{field.name}.")
    else:
      yield f"{prefix}{field.name}", field, value


def to_yaml(config: Config) -> str:
  """The whole tree as YAML that `load` reads back to an equal config."""
  return yaml.safe_dump(_plain(config), sort_keys=False)


def differences(old: Config, new: Config) -> list[str]:
  """What changed, one `key: old -> new` for each setting."""
  pairs = zip(settings(old), settings(new), strict=True)
  return [
    f"{key}: {_show(was)} -> {_show(now)}"
    for (key, _, was), (_, _, now) in pairs
    if was != now
  ]


def warmed(config: Config) -> bool:
  """Whether a run has a warmed-up model, its own or one from elsewhere."""
  return "warmup" in config.stages or config.model.warmup is not None


def expanded(path: str) -> pathlib.Path:
  """A path of a setting; ~ is home, which shells leave alone in `key=~/x`."""
  return pathlib.Path(os.path.expanduser(path))


def run_directory(config: Config) -> pathlib.Path:
  """Where the run writes everything it leaves behind."""
  return expanded(config.output or f"runs/{config.name}-seed{config.seed}")


def validate(config: Config) -> None:
  """Checks that the settings fit each other.

  Raises:
    UserError: One line that holds every problem found.
  """
  # Sizes are compared only once each is known to be a sensible number.
  problems = list(_out_of_range(config)) or list(_misfits(config))
  if not re.fullmatch(r"auto|off|\S+:\d+", config.distributed):
    problems.append(
      f"distributed={config.distributed} is none of auto, off and HOST:PORT"
    )
  if problems:
    raise errors.UserError("; ".join(problems))


def check_files(config: Config) -> None:
  """Checks that the files and folders a run starts from exist.

  What is on the hub is not asked for.

  Raises:
    UserError: One line that holds everything that is missing.
  """
  problems = [
    f"{key}={source}: no such file in {pathlib.Path.cwd()}"
    for key, source in (
      ("data.train", config.data.train),
      ("data.test", config.data.test),
    )
    if _is_file(source) and not expanded(source).is_file()
  ]
  problems += [
    f"{key}={path}: no Hugging Face model there (a folder with config.json,"
    " *.safetensors and tokenizer.json), nor a name on the hub"
    " (owner/name[@revision])"
    for key, path in (
      ("model.path", config.model.path),
      ("model.warmup", config.model.warmup),
    )
    if path and not hub.is_id(path) and hub.find(path) is None
  ]
  if problems:
    raise errors.UserError("; ".join(problems))


def print_help(
  program: str, otherwise: str = f"the run is {DEFAULT_EXPERIMENT}"
) -> None:
  """Prints the usage and every setting with its default and meaning.

  `otherwise` says what holds without --config.
  """
  import rich.console
  import rich.table

  groups = collections.defaultdict(list)
  for key, field, value in settings(Config()):
    group, _, name = key.rpartition(".")
    groups[group].append((name, _show(value), field.metadata["help"]))
  table = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  table.add_column("setting", no_wrap=True)
  table.add_column("default", style="cyan", max_width=10)
  table.add_column("meaning", ratio=1)
  for group, rows in groups.items():
    if group:
      about = operator.attrgetter(group)(Config()).__doc__
      table.add_row()
      table.add_row(f"{group}.", "", about, style="bold")
    for name, default, text in rows:
      table.add_row(f"  {name}" if group else name, default, text)

  console = rich.console.Console(highlight=False, markup=False)
  console.print(f"Usage: python -m {program} {USAGE}\n", soft_wrap=True)
  console.print(
    "A FILE is YAML, or the name of a packaged experiment:"
    f" {', '.join(_experiments())}. Later files win, then key=value, as in"
    f" reft.steps=20. Without --config {otherwise}.\n"
  )
  console.print(table)


def _check_generated(config: Config) -> None:
  """The default experiment's settings are for generated data alone."""
  real = []
  if config.data.train != "embedded":
    real.append(f"data.train={config.data.train}")
  if config.model.path:
    real.append(f"model.path={config.model.path}")
  if real:
    raise errors.UserError(
      f"command line: {' and '.join(real)} would be trained with the settings"
      f" of the {DEFAULT_EXPERIMENT} run; name an experiment, such as --config"
      f" {_REAL_EXPERIMENT}, or --config {DEFAULT_EXPERIMENT} to mean it"
    )


def _plain(value: Any) -> Any:
  """Dataclasses and tuples as the dicts and lists of YAML."""
  if dataclasses.is_dataclass(value):
    return {
      field.name: _plain(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
  """A setting's value as it is written in an override."""
  if isinstance(value, tuple | list):
    return f"[{', '.join(map(_show, value))}]"
  if value is None or isinstance(value, bool):
    return {None: "null", True: "true", False: "false"}[value]
  return str(value)


def _experiments() -> list[str]:
  return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def _layers(
  file: str, below: tuple[str, ...] = ()
) -> Iterator[tuple[str, omegaconf.DictConfig]]:
  """A file's settings after those of the files that it `extends`.

  Args:
    file: a YAML file, or the name of a packaged experiment.
    below: the files that extend this one.
  """
  if file in below:
    raise errors.UserError(f"{' extends '.join((*below, file))}: a circle")
  path = _found(file, below)
  layer = read_file(file, path)
  parents = layer.pop("extends", None)
  if not isinstance(parents, omegaconf.ListConfig):
    parents = [] if parents is None else [parents]
  for parent in map(str, parents):
    beside = path.parent / parent
    yield from _layers(
      str(beside) if beside.is_file() else parent, (*below, file)
    )
  yield file, layer


def _found(file: str, below: Sequence[str]) -> pathlib.Path:
  """Where a file lies that a command line or another file names."""
  path = expanded(file)
  if path.is_file():
    return path
  packaged = [EXPERIMENTS / f"{file}.yaml", EXPERIMENTS / f"parts/{file}.yaml"]
  for path in packaged[: 2 if below else 1]:
    if path.is_file():
      return path
  raise errors.UserError(
    f"{f'{below[-1]}: extends' if below else '--config'} {file}: no such"
    f" file; packaged experiments are {', '.join(_experiments())}"
  )


def read_file(file: str, path: pathlib.Path) -> omegaconf.DictConfig:
  """A YAML file's mapping; errors call it `file`."""
  try:
    layer = omegaconf.OmegaConf.load(path)
  except yaml.MarkedYAMLError as error:
    raise errors.UserError(
      f"{file} line {error.problem_mark.line + 1}: not valid YAML:"
      f" {error.problem}"
    ) from error
  except (
    OSError,
    ValueError,
    yaml.YAMLError,
    omegaconf.errors.OmegaConfBaseException,
  ) as error:
    raise errors.UserError(f"{file}: {_first_line(error)}") from error
  if not isinstance(layer, omegaconf.DictConfig):
    raise errors.UserError(f"{file}: expected a mapping of settings")
  return layer


def _unlock(node: omegaconf.DictConfig) -> None:
  """Lets a tree of frozen dataclasses be changed while it is put together."""
  omegaconf.OmegaConf.set_readonly(node, False)
  for child in node.values():
    if isinstance(child, omegaconf.DictConfig):
      _unlock(child)


def _overlay(
  tree: omegaconf.DictConfig, layer: omegaconf.DictConfig, where: str
) -> None:
  """Lays one file or override over the tree, setting by setting."""
  for key, value in _leaves(
    omegaconf.OmegaConf.to_container(layer, resolve=False)
  ):
    kind = _type_of(key, where)
    if dataclasses.is_dataclass(kind):
      if value in (None, {}):  # A group whose settings are all commented out.
        continue
      raise errors.UserError(
        f"{where}: {key} is a group, set {key}.{_names(kind)[0]} and so on"
      )
    nullable = types.NoneType in typing.get_args(kind)
    meant = None if nullable and value in ("None", "none") else value
    if key == "distributed" and value is False:
      meant = "off"  # YAML takes the word for a boolean.
    try:
      omegaconf.OmegaConf.update(tree, key, meant)
    except omegaconf.errors.OmegaConfBaseException as error:
      raise errors.UserError(
        f"{where}: {key}={_show(value)} should be {_expected(kind)}"
      ) from error


def _leaves(layer: dict[Any, Any], prefix: str = "") -> Iterator[Any]:
  """Dotted keys and values of a nested mapping."""
  for key, value in layer.items():
    if isinstance(value, dict) and value:
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _names(kind: type) -> list[str]:
  return [field.name for field in dataclasses.fields(kind)]


def _type_of(key: str, where: str) -> Any:
  """The declared type of a dotted key; `where` it was read, for the error."""
  kind, group = Config, ""
  for part in key.split("."):
    names = _names(kind) if dataclasses.is_dataclass(kind) else []
    if part not in names:
      last = key.rpartition(".")[2]
      close = [
        other
        for other, _, _ in settings(Config())
        if other.rpartition(".")[2] == last
      ] or [group + name for name in difflib.get_close_matches(part, names)]
      if close:
        remedy = f"did you mean {' or '.join(close)}?"
      elif names:
        remedy = f"{group[:-1] or 'the top'} holds {', '.join(names)}"
      else:
        remedy = f"{group[:-1]} is not a group"
      raise errors.UserError(f"{where}: unknown setting {key}; {remedy}")
    kind = typing.get_type_hints(kind)[part]
    group += f"{part}."
  return kind


def _expected(kind: Any) -> str:
  """A type, in words."""
  if typing.get_origin(kind) is Literal:
    return "one of " + ", ".join(typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    return f"a list (each {_expected(typing.get_args(kind)[0])})"
  if typing.get_origin(kind) in (types.UnionType, typing.Union):
    members = (k for k in typing.get_args(kind) if k is not types.NoneType)
    return " or ".join([*map(_expected, members), "null"])
  return {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
  }[kind]


def _first_line(error: Exception) -> str:
  return str(error).partition("\n")[0]


def _is_file(source: str | None) -> bool:
  """Whether a data source is a file, not generated or on the hub."""
  return bool(source) and source != "embedded" and source[:4] != "hub:"


def _out_of_range(config: Config) -> Iterator[str]:
  """Numbers outside their setting's range."""
  for key, field, value in settings(config):
    allowed = field.metadata["range"]
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
      if isinstance(number, float) and not math.isfinite(number):
        yield f"{key}={number} must be finite"
      elif allowed and number is not None and not allowed.holds(number):
        yield f"{key}={_show(number)} must be {allowed.text}"


def _misfits(config: Config) -> Iterator[str]:
  """Settings that do not fit each other."""
  data, embedded = config.data, config.embedded
  if not config.name or set(config.name) & set("/\\"):
    yield f"name={config.name!r} must be a folder's name"

  if not config.stages:
    yield "stages=[] must name at least one stage"
  if config.stages != tuple(s for s in STAGES if s in config.stages):
    yield f"stages={_show(config.stages)} must keep the order {_show(STAGES)}"
  if "base" in config.stages:
    if data.train != "embedded":
      yield (
        f"data.train={data.train}: the base stage is for embedded data only;"
        " set model.path and stages=[warmup, sft, reft]"
      )
    if config.model.path:
      yield (
        f"model.path={config.model.path}: the base stage would train another"
        " model; set stages=[warmup, sft, reft] or model.path=null"
      )
    for setting, share, wanted in (
      ("programs", embedded.programs, data.reasoning == "python"),
      ("choices", embedded.choices, data.task == "embedded-choice"),
    ):
      if wanted and not share:
        yield (
          f"embedded.{setting}=0: the base model would never have seen"
          f" {setting}; set a share, or --config embedded_"
          f"{'python' if setting == 'programs' else 'choice'}"
        )
    if data.chat_template:
      yield (
        "data.chat_template=true: the base stage's model knows no chat; set"
        " model.path to an instruct model"
      )
  elif not config.model.path:
    yield (
      "model.path=null needs the base stage, or set a model: a folder, or"
      " owner/name on the hub"
    )
  if data.system_prompt is not None and not data.chat_template:
    yield "data.system_prompt is part of a chat; set data.chat_template=true"
  if data.test == "embedded":
    yield (
      "data.test=embedded: only data.train=embedded tests on generated"
      " questions, and brings its own; set data.test to a file,"
      " hub:owner/name[:split] or null"
    )
  if config.warmup.start != "base":
    yield "warmup.start=warmup must be base"
  if config.model.warmup and "warmup" in config.stages:
    yield (
      f"model.warmup={config.model.warmup}: the warmup stage would train"
      " another; leave it out of stages, or set model.warmup=null"
    )
  if config.model.warmup and "base" in config.stages:
    yield (
      f"model.warmup={config.model.warmup} did not start from the model of the"
      " base stage; set model.path to the one it started from"
    )
  for stage in ("sft", "offline_st", "reward_model"):
    start = getattr(config, stage).start
    if stage in config.stages and start == "warmup" and not warmed(config):
      yield (
        f"{stage}.start=warmup needs the warmup stage or model.warmup, or set"
        f" {stage}.start=base"
      )
  for stage in STAGES[1:]:
    yield from _rate_misfits(config, stage)
  if config.lora.rank and not config.lora.targets:
    yield "lora.targets=[] must name at least one projection, or all"
  if "reft" in config.stages:
    yield from _reft_misfits(config)

  if embedded.min_events > embedded.max_events:
    yield (
      f"embedded.min_events={embedded.min_events} must not exceed"
      f" embedded.max_events={embedded.max_events}"
    )
  if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
    yield "mesh: only one axis can be -1, the rest of the devices"

  sizes = {key: value for key, _, value in settings(config)}
  for stage in REINFORCED:
    if sizes[f"{stage}.minibatch_size"] is None:
      sizes[f"{stage}.minibatch_size"] = sizes[f"{stage}.batch_size"]
  for whole, part in (
    ("base.width", "base.heads"),
    ("base.heads", "base.kv_heads"),
    ("warmup.batch_size", "warmup.micro_batch_size"),
    ("sft.batch_size", "sft.micro_batch_size"),
    ("offline_st.batch_size", "offline_st.micro_batch_size"),
    ("reward_model.batch_size", "reward_model.micro_batch_size"),
    ("online_st.batch_size", "online_st.samples_per_question"),
    ("online_st.batch_size", "online_st.minibatch_size"),
    ("online_st.minibatch_size", "online_st.micro_batch_size"),
    ("reft.batch_size", "reft.samples_per_question"),
    ("reft.batch_size", "reft.minibatch_size"),
    ("reft.minibatch_size", "reft.micro_batch_size"),
  ):
    if sizes[part] is not None and sizes[whole] % sizes[part]:
      yield (
        f"{whole}={sizes[whole]} must be a multiple of {part}={sizes[part]}"
      )


def _reft_misfits(config: Config) -> Iterator[str]:
  """What PPO cannot do, or would do for nothing."""
  reft = config.reft
  alone = reft.samples_per_question < 2
  if reft.advantages == "gae":
    if reft.value_warmup_steps and not reft.vf_coef:
      yield (
        "reft.vf_coef=0: the critic would learn nothing in"
        f" reft.value_warmup_steps={reft.value_warmup_steps}; set one of them"
      )
    if reft.steps is not None and 0 < reft.steps <= reft.value_warmup_steps:
      yield (
        f"reft.value_warmup_steps={reft.value_warmup_steps} would leave the"
        f" policy none of reft.steps={reft.steps}"
      )
  else:
    if alone:
      yield (
        f"reft.advantages={reft.advantages} compares rollouts of one question:"
        f" reft.samples_per_question={reft.samples_per_question} must be 2 or"
        " more"
      )
    if reft.value_warmup_steps:
      yield (
        f"reft.advantages={reft.advantages} has no critic to warm up; set"
        " reft.value_warmup_steps=0"
      )
    if config.model.value == "separate":
      yield (
        f"reft.advantages={reft.advantages} has no critic; set"
        " model.value=shared"
      )
  if reft.kl_target and not reft.kl_coef:
    yield "reft.kl_target adapts reft.kl_coef, which must start above 0"
  if reft.drop_groups_without_signal and alone:
    yield (
      "reft.drop_groups_without_signal would leave out every question:"
      f" reft.samples_per_question={reft.samples_per_question} must be 2 or"
      " more"
    )


def _rate_misfits(config: Config, stage: str) -> Iterator[str]:
  """Learning rates that cannot be compared."""
  rates = getattr(config, stage).learning_rates
  if rates == ():
    yield f"{stage}.learning_rates=[] must hold a number, or be null"
  elif (
    stage in config.stages
    and rates
    and len(rates) > 1
    and not config.data.dev_size
  ):
    yield (
      f"{stage}.learning_rates are chosen on dev: data.dev_size=0 leaves"
      " none; set one of them"
    )
  # As they name a sweep's results.
  if rates and len({f"{rate:g}" for rate in rates}) < len(rates):
    yield (
      f"{stage}.learning_rates={_show(rates)} must differ in their first six"
      " digits; leave one of two alike out"
    )
