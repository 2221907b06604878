"""What an evaluation is asked for, by hand."""

import pathlib

import pytest

from reft_jax import config, errors
from reft_jax.studies import evaluations


def asked(**settings) -> config.EvaluationConfig:
  return config.EvaluationConfig(**settings)


@pytest.mark.parametrize(
  ("settings", "numbers"),
  [
    ({"samples": 100}, (1, 10, 100)),
    ({"samples": 25}, (1, 10, 25)),
    ({"samples": 1}, (1,)),
    ({"samples": 0}, ()),
    ({"samples": 25, "at": (4, 2)}, (4, 2)),
  ],
)
def test_numbers_of_samples(settings, numbers):
  assert evaluations.numbers(asked(**settings)) == numbers


def test_what_is_known():
  assert evaluations.known(asked(samples=0)) == {"greedy"}
  assert evaluations.known(asked(samples=2, at=(2,), reward_model="rm")) == {
    *("greedy", "sampled", "upper_bound"),
    *("majority@2", "pass@2", "rerank@2"),
  }
  assert "rerank@2" not in evaluations.known(asked(samples=2, at=(2,)))


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"samples": 4, "at": (1, 5)}, "5 is more than evaluation.samples=4"),
    ({"samples": 0, "reward_model": "rm"}, "rm has nothing to choose from"),
  ],
)
def test_more_than_there_is_cannot_be_chosen_from(settings, words):
  with pytest.raises(errors.UserError, match=words):
    evaluations.check(asked(**settings))


def test_nothing_is_trained():
  run = config.load(["smoke"], ["model.warmup=there"])
  trained = evaluations.settings_of(run, "here")
  assert (trained.model.path, trained.model.warmup) == ("here", None)
  assert trained.stages == ("reft",)
  config.validate(trained)
  config.validate(evaluations.settings_of(run, None))


def test_folders():
  run = pathlib.Path("runs/a")
  place = run / "evaluations/sft-test"
  assert evaluations.folder(run, "sft", "test") == place
  assert evaluations.folder(None, "x", "dev") == pathlib.Path(
    "evaluations/x-dev"
  )
