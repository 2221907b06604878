"""Loops: updates that are not finite, and sweeps over learning rates."""

import dataclasses

import jax.numpy as jnp
import pytest
import tiny

from reft_jax import types
from reft_jax.config import loading, schema
from reft_jax.learning import learner as learner_lib
from reft_jax.run import context
from reft_jax.run import loop as loop_lib


@pytest.fixture
def run(tmp_path):
  return tiny.run([], "logging.every=1", directory=tmp_path)


def stage(**fields) -> context.StageRun:
  defaults = {
    "config": schema.ReftConfig(),
    "start_policy": None,
    "evaluate_fn": None,
  }
  return context.StageRun(name="reft", **{**defaults, **fields})


def make_learner(run) -> learner_lib.Learner:
  learner = learner_lib.Learner(
    *run.learner_arguments(),
    optimizer=schema.OptimizerConfig(),
    updates=1,
    name="reft",
  )
  learner.start({}, {"policy": {"w_DF": jnp.ones((2, 4))}})
  return learner


def steps_until_diverged(run, finite: list[bool]) -> int | None:
  """The steps after which a training diverged; None: it did not."""
  learner = make_learner(run)
  with loop_lib.Loop(run, stage(), learner, steps=len(finite)) as loop:
    for step in loop:
      well = finite[step]
      state = learner.state
      learner.state = state.replace(step=state.step + well)
      metrics = {"skipped_updates": types.Mean.of(float(not well))}
      try:
        loop.end_step(step, metrics)
      except loop_lib.DivergedError:
        return step + 1
  return None


@pytest.mark.parametrize(
  ("finite", "end"),
  [
    ([False] * 3, 3),  # No update was finite.
    ([True, False, False], None),
    ([True] + [False] * 25, 21),
    ([False] * 19 + [True] + [False] * 19, None),
  ],
)
def test_a_training_whose_updates_are_not_finite_ends(run, finite, end):
  assert steps_until_diverged(run, finite) == end


def test_a_loop_yields_the_steps_that_are_left(run):
  run = dataclasses.replace(
    run, config=loading.load(["embedded"], ["checkpoint.every=2"])
  )
  for expected in ([0, 1, 2], [2, 3, 4], [4, 5], []):
    learner = make_learner(run)
    found = []
    with loop_lib.Loop(run, stage(), learner, steps=6) as loop:
      for step in loop:
        found.append(step)
        assert learner.state.step == step
        if len(found) == 3:  # Killed in its third step.
          break
        state = learner.state
        learner.state = state.replace(step=state.step + 1)
        loop.end_step(step, {})
    assert found == expected


def test_a_learning_rate_that_diverges_is_left_out():
  class Lines(list):
    line = list.append

  run = tiny.run([], console=(lines := Lines()))
  swept = stage(config=schema.ReftConfig(learning_rates=(1.0, 2.0, 3.0)))

  def train_at(_, part):
    rate = part.config.optimizer.learning_rate
    if rate not in converging:
      raise loop_lib.DivergedError(f"{part.label} diverged.")
    return context.Trained(None, rate / 10, 1, 5.0, rate)

  converging = {1.0, 2.0}
  best = loop_lib.sweep(run, swept, train_at)
  assert (best.learning_rate, best.seconds) == (2.0, 10.0)
  assert lines == ["reft-lr3 diverged. This learning rate is left out."]
  converging = set()
  with pytest.raises(loop_lib.DivergedError):
    loop_lib.sweep(run, swept, train_at)
