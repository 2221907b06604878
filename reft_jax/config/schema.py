"""The run's settings: a frozen tree, its files, its command line, its checks.

Defaults are the paper's (7B models, natural-language chains of thought). An
experiment is a YAML file laid over them; the ones in `launch/experiments`
travel inside the package and can be named without their path. A run that
names none is the `embedded` experiment.
"""

import dataclasses
import pathlib
import typing
from collections.abc import Callable
from typing import Any, Literal

from reft_jax import files

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
class CollectConfig:
  """Solutions sampled once from the warmed-up model, to learn from or judge."""

  per_question: int = _setting(
    100, "solutions sampled for a training question", _POSITIVE
  )
  temperature: float = _setting(1.0, "sampling temperature", _POSITIVE)
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
  filter_zero_variance_groups: bool = _setting(
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
  collect: CollectConfig = CollectConfig()
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


def warmed(config: Config) -> bool:
  """Whether a run has a warmed-up model, its own or one from elsewhere."""
  return "warmup" in config.stages or config.model.warmup is not None


def run_directory(config: Config) -> pathlib.Path:
  """Where the run writes everything it leaves behind."""
  return files.expand_user(
    config.output or f"runs/{config.name}-seed{config.seed}"
  )
