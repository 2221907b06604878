"""The stages of a run: one table of what is known of each before it runs."""

import dataclasses
from typing import Literal

from reft_jax.config import schema


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage, which trains one model.

  Attributes:
    name: the name in `Config.stages`, and of its group of settings.
    label: the name in pictures.
    colour: that of its lines in pictures.
    about: how its model is trained, for the model's card.
    train: the function that trains it, as `module:function`.
    starts: the model that it starts from: "base", the one that its setting
      `start` names, the one that samples solutions, or none.
    supervised: whether it imitates annotated chains of thought.
    samples: whether it samples while it learns.
    collects: the splits it needs collected samples of.
    classifier: whether its model judges solutions, and writes none.
    keeps: which model of its training is kept: the best on dev, or the last.
  """

  name: schema.Stage
  label: str
  colour: str
  about: str
  train: str
  starts: Literal["base", "setting", "sampling policy"] | None
  supervised: bool = False
  samples: bool = False
  collects: tuple[Literal["train", "dev"], ...] = ()
  classifier: bool = False
  keeps: Literal["best", "last"] = "best"


# In the order in which a run's stages follow each other.
TABLE: dict[str, Stage] = {
  stage.name: stage
  for stage in (
    Stage(
      name="base",
      label="base",
      colour="#9a9a9a",
      about="trained from scratch on a generated corpus",
      train="reft_jax.algorithms.pretrain:train",
      starts=None,
      keeps="last",
    ),
    Stage(
      name="warmup",
      label="warm-up",
      colour="#8c6d46",
      about="supervised fine-tuning on annotated solutions, as a warm-up",
      train="reft_jax.algorithms.sft:train",
      starts="base",
      supervised=True,
      keeps="last",
    ),
    Stage(
      name="sft",
      label="SFT",
      colour="#3b6fb6",
      about="supervised fine-tuning on annotated solutions",
      train="reft_jax.algorithms.sft:train",
      starts="setting",
      supervised=True,
    ),
    Stage(
      name="offline_st",
      label="offline ST",
      colour="#6b9080",
      about="offline self-training: fine-tuning on its own right solutions",
      train="reft_jax.algorithms.offline_st:train",
      starts="setting",
      supervised=True,
      collects=("train",),
    ),
    Stage(
      name="online_st",
      label="online ST",
      colour="#e09f3e",
      about="online self-training: imitation of its own right solutions",
      train="reft_jax.algorithms.online_st:train",
      starts="sampling policy",
      samples=True,
    ),
    Stage(
      name="reft",
      label="ReFT",
      colour="#d1495b",
      about="ReFT: PPO rewarded by whether the final answer is right",
      train="reft_jax.algorithms.reft:train",
      starts="sampling policy",
      samples=True,
    ),
    Stage(
      name="reward_model",
      label="reward model",
      colour="#7d5ba6",
      about="a classifier of solutions by whether their answer is right",
      train="reft_jax.algorithms.reward_model:train",
      starts="setting",
      collects=("train", "dev"),
      classifier=True,
    ),
  )
}


def warmed(config: schema.Config) -> bool:
  """Whether a run has a warmed-up model, its own or one from elsewhere."""
  return "warmup" in config.stages or config.model.warmup is not None


def sampling_policy_stage(config: schema.Config) -> str:
  """The stage whose policy samples solutions: the warm-up if there is one."""
  return "warmup" if warmed(config) else "base"


def starts_from(config: schema.Config, stage: str) -> str | None:
  """The stage whose model a stage starts from; None: from random weights."""
  match TABLE[stage].starts:
    case "setting":
      return getattr(config, stage).start
    case "sampling policy":
      return sampling_policy_stage(config)
    case start:
      return start


def collected_splits(config: schema.Config) -> set[str]:
  """The splits of which a run collects samples of its sampling policy."""
  return {split for stage in config.stages for split in TABLE[stage].collects}
