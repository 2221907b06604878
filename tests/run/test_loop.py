"""What a loop does with updates that were not finite."""

import dataclasses

import jax.numpy as jnp
import optax
import pytest
import tiny

from reft_jax import types
from reft_jax.learning import steps
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import metrics
from reft_jax.tasks import embedded


@pytest.fixture
def run(tmp_path):
  return dataclasses.replace(
    tiny.run(embedded.problems(1, seed=0), "logging.every=1"),
    directory=tmp_path,
    recorder=metrics.Silent(),
    console=console_lib.Console(quiet=True),
  )


def go_through(run, finite: list[bool]) -> int:
  """Ends so many steps; returns how many, or how many until it diverged."""
  params = {"policy": {"w_DF": jnp.ones((2, 3))}}
  state = steps.init_state(params, optax.sgd(1.0))
  with loop_lib.Loop(run, "reft", steps=len(finite)) as running:
    state, _ = running.restore(state)
    for step, well in enumerate(finite, start=1):
      state = state.replace(step=state.step + well)
      told = {"skipped_updates": types.Mean.of(float(not well))}
      try:
        running.end_step(step, state, told)
      except loop_lib.DivergedError:
        return step
  return len(finite) + 1


@pytest.mark.parametrize(
  ("finite", "end"),
  [
    ([False] * 3, 3),  # Nothing was learnt.
    ([True, False, False], 4),
    ([True] + [False] * 25, 21),
    ([False] * 19 + [True] + [False] * 19, 40),
  ],
)
def test_a_stage_whose_updates_are_not_finite_ends(run, finite, end):
  assert go_through(run, finite) == end
