"""What an evaluation is asked for, by hand."""

import pathlib

import pytest

from reft_jax.config import checks, loading, schema
from reft_jax.evaluation import settings as settings_lib


def asked(**settings) -> schema.EvaluationConfig:
  return schema.EvaluationConfig(**settings)


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
  assert settings_lib.numbers(asked(**settings)) == numbers


def test_what_is_known():
  assert settings_lib.known(asked(samples=0)) == {"greedy"}
  assert settings_lib.known(asked(samples=2, at=(2,), reward_model="rm")) == {
    *("greedy", "sampled", "upper_bound"),
    *("majority@2", "pass@2", "rerank@2"),
  }
  assert "rerank@2" not in settings_lib.known(asked(samples=2, at=(2,)))


def test_nothing_is_trained():
  run = loading.load(["smoke"], ["model.warmup=there"])
  trained = settings_lib.settings_of(run, "here")
  assert (trained.model.path, trained.model.warmup) == ("here", None)
  assert trained.stages == ("reft",)
  checks.validate(trained)
  checks.validate(settings_lib.settings_of(run, None))


def test_folders():
  for run in (pathlib.Path("runs/a"), pathlib.Path()):
    place = run / "evaluations/sft-test"
    assert settings_lib.folder(run, "sft", "test") == place
  assert settings_lib.folder(None, "sft", "test") == place
