"""The settings of a run: a tree of frozen dataclasses.

Defaults are the paper's (7B models, natural-language chains of thought). Each
setting holds its line of help, the range of its numbers, and whether it may
change when a run is resumed.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from reft_jax import files

# `stages.TABLE` has what is known of each.
Stage = Literal[
  "base", "warmup", "sft", "offline_st", "online_st", "reft", "reward_model"
]


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers a setting may take, in words and as a test."""

  text: str
  holds: Callable[[float], bool]


_ABOVE_0 = Range("above 0", lambda x: x > 0)
_FROM_0 = Range("0 or more", lambda x: x >= 0)
_SHARE = Range("between 0 and 1", lambda x: 0 <= x <= 1)
_DECAY = Range("at least 0 and below 1", lambda x: 0 <= x < 1)
_SEED = Range("between 0 and 2**32 - 1", lambda x: 0 <= x < 2**32)
_AXIS = Range("above 0, or -1 for the rest", lambda x: x > 0 or x == -1)


# Old names of settings, which still work in this version.
ALIASES = {
  "draws": "collect",
  "draws.samples": "collect.per_question",
  "draws.temperature": "collect.temperature",
  "draws.top_k": "collect.top_k",
  "reft.drop_groups_without_signal": "reft.filter_zero_variance_groups",
}


def _field(
  default: Any, text: str, valid: Range = _ABOVE_0, *, may_change: bool = False
) -> Any:
  """A field with its setting's line of help and range, if it is a number.

  If it `may_change`, a run can be resumed with another value: it does not
  change what the models learn.
  """
  metadata = {"help": text, "range": valid, "may_change": may_change}
  return dataclasses.field(default=default, metadata=metadata)


_adjustable = functools.partial(_field, may_change=True)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The problems, and how they become tokens."""

  train: str = _field(
    "embedded", "training problems: embedded, a file, or hub:owner/name[:split]"
  )
  test: str | None = _field(
    None, "held-out problems, as for train (embedded brings its own)"
  )
  task: str | None = _field(
    None, "gsm8k, mathqa-numeric ...; null: read from the problems' ids"
  )
  dev_size: int = _field(
    200, "training problems set aside to choose models on", _FROM_0
  )
  train_limit: int | None = _field(None, "use only this many training problems")
  test_limit: int | None = _field(None, "use only this many test problems")
  reasoning: Literal["nl", "python"] = _field(
    "nl", "chains of thought: nl, natural language, or python, programs"
  )
  answers: Literal["strict", "official"] = _field(
    "strict", "answer matching; official repeats the released code's rules"
  )
  calculator_marks: bool = _field(
    False, "keep the calculator marks <<48/2=24>> of GSM8K's files"
  )
  add_bos: bool = _field(
    False, "start prompts with the beginning-of-sequence token"
  )
  chat_template: bool = _field(
    False, "put questions into the chat template of an instruct model"
  )
  system_prompt: str | None = _field(
    None, "system message of that chat; null: the template's"
  )
  max_prompt_tokens: int = _field(
    300, "tokens of a prompt; problems with longer ones are left out"
  )
  max_response_tokens: int = _field(
    400, "tokens of a response; sampling stops there"
  )
  length_bucket: int = _field(
    128, "training rows are padded to a multiple of this many tokens"
  )


@dataclasses.dataclass(frozen=True)
class EmbeddedConfig:
  """The generated word problems, for runs that need no files."""

  questions: int = _field(500, "training questions")
  test: int = _field(1000, "held-out questions")
  merge: float = _field(
    0.7, "chance that an annotation merges two steps into one", _SHARE
  )
  documents: int = _field(89_600, "documents the base model is trained on")
  noise: float = _field(0.4, "share of documents with a mistake", _SHARE)
  answer_phrase: float = _field(
    0.15,
    "share of documents with a question that end like the annotations",
    _SHARE,
  )
  drills: float = _field(
    0.5, "share of documents without a question: equations, lookups", _SHARE
  )
  choices: float = _field(
    0.0, "share of documents that offer options, drills included", _SHARE
  )
  programs: float = _field(
    0.0, "share of documents with a question solved by a program", _SHARE
  )
  min_events: int = _field(3, "fewest events in a question")
  max_events: int = _field(4, "most events in a question")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The pretrained model, and how it is computed."""

  path: str | None = _field(
    None,
    "Hugging Face folder, or owner/name[@revision] on the hub; null: the base"
    " stage trains one",
  )
  compute_dtype: Literal["float32", "bfloat16"] = _field(
    "float32", "type of activations; weights and losses stay float32"
  )
  remat: Literal["none", "block", "dots"] = _field(
    "none", "what the backward pass computes again to save memory"
  )
  warmup: str | None = _field(
    None, "a warmed-up model, like path; null: the warmup stage trains one"
  )
  value: Literal["shared", "separate"] = _field(
    "shared", "the critic's trunk: the policy's, or its own"
  )
  logit_chunk: int = _field(
    1024, "tokens whose logits a device computes at a time"
  )
  eos_token: str | None = _field(
    None, "token that ends responses; null: from the model's files"
  )
  pad_token: str | None = _field(
    None, "padding token; null: from the model's files, or eos_token"
  )
  resize_vocab: bool = _field(
    False, "grow an embedding that has fewer rows than the tokenizer has ids"
  )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters: all stages but base train these, not the weights."""

  rank: int = _field(
    0, "rank of the adapters; 0: no adapters, all weights are trained", _FROM_0
  )
  alpha: float = _field(16.0, "adapters' outputs are scaled by alpha / rank")
  targets: tuple[
    Literal["all", "q", "k", "v", "o", "gate", "up", "down"], ...
  ] = _field(("all",), "projections that get an adapter")

  @property
  def scale(self) -> float:
    """The factor of an adapter's output."""
    return self.alpha / self.rank if self.rank else 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Axes of the device mesh; -1: all remaining devices; null: automatic."""

  data: int | None = _adjustable(
    None, "replicas of the weights; the batch is split over them", _AXIS
  )
  fsdp: int | None = _adjustable(
    None, "shards of the weights; the batch is split over them too", _AXIS
  )
  tensor: int | None = _adjustable(
    None, "shards of heads and hidden units", _AXIS
  )
  gather: Literal["auto", "step", "layer"] = _adjustable(
    "auto", "all-gather of weights: once an optimizer step, or layer by layer"
  )
  sampler_tensor: int | None = _adjustable(
    None, "shards of heads and hidden units while sampling"
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """One optimizer and its schedule."""

  kind: Literal["adamw", "muon"] = _field(
    "adamw", "muon: Muon for the blocks' matrices, NAdamW for the rest"
  )
  learning_rate: float = _field(1e-5, "peak; with muon, the peak for matrices")
  adam_learning_rate: float = _field(
    3e-3, "with muon, the peak for everything else"
  )
  schedule: Literal["constant", "linear", "cosine"] = _field(
    "linear", "decay from the peak"
  )
  warmup_fraction: float = _field(
    0.1, "share of the steps that rise to the peak", _SHARE
  )
  final_fraction: float = _field(0.0, "share of the peak at the end", _SHARE)
  weight_decay: float = _field(0.0, "decoupled weight decay", _FROM_0)
  b1: float = _field(0.9, "decay of the first moment", _DECAY)
  b2: float = _field(0.999, "decay of the second moment", _DECAY)
  eps: float = _field(1e-8, "added to the root of the second moment")
  clip_norm: float | None = _field(
    1.0, "clip gradients to this global norm; null: no clipping"
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
  ] = _field("llama", "architecture, by its model_type")
  layers: int = _field(2, "transformer blocks")
  width: int = _field(64, "size of the residual stream")
  heads: int = _field(4, "query heads")
  kv_heads: int = _field(4, "key and value heads")
  ffn: int = _field(172, "hidden units of a feed-forward layer")
  steps: int = _field(1400, "optimizer steps")
  batch_size: int = _field(64, "documents in a step")
  cache: str | None = _field(
    None, "folder of trained base models; null: ~/.cache/reft_jax"
  )
  optimizer: OptimizerConfig = OptimizerConfig(
    kind="muon", learning_rate=0.015, schedule="cosine", warmup_fraction=0.0
  )


_TOP_K = "sample from the k likeliest tokens; 0: all (released code: 50)"
_TRIED = "learning rates to try; the best on dev is kept; null: the optimizer's"


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Fine-tuning on the annotated chains of thought."""

  epochs: int = _field(40, "passes over the training problems")
  batch_size: int = _field(48, "problems in a step, over all devices")
  micro_batch_size: int | None = _field(
    None, "problems in memory at once; null: the batch"
  )
  learning_rates: tuple[float, ...] | None = _field(None, _TRIED)
  start: Literal["base", "warmup"] = _field(
    "base", "model to start from: base is model.path or the base stage's"
  )
  evaluate_every: int = _field(1, "epochs between evaluations")
  optimizer: OptimizerConfig = OptimizerConfig()

  @property
  def micro_batch(self) -> int:
    """Problems held in memory at once."""
    return self.micro_batch_size or self.batch_size


@dataclasses.dataclass(frozen=True)
class CollectConfig:
  """Samples collected once from the warmed-up model, to imitate or to judge."""

  per_question: int = _field(100, "solutions sampled for a training question")
  temperature: float = _field(1.0, "sampling temperature")
  top_k: int = _field(0, _TOP_K, _FROM_0)


@dataclasses.dataclass(frozen=True)
class OfflineConfig(SupervisedConfig):
  """Offline self-training: fine-tuning on collected samples that are right."""

  epochs: int = _field(20, "passes over collected samples and annotations")
  keep: int = _field(10, "right samples of a question, at most")
  choose: Literal["random", "official"] = _field(
    "random", "official: the first ones, and the annotation twice"
  )


@dataclasses.dataclass(frozen=True)
class RolloutsConfig:
  """A stage that samples as it learns."""

  steps: int | None = _field(
    None, "steps of sampling and learning; null: from epochs"
  )
  epochs: int = _field(
    300, "passes over the training problems, if steps is null"
  )
  batch_size: int = _field(32, "rollouts in a step, over all devices")
  samples_per_question: int = _field(1, "rollouts of one question in a step")
  minibatch_size: int | None = _field(
    None, "rollouts in an update; null: the batch"
  )
  micro_batch_size: int | None = _field(
    None, "rollouts in memory at once; null: the minibatch"
  )
  temperature: float = _field(1.0, "sampling temperature")
  learning_rates: tuple[float, ...] | None = _field(None, _TRIED)
  evaluate_every: int = _field(100, "steps between evaluations")
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=3e-7, schedule="constant", warmup_fraction=0.0
  )

  @property
  def minibatch(self) -> int:
    """Rollouts in an update."""
    return self.minibatch_size or self.batch_size

  @property
  def micro_batch(self) -> int:
    """Rollouts held in memory at once."""
    return self.micro_batch_size or self.minibatch


@dataclasses.dataclass(frozen=True)
class OnlineConfig(RolloutsConfig):
  """Online self-training: imitation of right samples of the policy itself."""

  passes: int = _field(2, "passes over the rollouts of a step")
  gold_share: float = _field(
    0.5, "weight of the annotations' loss; 0: right samples only", _SHARE
  )


@dataclasses.dataclass(frozen=True)
class ReftConfig(RolloutsConfig):
  """Reinforced fine-tuning by PPO."""

  ppo_epochs: int = _field(2, "passes over the rollouts of a step")
  gamma: float = _field(1.0, "discount of rewards", _SHARE)
  lam: float = _field(0.95, "lambda of the advantages", _SHARE)
  kl_coef: float = _field(
    0.05, "weight of the KL to the starting model", _FROM_0
  )
  kl_in: Literal["reward", "loss"] = _field(
    "reward", "where it counts: in each action's reward, or as a loss"
  )
  kl_estimator: Literal["k1", "k2", "k3"] | None = _field(
    None,
    "of x = log p - log p_ref: x (useless as a loss), x^2/2, exp(-x)-1+x;"
    " null: k1 in the reward, k3 in the loss",
  )
  kl_target: float | None = _field(
    None, "adapt kl_coef to this KL of a response; null: fixed"
  )
  kl_horizon: int = _field(
    10_000, "rollouts in which kl_coef changes by a fifth at most"
  )
  entropy_coef: float = _field(0.0, "weight of the entropy bonus", _FROM_0)
  advantages: Literal["gae", "grpo", "dr_grpo", "rloo"] = _field(
    "gae",
    "gae: from a critic; others: compare a question's rollouts, no critic",
  )
  aggregation: Literal["sequence_mean", "token_mean", "constant"] = _field(
    "sequence_mean",
    "of the loss: mean of rows' means; mean of tokens; sum over all slots",
  )
  filter_zero_variance_groups: bool = _field(
    False, "leave out questions whose rollouts all have the same reward"
  )
  clip: float = _field(0.2, "clip range of the ratio")
  clip_high: float | None = _field(
    None, "clip range above 1; null: the same as clip"
  )
  value_clip: float = _field(0.2, "clip range of the values")
  vf_coef: float = _field(5.0, "weight of the value loss", _FROM_0)
  value_warmup_steps: int = _field(
    0, "first steps, in which only the critic learns", _FROM_0
  )
  whiten: bool = _field(True, "whiten the advantages of a step (gae)")
  partial_reward: float = _field(
    0.1, "reward of a wrong answer; a right one earns 1, none 0", _SHARE
  )
  choice_reward: Literal["letter", "value"] = _field(
    "letter",
    "multiple choice; value: a letter counts only if the reasoning reaches it",
  )
  unreached_limit: float = _field(
    0.2,
    "warn if a larger share of right letters comes from another value",
    _SHARE,
  )

  @property
  def kl_estimate(self) -> Literal["k1", "k2", "k3"]:
    """The KL's estimator; the default depends on where the KL counts."""
    return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")

  @property
  def has_critic(self) -> bool:
    """Whether advantages come from a learned value function."""
    return self.advantages == "gae"


@dataclasses.dataclass(frozen=True)
class ProgramsConfig:
  """How the programs of data.reasoning=python are run."""

  isolation: Literal["strict", "monty", "unsafe"] = _field(
    "strict",
    "strict: monty, then CPython under seccomp; monty: the first alone;"
    " unsafe: CPython too where it cannot be confined",
  )
  workers: int | None = _adjustable(
    None, "programs run at once; null: one per CPU core, at most 32"
  )
  cpu_seconds: float = _field(
    1.0, "CPU time of a program (released code: 10 s of wall time)"
  )
  memory_mb: int = _field(64, "memory of a program, in MB")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How models are compared."""

  batch_size: int = _field(64, "problems answered at once")
  dev_limit: int | None = _field(
    None, "dev problems in an evaluation during training"
  )
  majority_samples: int = _field(
    16, "samples of the vote at the end of a stage; 0: no vote", _FROM_0
  )
  temperature: float = _field(1.0, "sampling temperature")
  top_k: int = _field(0, _TOP_K, _FROM_0)
  split: Literal["test", "dev", "train"] = _adjustable(
    "test", "problems that reft_jax.evaluate uses"
  )
  samples: int = _adjustable(
    100, "samples per problem in reft_jax.evaluate; 0: none", _FROM_0
  )
  at: tuple[int, ...] | None = _adjustable(
    None, "numbers of samples in a vote; null: 1, 10, ... up to all"
  )
  reward_model: str | None = _adjustable(
    None, "reward model for reranking: a folder, or owner/name on the hub"
  )
  resamples: int = _adjustable(1000, "bootstrap resamples of an interval")


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """What is logged."""

  every: int | None = _adjustable(
    None, "steps between rows of metrics; null: about 50 rows a stage"
  )
  sample_every: int = _adjustable(
    10, "steps between printed samples; 0: never", _FROM_0
  )
  tensorboard: bool = _adjustable(True, "also write TensorBoard files")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is saved for resuming."""

  every: int = _adjustable(50, "steps between checkpoints")
  keep: int = _adjustable(2, "newest checkpoints kept")


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that defines a run."""

  name: str = _field("embedded", "name of the run")
  seed: int = _field(0, "seed of every random choice", _SEED)
  output: str | None = _adjustable(None, "run folder; null: runs/NAME-seedSEED")
  resume: Literal["auto", "never"] = _adjustable(
    "auto", "auto: resume from the last checkpoint in the run folder"
  )
  distributed: str = _adjustable(
    "auto", "processes of one run: auto joins those it detects; off; HOST:PORT"
  )
  xla_flags: Literal["none", "fast"] = _adjustable(
    "none", "fast: compiler flags for GPUs and TPUs that overlap collectives"
  )
  stages: tuple[Stage, ...] = _adjustable(
    ("base", "warmup", "sft", "reft"), "stages to run, in this order"
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


def run_directory(config: Config) -> pathlib.Path:
  """The folder that the run writes to."""
  return files.expand_user(
    config.output or f"runs/{config.name}-seed{config.seed}"
  )
