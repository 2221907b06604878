"""Whole runs of the stages that learn from their own samples."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from reft_jax import train
from reft_jax.config import loading
from reft_jax.models.hf import read as reader
from reft_jax.models.hf import write as writer
from reft_jax.run import loop as loop_lib
from reft_jax.run import setup
from reft_jax.runtime import metrics
from reft_jax.sampling import store

pytestmark = pytest.mark.slow

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
  "collect.per_question=6",
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
  "evaluation.batch_size=64",
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


def collected(directory, split) -> list[dict]:
  path = directory / f"samples/collected-{split}.jsonl"
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
    assert (finished / f"samples/test-{name}.jsonl").is_file()


def test_samples_are_shared_and_come_from_the_warmed_up_model(finished):
  assert [len(row["completions"]) for row in collected(finished, "train")] == (
    [6] * 24
  )
  assert len(collected(finished, "dev")) == 8
  # The tiny warm-up writes answers, the base model hardly any.
  answered = [
    "the answer is" in text
    for row in collected(finished, "train")
    for text in row["completions"]
  ]
  assert np.mean(answered) > 0.5


def test_online_self_training_logs_both_halves(finished):
  rows = steps(finished, "online_st")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  for row in rows:
    right = row["verdict/correct"] > 0
    halves = [row["loss/correct"] if right else 0.0, row["loss/gold"]]
    assert row["loss"] == pytest.approx(np.mean(halves), rel=1e-4)
    assert row["reward/mean"] >= row["verdict/correct"]


def test_the_reward_model_learns_and_is_read_back(finished):
  rows = steps(finished, "reward_model")
  assert rows[-1]["loss"] < rows[0]["loss"]
  shape, scorer = reader.load_classifier(finished / "models/reward_model")
  assert scorer["score_DC"].shape == (shape.width, 2)


class BrokenError(Exception):
  pass


@pytest.mark.parametrize(
  ("stage", "at"), [("online_st", 4), ("reward_model", 5)]
)
def test_a_killed_stage_resumes_bitwise(
  warmed, finished, monkeypatch, stage, at
):
  directory = warmed.parent / f"broken-{stage}"
  end_step = loop_lib.Loop.end_step

  def strike(self, step, *rest):
    if self._name == stage and step + 1 == at:
      self._latest.wait()
      raise BrokenError
    end_step(self, step, *rest)

  monkeypatch.setattr(loop_lib.Loop, "end_step", strike)
  with pytest.raises(BrokenError):
    train.main(arguments(warmed, directory))
  monkeypatch.undo()
  assert train.main(arguments(warmed, directory)) == 0
  assert metrics.read(directory) == metrics.read(finished)
  assert traces(directory) == traces(finished)


def test_killed_collecting_resumes_bitwise(warmed, finished, monkeypatch):
  directory = warmed.parent / "broken-collecting"
  line, written = store._line, []

  def strike(group, *rest):
    if len(written) == 7:
      raise BrokenError
    written.append(group)
    return line(group, *rest)

  monkeypatch.setattr(store, "_line", strike)
  with pytest.raises(BrokenError):
    train.main(arguments(warmed, directory))
  monkeypatch.undo()
  before = collected(directory, "train")
  assert 0 < len(before) < 24
  assert train.main(arguments(warmed, directory)) == 0
  assert collected(directory, "train")[: len(before)] == before
  assert traces(directory) == traces(finished)


def traces(directory) -> dict[str, bytes]:
  """What equal runs share."""
  names = [
    *(f"models/{stage}/model.safetensors" for stage in STAGES),
    *(f"samples/collected-{split}.jsonl" for split in ("train", "dev")),
    "samples/online_st.jsonl",
  ]
  return {name: (directory / name).read_bytes() for name in names}


def write_model(folder, *settings) -> pathlib.Path:
  """An untrained model, with the tokenizer that belongs to its settings."""
  tokenizer, network = setup.open_model(
    loading.load(["embedded"], [*TINY[1:], *settings])
  )
  policy = jax.jit(network.init)(jax.random.key(0))
  writer.save(folder, network.config, jax.device_get(policy))
  tokenizer.save(folder)
  return folder


@pytest.mark.parametrize(
  ("made", "message"),
  [
    ("reward_model", "holds a reward model; give a language model"),
    ("base.width=16", "width 16, not 32"),
    ("embedded.choices=0.5", "another tokenizer"),
  ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_warm_up_of_another_kind_is_refused(
  warmed, finished, tmp_path, capsys, made, message, flags
):
  if made == "reward_model":
    other = finished / "models/reward_model"
  else:
    other = write_model(tmp_path / "other", made)
  code = train.main(
    [
      *TINY,
      *flags,
      "stages=[reft]",
      f"model.path={warmed / 'models/base'}",
      f"model.warmup={other}",
      f"output={tmp_path / 'run'}",
    ]
  )
  assert code == 2
  (error,) = capsys.readouterr().err.splitlines()
  assert f"model.warmup={other}" in error
  assert message in error
  assert not (tmp_path / "run").exists()


def test_samples_of_another_model_are_not_used(warmed, finished, capsys):
  directory = warmed.parent / "moved"
  shutil.copytree(finished, directory)
  for stage in STAGES:
    shutil.rmtree(directory / "stages" / stage)
  code = train.main(
    [
      argument
      for argument in arguments(warmed, directory, "offline_st.start=base")
      if not argument.startswith(("model.warmup=", "stages="))
    ]
    + ["stages=[offline_st]", "resume=auto"]
  )
  assert code == 2
  assert "other settings" in capsys.readouterr().err


def test_switches_of_the_stages_that_sample(warmed):
  """Sweeps; no annotations; groups without a critic."""
  directory = warmed.parent / "switches"
  code = train.main(
    [
      *TINY,
      "stages=[online_st,reft]",
      f"model.path={warmed / 'models/base'}",
      f"model.warmup={warmed / 'models/warmup'}",
      f"output={directory}",
      "online_st.steps=2",
      "online_st.gold_share=0",
      "online_st.samples_per_question=2",
      "online_st.minibatch_size=8",
      "online_st.learning_rates=[1e-3,2e-3]",
      "reft.steps=2",
      "reft.batch_size=32",
      "reft.minibatch_size=16",
      "reft.samples_per_question=4",
      "reft.advantages=rloo",
      "reft.aggregation=token_mean",
      "reft.kl_in=loss",
      "reft.kl_target=1",
      "reft.kl_horizon=128",
      "reft.entropy_coef=0.01",
      "reft.clip_high=0.3",
      "reft.filter_zero_variance_groups=true",
      "reft.learning_rates=[1e-3,2e-3]",
    ]
  )
  assert code == 0
  low, high = (
    steps(directory, f"online_st-lr{rate}") for rate in ("0.001", "0.002")
  )
  # At both rates the warm-up samples first, with the same keys.
  assert low[0]["verdict/correct"] == high[0]["verdict/correct"]
  assert "loss/correct" in low[0]
  assert "loss/gold" not in low[0]
  for rate in ("0.001", "0.002"):
    first, second = steps(directory, f"reft-lr{rate}")
    assert first["kl"] == 0
    assert first["kl_coef"] == pytest.approx(0.05)
    assert second["kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 32 / 128))
    assert "value/loss" not in first
    assert 0 <= first["reward/groups_with_signal"] <= 1


def test_programs_by_the_official_rules(tmp_path):
  """Of a model that was never trained: all of its programs fail."""
  programs = (
    "embedded.programs=0.5",
    "data.max_prompt_tokens=80",
    "data.max_response_tokens=60",
  )
  model = write_model(tmp_path / "model", *programs)
  directory = tmp_path / "programs"
  code = train.main(
    [
      *TINY,
      *programs,
      "data.reasoning=python",
      "data.answers=official",
      f"stages=[{','.join(STAGES)}]",
      f"model.path={model}",
      "offline_st.choose=official",
      "reward_model.start=base",
      "embedded.questions=16",
      "embedded.test=4",
      "data.dev_size=4",
      "collect.per_question=2",
      "offline_st.epochs=1",
      "online_st.steps=1",
      "reward_model.epochs=1",
      f"output={directory}",
    ]
  )
  assert code == 0
  assert list(summary(directory)) == list(STAGES)
  (row,) = steps(directory, "online_st")
  assert row["program/failed"] + row["program/returned"] > 0
  assert row["verdict/correct"] == 0
  # Without a right one the annotations keep their half.
  assert row["loss"] == pytest.approx(row["loss/gold"] / 2, rel=1e-4)
