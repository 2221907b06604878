"""From questions to answers: batches, samples and their order."""

import dataclasses

import jax
import pytest
import tiny

from reft_jax.run import context
from reft_jax.sampling import rollouts
from reft_jax.tasks import embedded

QUESTIONS, RESPONSE_SLOTS = 7, 8


@pytest.fixture(scope="module")
def run() -> context.Run:
  """Seven questions and a model that says something else to each."""
  return tiny.run(
    embedded.problems(QUESTIONS, seed=0),
    f"data.max_response_tokens={RESPONSE_SLOTS}",
  )


@pytest.fixture(scope="module")
def policy(run):
  return jax.jit(run.engine.networks.init)(jax.random.key(0))


def answerer(run, *, rows, samples=1, temperature=0.0):
  """One that answers at most so many rows at once; as a function."""
  evaluation = dataclasses.replace(run.config.evaluation, batch_size=rows)
  config = dataclasses.replace(run.config, evaluation=evaluation)
  engine = dataclasses.replace(run.engine, config=config)
  answer = rollouts.BatchSampler(
    engine, samples=samples, temperature=temperature
  )

  def call(policy, examples):
    with jax.set_mesh(engine.mesh):
      return answer(policy, examples, run.key("here"))

  return call


def test_every_question_is_answered_once_and_in_order(run, policy):
  answer = answerer(run, rows=5)  # Two devices share four of them.
  groups = answer(policy, run.test)
  assert [[each.example for each in group] for group in groups] == [
    [example] for example in run.test
  ]
  assert len({group[0].completion for group in groups}) > 1
  assert groups == answer(policy, run.test[:4]) + answer(policy, run.test[4:])
  assert groups[::-1] == answer(policy, run.test[::-1])
  assert answer(policy, []) == []


def test_samples_do_not_depend_on_how_many_fit_a_batch(run, policy):
  # A question's two samples side by side, or one after the other.
  together = answerer(run, rows=4, samples=2, temperature=1.0)
  groups = together(policy, run.test)
  assert [[each.example for each in group] for group in groups] == [
    [example] * 2 for example in run.test
  ]
  assert all(a.completion != b.completion for a, b in groups)
  assert groups[:3] == together(policy, run.test[:3])
  apart = answerer(run, rows=3, samples=2, temperature=1.0)
  assert groups == apart(policy, run.test)
