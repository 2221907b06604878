"""The settings of a run: a tree of frozen dataclasses.

Defaults are the paper's (7B models, natural-language chains of thought). Each
setting holds its line of help, the range of its numbers, and whether it may
change when a run is resumed.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from reft_jax import files

# `stages.TABLE` has what is known of each.
Stage = Literal[
  "base",
  "warmup",
  "sft",
  "offline_st",
  "online_st",
  "reft",
  "reward_model",
]


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


# Old names of settings, which still work in this version.
ALIASES = {
  "draws": "collect",
  "draws.samples": "collect.per_question",
  "draws.temperature": "collect.temperature",
  "draws.top_k": "collect.top_k",
  "reft.drop_groups_without_signal": "reft.filter_zero_variance_groups",
}


def _setting(
  default: Any,
  text: str,
  allowed: Range | None = None,
  *,
  may_change: bool = False,
) -> Any:
  """A field with what is known of its setting.

  Args:
    default: the default value.
    text: the line of help.
    allowed: the range of its numbers.
    may_change: whether a run can be resumed with another value: it does not
      change what the models learn.
  """
  return dataclasses.field(
    default=default,
    metadata={"help": text, "range": allowed, "may_change": may_change},
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
    None, "use only this many training problems", _POSITIVE
  )
  test_limit: int | None = _setting(
    None, "use only this many test problems", _POSITIVE
  )
  reasoning: Literal["nl", "python"] = _setting(
    "nl", "chains of thought: nl, natural language, or python, programs"
  )
  answers: Literal["strict", "official"] = _setting(
    "strict", "answer matching; official repeats the released code's rules"
  )
  calculator_marks: bool = _setting(
    False, "keep the calculator marks <<48/2=24>> of GSM8K's files"
  )
  add_bos: bool = _setting(
    False, "start prompts with the beginning-of-sequence token"
  )
  chat_template: bool = _setting(
    False, "put questions into the chat template of an instruct model"
  )
  system_prompt: str | None = _setting(
    None, "system message of that chat; null: the template's"
  )
  max_prompt_tokens: int = _setting(
    300, "tokens of a prompt; problems with longer ones are left out", _POSITIVE
  )
  max_response_tokens: int = _setting(
    400, "tokens of a response; sampling stops there", _POSITIVE
  )
  length_bucket: int = _setting(
    128, "training rows are padded to a multiple of this many tokens", _POSITIVE
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
    "share of documents with a question that end like the annotations",
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
  """The pretrained model, and how it is computed."""

  path: str | None = _setting(
    None,
    "Hugging Face folder, or owner/name[@revision] on the hub; null: the base"
    " stage trains one",
  )
  compute_dtype: Literal["float32", "bfloat16"] = _setting(
    "float32", "type of activations; weights and losses stay float32"
  )
  remat: Literal["none", "block", "dots"] = _setting(
    "none", "what the backward pass computes again to save memory"
  )
  warmup: str | None = _setting(
    None,
    "a warmed-up model, like path; null: the warmup stage trains one",
  )
  value: Literal["shared", "separate"] = _setting(
    "shared", "the critic's trunk: the policy's, or its own"
  )
  logit_chunk: int = _setting(
    1024, "tokens whose logits a device computes at a time", _POSITIVE
  )
  eos_token: str | None = _setting(
    None, "token that ends responses; null: from the model's files"
  )
  pad_token: str | None = _setting(
    None, "padding token; null: from the model's files, or eos_token"
  )
  resize_vocab: bool = _setting(
    False, "grow an embedding that has fewer rows than the tokenizer has ids"
  )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters: all stages but base train these, not the weights."""

  rank: int = _setting(
    0,
    "rank of the adapters; 0: no adapters, all weights are trained",
    _NOT_NEGATIVE,
  )
  alpha: float = _setting(
    16.0, "adapters' outputs are scaled by alpha / rank", _POSITIVE
  )
  targets: tuple[
    Literal["all", "q", "k", "v", "o", "gate", "up", "down"], ...
  ] = _setting(("all",), "projections that get an adapter")

  @property
  def scale(self) -> float:
    """The factor of an adapter's output."""
    return self.alpha / self.rank if self.rank else 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Axes of the device mesh; -1: all remaining devices; null: automatic."""

  data: int | None = _setting(
    None,
    "replicas of the weights; the batch is split over them",
    _AXIS,
    may_change=True,
  )
  fsdp: int | None = _setting(
    None,
    "shards of the weights; the batch is split over them too",
    _AXIS,
    may_change=True,
  )
  tensor: int | None = _setting(
    None, "shards of heads and hidden units", _AXIS, may_change=True
  )
  gather: Literal["auto", "step", "layer"] = _setting(
    "auto",
    "all-gather of weights: once an optimizer step, or layer by layer",
    may_change=True,
  )
  sampler_tensor: int | None = _setting(
    None,
    "shards of heads and hidden units while sampling",
    _POSITIVE,
    may_change=True,
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """One optimizer and its schedule."""

  kind: Literal["adamw", "muon"] = _setting(
    "adamw", "muon: Muon for the blocks' matrices, NAdamW for the rest"
  )
  learning_rate: float = _setting(
    1e-5, "peak; with muon, the peak for matrices", _POSITIVE
  )
  adam_learning_rate: float = _setting(
    3e-3, "with muon, the peak for everything else", _POSITIVE
  )
  schedule: Literal["constant", "linear", "cosine"] = _setting(
    "linear", "decay from the peak"
  )
  warmup_fraction: float = _setting(
    0.1, "share of the steps that rise to the peak", _SHARE
  )
  final_fraction: float = _setting(0.0, "share of the peak at the end", _SHARE)
  weight_decay: float = _setting(0.0, "decoupled weight decay", _NOT_NEGATIVE)
  b1: float = _setting(0.9, "decay of the first moment", _DECAY)
  b2: float = _setting(0.999, "decay of the second moment", _DECAY)
  eps: float = _setting(
    1e-8, "added to the root of the second moment", _POSITIVE
  )
  clip_norm: float | None = _setting(
    1.0, "clip gradients to this global norm; null: no clipping", _POSITIVE
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


_TOP_K = "sample from the k likeliest tokens; 0: all (released code: 50)"
_TRIED = "learning rates to try; the best on dev is kept; null: the optimizer's"


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Fine-tuning on the annotated chains of thought."""

  epochs: int = _setting(40, "passes over the training problems", _POSITIVE)
  batch_size: int = _setting(
    48, "problems in a step, over all devices", _POSITIVE
  )
  micro_batch_size: int | None = _setting(
    None, "problems in memory at once; null: the batch", _POSITIVE
  )
  learning_rates: tuple[float, ...] | None = _setting(None, _TRIED, _POSITIVE)
  start: Literal["base", "warmup"] = _setting(
    "base", "model to start from: base is model.path or the base stage's"
  )
  evaluate_every: int = _setting(1, "epochs between evaluations", _POSITIVE)
  optimizer: OptimizerConfig = OptimizerConfig()

  @property
  def micro_batch(self) -> int:
    """Problems held in memory at once."""
    return self.micro_batch_size or self.batch_size


@dataclasses.dataclass(frozen=True)
class CollectConfig:
  """Samples collected once from the warmed-up model, to imitate or to judge."""

  per_question: int = _setting(
    100, "solutions sampled for a training question", _POSITIVE
  )
  temperature: float = _setting(1.0, "sampling temperature", _POSITIVE)
  top_k: int = _setting(0, _TOP_K, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class OfflineConfig(SupervisedConfig):
  """Offline self-training: fine-tuning on collected samples that are right."""

  epochs: int = _setting(
    20, "passes over collected samples and annotations", _POSITIVE
  )
  keep: int = _setting(10, "right samples of a question, at most", _POSITIVE)
  choose: Literal["random", "official"] = _setting(
    "random", "official: the first ones, and the annotation twice"
  )


@dataclasses.dataclass(frozen=True)
class RolloutsConfig:
  """A stage that samples as it learns."""

  steps: int | None = _setting(
    None, "steps of sampling and learning; null: from epochs", _POSITIVE
  )
  epochs: int = _setting(
    300, "passes over the training problems, if steps is null", _POSITIVE
  )
  batch_size: int = _setting(
    32, "rollouts in a step, over all devices", _POSITIVE
  )
  samples_per_question: int = _setting(
    1, "rollouts of one question in a step", _POSITIVE
  )
  minibatch_size: int | None = _setting(
    None, "rollouts in an update; null: the batch", _POSITIVE
  )
  micro_batch_size: int | None = _setting(
    None, "rollouts in memory at once; null: the minibatch", _POSITIVE
  )
  temperature: float = _setting(1.0, "sampling temperature", _POSITIVE)
  learning_rates: tuple[float, ...] | None = _setting(None, _TRIED, _POSITIVE)
  evaluate_every: int = _setting(100, "steps between evaluations", _POSITIVE)
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

  passes: int = _setting(2, "passes over the rollouts of a step", _POSITIVE)
  gold_share: float = _setting(
    0.5, "weight of the annotations' loss; 0: right samples only", _SHARE
  )


@dataclasses.dataclass(frozen=True)
class ReftConfig(RolloutsConfig):
  """Reinforced fine-tuning by PPO."""

  ppo_epochs: int = _setting(2, "passes over the rollouts of a step", _POSITIVE)
  gamma: float = _setting(1.0, "discount of rewards", _SHARE)
  lam: float = _setting(0.95, "lambda of the advantages", _SHARE)
  kl_coef: float = _setting(
    0.05, "weight of the KL to the starting model", _NOT_NEGATIVE
  )
  kl_in: Literal["reward", "loss"] = _setting(
    "reward", "where it counts: in each action's reward, or as a loss"
  )
  kl_estimator: Literal["k1", "k2", "k3"] | None = _setting(
    None,
    "of x = log p - log p_ref: x (useless as a loss), x^2/2, exp(-x)-1+x;"
    " null: k1 in the reward, k3 in the loss",
  )
  kl_target: float | None = _setting(
    None, "adapt kl_coef to this KL of a response; null: fixed", _POSITIVE
  )
  kl_horizon: int = _setting(
    10_000, "rollouts in which kl_coef changes by a fifth at most", _POSITIVE
  )
  entropy_coef: float = _setting(
    0.0, "weight of the entropy bonus", _NOT_NEGATIVE
  )
  advantages: Literal["gae", "grpo", "dr_grpo", "rloo"] = _setting(
    "gae",
    "gae: from a critic; others: compare a question's rollouts, no critic",
  )
  aggregation: Literal["sequence_mean", "token_mean", "constant"] = _setting(
    "sequence_mean",
    "of the loss: mean of rows' means; mean of tokens; sum over all slots",
  )
  filter_zero_variance_groups: bool = _setting(
    False, "leave out questions whose rollouts all have the same reward"
  )
  clip: float = _setting(0.2, "clip range of the ratio", _POSITIVE)
  clip_high: float | None = _setting(
    None, "clip range above 1; null: the same as clip", _POSITIVE
  )
  value_clip: float = _setting(0.2, "clip range of the values", _POSITIVE)
  vf_coef: float = _setting(5.0, "weight of the value loss", _NOT_NEGATIVE)
  value_warmup_steps: int = _setting(
    0, "first steps, in which only the critic learns", _NOT_NEGATIVE
  )
  whiten: bool = _setting(True, "whiten the advantages of a step (gae)")
  partial_reward: float = _setting(
    0.1, "reward of a wrong answer; a right one earns 1, none 0", _SHARE
  )
  choice_reward: Literal["letter", "value"] = _setting(
    "letter",
    "multiple choice; value: a letter counts only if the reasoning reaches it",
  )
  unreached_limit: float = _setting(
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

  isolation: Literal["strict", "monty", "unsafe"] = _setting(
    "strict",
    "strict: monty, then CPython under seccomp; monty: the first alone;"
    " unsafe: CPython too where it cannot be confined",
  )
  workers: int | None = _setting(
    None,
    "programs run at once; null: one per CPU core, at most 32",
    _POSITIVE,
    may_change=True,
  )
  cpu_seconds: float = _setting(
    1.0, "CPU time of a program (released code: 10 s of wall time)", _POSITIVE
  )
  memory_mb: int = _setting(64, "memory of a program, in MB", _POSITIVE)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How models are compared."""

  batch_size: int = _setting(64, "problems answered at once", _POSITIVE)
  dev_limit: int | None = _setting(
    None, "dev problems in an evaluation during training", _POSITIVE
  )
  majority_samples: int = _setting(
    16, "samples of the vote at the end of a stage; 0: no vote", _NOT_NEGATIVE
  )
  temperature: float = _setting(1.0, "sampling temperature", _POSITIVE)
  top_k: int = _setting(0, _TOP_K, _NOT_NEGATIVE)
  split: Literal["test", "dev", "train"] = _setting(
    "test", "problems that reft_jax.evaluate uses", may_change=True
  )
  samples: int = _setting(
    100,
    "samples per problem in reft_jax.evaluate; 0: none",
    _NOT_NEGATIVE,
    may_change=True,
  )
  at: tuple[int, ...] | None = _setting(
    None,
    "numbers of samples in a vote; null: 1, 10, ... up to all",
    _POSITIVE,
    may_change=True,
  )
  reward_model: str | None = _setting(
    None,
    "reward model for reranking: a folder, or owner/name on the hub",
    may_change=True,
  )
  resamples: int = _setting(
    1000, "bootstrap resamples of an interval", _POSITIVE, may_change=True
  )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """What is logged."""

  every: int | None = _setting(
    None,
    "steps between rows of metrics; null: about 50 rows a stage",
    _POSITIVE,
    may_change=True,
  )
  sample_every: int = _setting(
    10,
    "steps between printed samples; 0: never",
    _NOT_NEGATIVE,
    may_change=True,
  )
  tensorboard: bool = _setting(
    True, "also write TensorBoard files", may_change=True
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is saved for resuming."""

  every: int = _setting(
    50, "steps between checkpoints", _POSITIVE, may_change=True
  )
  keep: int = _setting(2, "newest checkpoints kept", _POSITIVE, may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that defines a run."""

  name: str = _setting("embedded", "name of the run")
  seed: int = _setting(0, "seed of every random choice", _SEED)
  output: str | None = _setting(
    None, "run folder; null: runs/NAME-seedSEED", may_change=True
  )
  resume: Literal["auto", "never"] = _setting(
    "auto",
    "auto: resume from the last checkpoint in the run folder",
    may_change=True,
  )
  distributed: str = _setting(
    "auto",
    "processes of one run: auto joins those it detects; off; HOST:PORT",
    may_change=True,
  )
  xla_flags: Literal["none", "fast"] = _setting(
    "none",
    "fast: compiler flags for GPUs and TPUs that overlap collectives",
    may_change=True,
  )
  stages: tuple[Stage, ...] = _setting(
    ("base", "warmup", "sft", "reft"),
    "stages to run, in this order",
    may_change=True,
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
