"""Whole runs of the stages that learn from draws, and of what they leave."""

import json
import pathlib

import numpy as np
import pytest

from reft_jax import batching, metrics, train
from reft_jax.methods import collecting, loop
from reft_jax.models import pretrained

STAGES = ("offline_st", "online_st", "reward_model")
TINY = (
  "--config=embedded",
  "embedded.questions=24",
  "embedded.test=8",
  "embedded.documents=2000",
  "data.dev_size=8",
  "base.width=32",
  "base.ffn=48",
  "base.steps=150",
  "base.batch_size=32",
  "warmup.epochs=10",
  "warmup.batch_size=8",
  "warmup.optimizer.learning_rate=5e-3",
  "draws.samples=6",
  "offline_st.epochs=2",
  "offline_st.batch_size=16",
  "offline_st.optimizer.learning_rate=1e-3",
  "online_st.steps=4",
  "online_st.batch_size=16",
  "online_st.evaluate_every=2",
  "online_st.optimizer.learning_rate=1e-3",
  "reward_model.epochs=2",
  "reward_model.batch_size=16",
  "reward_model.micro_batch_size=8",
  "reward_model.optimizer.learning_rate=1e-3",
  "evaluation.majority_samples=0",
  "evaluation.batch_size=32",
  "logging.every=1",
  "logging.tensorboard=false",
  "checkpoint.every=3",
)


@pytest.fixture(scope="module")
def warmed(tmp_path_factory) -> pathlib.Path:
  """A run that leaves a base and a warmed-up model."""
  folder = tmp_path_factory.mktemp("runs")
  directory = folder / "warmed"
  assert (
    train.main(
      [
        *TINY,
        "stages=[base,warmup]",
        f"output={directory}",
        f"base.cache={folder / 'cache'}",
      ]
    )
    == 0
  )
  return directory


def arguments(warmed, directory, *more) -> list[str]:
  """A run of all three stages from those models."""
  return [
    *TINY,
    f"stages=[{','.join(STAGES)}]",
    f"model.path={warmed / 'models/base'}",
    f"model.warmup={warmed / 'models/warmup'}",
    f"output={directory}",
    *more,
  ]


@pytest.fixture(scope="module")
def finished(warmed) -> pathlib.Path:
  directory = warmed.parent / "finished"
  assert train.main(arguments(warmed, directory)) == 0
  return directory


def summary(directory):
  return json.loads((directory / "summary.json").read_text())["stages"]


def steps(directory, stage) -> list[dict]:
  rows = [row for row in metrics.read(directory) if row["stage"] == stage]
  return [row for row in rows if "learning_rate" in row]


def draws(directory, split) -> list[dict]:
  path = directory / f"samples/draws-{split}.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_stage_starts_where_its_config_says(finished):
  stages = summary(finished)
  assert list(stages) == list(STAGES)
  assert [stages[name]["start"] for name in STAGES] == [
    "base",
    "warmup",
    "warmup",
  ]
  assert stages["reward_model"]["test_accuracy"] is None
  assert 0 <= stages["reward_model"]["dev_accuracy"] <= 1
  for name in STAGES[:2]:
    assert 0 <= stages[name]["test_accuracy"] <= 1


def test_draws_are_shared_and_come_from_the_warmed_up_model(finished):
  assert [len(row["completions"]) for row in draws(finished, "train")] == (
    [6] * 24
  )
  assert len(draws(finished, "dev")) == 8
  # The tiny warm-up writes answers, the base model hardly any.
  answered = [
    "the answer is" in text
    for row in draws(finished, "train")
    for text in row["completions"]
  ]
  assert np.mean(answered) > 0.5


def test_online_self_training_tells_both_halves(finished):
  rows = steps(finished, "online_st")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  for row in rows:
    right = row["verdict/correct"] > 0
    halves = [row["loss/correct"] if right else 0.0, row["loss/gold"]]
    assert row["loss"] == pytest.approx(np.mean(halves), rel=1e-4)
    assert row["reward/mean"] >= row["verdict/correct"]


def test_the_reward_model_learns_and_opens(finished):
  rows = steps(finished, "reward_model")
  assert rows[-1]["loss"] < rows[0]["loss"]
  shape, scorer = pretrained.load_classifier(finished / "models/reward_model")
  assert scorer["score_DC"].shape == (shape.width, 2)


class BrokenError(Exception):
  pass


@pytest.mark.parametrize(
  ("stage", "at"), [("online_st", 4), ("reward_model", 5)]
)
def test_a_broken_stage_goes_on_as_if_it_were_not(
  warmed, finished, monkeypatch, stage, at
):
  directory = warmed.parent / f"broken-{stage}"
  end_step = loop.Loop.end_step

  def strike(self, step, *rest):
    if self._name == stage and step == at:
      self._latest.wait()
      raise BrokenError
    end_step(self, step, *rest)

  monkeypatch.setattr(loop.Loop, "end_step", strike)
  with pytest.raises(BrokenError):
    train.main(arguments(warmed, directory))
  monkeypatch.undo()
  assert train.main(arguments(warmed, directory)) == 0
  assert metrics.read(directory) == metrics.read(finished)
  assert traces(directory) == traces(finished)


def test_broken_draws_go_on_where_they_stopped(warmed, finished, monkeypatch):
  directory = warmed.parent / "broken-draws"
  line, drawn = collecting._line, []

  def strike(group):
    if len(drawn) == 7:
      raise BrokenError
    drawn.append(group)
    return line(group)

  monkeypatch.setattr(collecting, "_line", strike)
  with pytest.raises(BrokenError):
    train.main(arguments(warmed, directory))
  monkeypatch.undo()
  before = draws(directory, "train")
  assert 0 < len(before) < 24
  assert train.main(arguments(warmed, directory)) == 0
  assert draws(directory, "train")[: len(before)] == before
  assert traces(directory) == traces(finished)


def traces(directory) -> dict[str, bytes]:
  """What equal runs share."""
  names = [
    *(f"models/{stage}/model.safetensors" for stage in STAGES),
    *(f"samples/draws-{split}.jsonl" for split in ("train", "dev")),
    "samples/online_st.jsonl",
  ]
  return {name: (directory / name).read_bytes() for name in names}


def test_a_warm_up_of_another_shape_is_refused(warmed, finished, capsys):
  code = train.main(
    [
      *TINY,
      "stages=[reft]",
      f"model.path={warmed / 'models/base'}",
      f"model.warmup={finished / 'models/reward_model'}",
      f"output={warmed.parent / 'other'}",
    ]
  )
  assert code == 2
  assert "error: " in capsys.readouterr().err
  assert not (warmed.parent / "other").exists()


def test_rows_of_a_classifier_are_cut_and_filled():
  batch = batching.labelled(
    [[5, 6, 7, 8], [9]], [1, 0], batch=3, slots=3, pad_id=2
  )
  assert batch.tokens_BS.tolist() == [[5, 6, 7], [9, 2, 2], [2, 2, 2]]
  assert batch.lengths_B.tolist() == [3, 1, 1]
  assert batch.labels_B.tolist() == [1, 0, 0]
  assert batch.real_B.tolist() == [True, True, False]
