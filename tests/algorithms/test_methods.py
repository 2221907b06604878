"""Whole runs with settings that other runs leave at their defaults."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from reft_jax import train
from reft_jax.algorithms import pretrain
from reft_jax.config import cli
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import networks
from reft_jax.models.hf import read as reader
from reft_jax.models.hf import write as writer
from reft_jax.runtime import metrics
from reft_jax.tasks import embedded, problem
from reft_jax.tasks.answers import grade as grade_lib

pytestmark = pytest.mark.slow

TINY = (
  "--config=embedded",
  "embedded.questions=24",
  "embedded.test=16",
  "base.width=16",
  "base.layers=1",
  "base.ffn=24",
  "reft.batch_size=16",
  "reft.evaluate_every=1",
  "reft.optimizer.learning_rate=1e-2",
  "evaluation.batch_size=8",
  "logging.every=1",
  "logging.sample_every=1",
  "logging.tensorboard=false",
  "checkpoint.every=100",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """A folder for runs, with an untrained model in it."""
  folder = tmp_path_factory.mktemp("runs")
  tokenizer = tokenizer_lib.wrap(embedded.tokenizer())
  shape = pretrain.architecture(cli.parse(TINY).config, tokenizer.vocab_size)
  policy = jax.jit(networks.Networks(shape).init)(jax.random.key(0))
  writer.save(folder / "model", shape, jax.device_get(policy))
  tokenizer.save(folder / "model")
  return folder


def finish(directory, model, *settings) -> pathlib.Path:
  """Runs to the end from a model; the run's folder."""
  arguments = [*TINY, f"output={directory}", f"model.path={model}", *settings]
  assert train.main(arguments) == 0
  return directory


@pytest.fixture(scope="module")
def without_dev(folder) -> pathlib.Path:
  return finish(
    folder / "without-dev",
    folder / "model",
    "stages=[warmup,reft]",
    "data.dev_size=0",
    "sft.learning_rates=null",  # A sweep would need a dev set.
    "data.answers=official",
    "model.value=separate",
    "model.remat=block",
    "warmup.epochs=40",
    "warmup.batch_size=16",
    "warmup.micro_batch_size=8",
    "warmup.optimizer.learning_rate=1e-2",
    "reft.steps=2",
    "reft.samples_per_question=2",
    "reft.minibatch_size=16",
    "reft.micro_batch_size=8",
    "evaluation.majority_samples=0",
  )


@pytest.fixture(scope="module")
def without_test(folder, without_dev) -> pathlib.Path:
  rows = [
    {
      "item_id": f"gsm8k_{number}",
      "question": each.question,
      "answer_value": f"{each.answer}.0",
    }
    for number, each in enumerate(embedded.problems(24, seed=0))
  ]
  (folder / "train.json").write_text(json.dumps(rows))
  return finish(
    folder / "without-test",
    without_dev / "models/warmup",
    "stages=[reft]",
    f"data.train={folder / 'train.json'}",
    "data.dev_size=8",
    "model.compute_dtype=bfloat16",
    "reft.steps=2",
    "reft.minibatch_size=8",
    "evaluation.majority_samples=2",
  )


def read(directory, stage):
  """A stage's result, and the rows of its steps and of its evaluations."""
  summary = json.loads((directory / "summary.json").read_text())
  rows = [row for row in metrics.read(directory) if row["stage"] == stage]
  steps = [row for row in rows if "learning_rate" in row]
  evaluated = {
    row["step"]: row["dev/accuracy"] for row in rows if "dev/accuracy" in row
  }
  return summary["stages"][stage], steps, evaluated


def samples(directory, name):
  lines = (directory / "samples" / f"{name}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def drift(one: pathlib.Path, other: pathlib.Path) -> float:
  """How far the parameters of two models are apart at most."""
  shape, policy = reader.load(one)
  other_shape, other_policy = reader.load(other)
  assert shape == other_shape
  gaps = jax.tree.map(lambda a, b: abs(a - b).max(), policy, other_policy)
  return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize(("stage", "last"), [("warmup", 80), ("reft", 2)])
def test_without_a_dev_set_the_last_policy_is_kept(without_dev, stage, last):
  result, steps, evaluated = read(without_dev, stage)
  assert result["best_step"] == last
  assert result["dev_accuracy"] is None
  assert result["majority_accuracy"] is None
  assert 0 <= result["test_accuracy"] <= 1
  assert [row["step"] for row in steps] == list(range(1, last + 1))
  assert evaluated == {}
  assert len(samples(without_dev, f"test-{stage}")) == 16
  assert not (without_dev / f"samples/test-{stage}-sampled.jsonl").exists()


def test_each_stage_starts_from_the_one_before(folder, without_dev):
  _, steps, _ = read(without_dev, "warmup")
  assert steps[-1]["loss"] < steps[0]["loss"] / 2
  model, kept = folder / "model", without_dev / "models"
  assert drift(model, kept / "warmup") > drift(kept / "warmup", kept / "reft")
  assert drift(kept / "warmup", kept / "reft") > 1e-3


def test_a_separate_critic_learns_in_micro_batches(without_dev):
  _, (first, second), _ = read(without_dev, "reft")
  # Some answers, so something to learn from.
  assert first["reward/mean"] > 0
  assert first["kl"] == 0
  assert second["kl"] != 0
  assert first["ratio/first_deviation"] == 0
  for row in (first, second):
    assert row["old_logprob_gap"] < 1e-5
    assert row["sampler_gap"] < 1e-5
    assert row["skipped_updates"] == 0
  # A critic starts at 0 everywhere.
  assert first["value/mean"] == 0
  assert second["value/mean"] != 0


def test_a_question_is_sampled_twice_in_a_step(without_dev):
  rows = [row for row in samples(without_dev, "reft") if row["step"] == 1]
  assert len(rows) == 16
  pairs = list(zip(rows[::2], rows[1::2], strict=True))
  assert all(a["uid"] == b["uid"] for a, b in pairs)
  assert len({a["uid"] for a, _ in pairs}) == 8
  assert any(a["completion"] != b["completion"] for a, b in pairs)


def test_samples_are_graded_by_the_official_rules(without_dev):
  for row in samples(without_dev, "reft") + samples(without_dev, "test-reft"):
    made = problem.Problem(
      row["uid"], "embedded", row["question"], None, row["answer"]
    )
    grade = grade_lib.grade(row["completion"], made, mode="official")
    assert (row["verdict"], row["value"]) == (grade.verdict.value, grade.value)


def test_without_test_problems_nothing_is_tested(without_test):
  result, _, _ = read(without_test, "reft")
  assert result["test_accuracy"] is None
  assert result["majority_accuracy"] is None
  assert not list((without_test / "samples").glob("test-*"))
  assert (without_test / "learning_curves.png").exists()


def test_the_first_of_the_best_policies_is_kept(without_dev, without_test):
  result, steps, evaluated = read(without_test, "reft")
  assert [row["step"] for row in steps] == [1, 2]
  assert list(evaluated) == [0, 1, 2]
  assert result["dev_accuracy"] == max(evaluated.values())
  assert result["best_step"] == max(evaluated, key=evaluated.__getitem__)
  models = without_dev / "models/warmup", without_test / "models/reft"
  assert (drift(*models) == 0) == (result["best_step"] == 0)


def test_bfloat16_computes_and_float32_learns(without_test):
  _, (first, second), _ = read(without_test, "reft")
  assert first["kl"] == 0
  assert second["kl"] != 0
  assert first["ratio/first_deviation"] == 0
  assert 0 < first["sampler_gap"] < 0.1  # Two ways to round.
  assert 0 < second["grad_norm"] < math.inf
  assert second["skipped_updates"] == 0
  _, policy = reader.load(without_test / "models/reft")
  assert {leaf.dtype for leaf in jax.tree.leaves(policy)} == {
    np.dtype(np.float32)
  }


def test_rows_without_a_chain_of_thought_can_be_answered(without_test):
  assert {row["uid"][:6] for row in samples(without_test, "reft")} == {"gsm8k_"}
