"""What reft_jax.evaluate is asked for, and where it leaves its answers."""

import dataclasses
import itertools
import pathlib

from reft_jax import errors
from reft_jax.config import schema

FILE = "evaluation.json"


def settings_of(config: schema.Config, model: str | None) -> schema.Config:
  """A run's settings as those of a model's evaluation: nothing is trained.

  `model` is the model's folder; None, that it has the base model's shape.
  """
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, path=model, warmup=None),
    stages=("reft",) if model else ("base",),
  )


def numbers(settings: schema.EvaluationConfig) -> tuple[int, ...]:
  """Of how many samples the votes are: as asked for, or 1, 10, ... and all."""
  if settings.at is not None:
    return settings.at
  powers = itertools.takewhile(
    lambda power: power < settings.samples,
    (10**exponent for exponent in itertools.count()),
  )
  return (*powers, settings.samples) if settings.samples else ()


def check(settings: schema.EvaluationConfig) -> None:
  """Checks that there are samples enough to choose among.

  Raises:
    UserError: there are not.
  """
  for k in numbers(settings):
    if k > settings.samples:
      raise errors.UserError(
        f"evaluation.at: {k} is more than evaluation.samples="
        f"{settings.samples}; ask for fewer, or draw more."
      )
  if settings.reward_model and not settings.samples:
    raise errors.UserError(
      f"evaluation.reward_model={settings.reward_model} has nothing to choose"
      " from: evaluation.samples=0; draw some, or set it to null."
    )


def known(settings: schema.EvaluationConfig) -> set[str]:
  """The names of the accuracies that an evaluation works out."""
  names = {"greedy"}
  if settings.samples:
    names |= {"sampled", "upper_bound"}
  for k in numbers(settings):
    names |= {f"majority@{k}", f"pass@{k}"}
    if settings.reward_model:
      names.add(f"rerank@{k}")
  return names


def folder(run: pathlib.Path | None, name: str, split: str) -> pathlib.Path:
  """Where a model's answers are kept, unless `output` says otherwise.

  Args:
    run: the folder of the run that the model lies in, if it lies in one.
    name: the model's, that of its stage in a run.
    split: whose problems it answers.
  """
  return (run or pathlib.Path()) / "evaluations" / f"{name}-{split}"
