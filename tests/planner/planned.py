"""Tiny subjects of plans, and their programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tiny

from reft_jax.config import loading
from reft_jax.planner import measuring, programs, subject
from reft_jax.planner import shapes as shapes_lib


def tiny_subject(*settings: str) -> subject.Subject:
  """A run of few short rows, whose model has one layer."""
  eight = (
    *("data.max_prompt_tokens", "data.max_response_tokens", "sft.batch_size"),
    *("reft.batch_size", "reft.minibatch_size", "evaluation.batch_size"),
  )
  options = ["stages=[base,sft,reft]", "model.logit_chunk=16"]
  options += [f"{key}=8" for key in eight]
  config = loading.load(["smoke"], [*options, *settings])
  shape = dataclasses.replace(tiny.CONFIG, layers=1)
  return subject.Subject(config, shape, "tiny", 100)


def recorded(
  stage: Callable[..., Any], some: subject.Subject, mesh: Any
) -> tuple[dict[str, programs.Program], Any]:
  """A stage's programs by their names, and what the stage returns."""
  made = {}

  def record(program: programs.Program) -> Any:
    made[program.name] = program
    return measuring.count(program)[1]

  returned = stage(shapes_lib.Shapes(some, mesh), record)
  return made, returned
