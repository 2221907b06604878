"""The experiment that trains a real model on a real data set."""

import json
import pathlib

import jax
import numpy as np
import pytest

from reft_jax import export, train
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import networks
from reft_jax.models.hf import read as reader
from reft_jax.runtime import metrics
from reft_jax.tasks import prompts
from reft_jax.tasks.problem import Problem

# Two runs of three stages each: most of the time is compilation.
pytestmark = pytest.mark.slow

STAGES = ["warmup", "sft", "reft"]
# The experiment as it is, cut short.
SHORT = (
  "mesh.data=8",
  "mesh.fsdp=1",
  "data.train_limit=64",
  "data.test_limit=16",
  "data.dev_size=16",
  "data.max_response_tokens=192",
  "warmup.epochs=1",
  "sft.epochs=1",
  "reft.steps=2",
  "reft.batch_size=16",
  "evaluation.batch_size=16",
  "evaluation.majority_samples=1",
  "logging.every=1",
  "logging.tensorboard=false",
)


def run(shared, folder, name, data, *settings) -> pathlib.Path:
  """Runs an experiment, cut short, to its end; the run's folder."""
  directory = folder / "run"
  arguments = [
    f"--config={name}",
    f"model.path={shared / 'models/stories260K'}",
    f"data.train={shared / 'data' / data}",
    f"data.test={shared / 'data/svamp_test_set.json'}",
    f"output={directory}",
    *SHORT,
    *settings,
  ]
  assert train.main(arguments) == 0
  return directory


@pytest.fixture(scope="module")
def finished(shared, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("svamp")
  return run(shared, folder, "svamp_stories260k", "svamp_nl.json")


@pytest.fixture(scope="module")
def programs(shared, tmp_path_factory) -> pathlib.Path:
  """The experiment with programs."""
  return run(
    shared,
    tmp_path_factory.mktemp("svamp_python"),
    "svamp_python_stories260k",
    "svamp_python_sdp.json",
    "data.train_limit=32",
    "data.dev_size=8",
    "evaluation.majority_samples=0",
  )


def test_summary_and_metrics(finished):
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["name"] == "svamp_stories260k"
  assert list(summary["stages"]) == STAGES
  for result in summary["stages"].values():
    for name in ("test_accuracy", "majority_accuracy", "dev_accuracy"):
      assert 0 <= result[name] <= 1
  rows = metrics.read(finished)
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[-1] < losses[0]
  steps = [row for row in rows if row["stage"] == "reft" and "kl" in row]
  assert [row["step"] for row in steps] == [1, 2]
  assert steps[0]["kl"] == 0
  assert steps[0]["sampler_gap"] < 1e-4


def test_programs_are_written_and_run(programs):
  summary = json.loads((programs / "summary.json").read_text())
  assert list(summary["stages"]) == STAGES
  rows = metrics.read(programs)
  steps = [row for row in rows if row["stage"] == "reft" and "kl" in row]
  assert [row["step"] for row in steps] == [1, 2]
  for row in steps:
    verdicts = [row[f"verdict/{each}"] for each in ("correct", "wrong", "none")]
    assert sum(verdicts) == pytest.approx(1)
    # Two steps of training do not make programs that run.
    assert row["program/returned"] + row["program/failed"] > 0.5
  # All annotated programs run and return the reference answer.
  assert not (programs / "reference_failures.jsonl").exists()


def test_samples_are_text(finished):
  summary = json.loads((finished / "summary.json").read_text())
  for stage in STAGES:
    file = finished / "samples" / f"test-{stage}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == summary["problems"]["test"]["used"]
    assert all(row["uid"].startswith("svamp_") for row in rows)
    text = " ".join(row["completion"] for row in rows)
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert len(text.split()) > 100


def test_the_trained_model_opens_in_transformers(finished):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = finished / "models/reft"
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  ids = tokenizer_lib.load(folder).encode("Lily had 3 apples.")
  with torch.no_grad():
    want_SV = model(torch.tensor([ids])).logits[0].numpy()
  config, policy = reader.load(folder)
  network = networks.Networks(config)
  hidden_1SD = jax.jit(network.hidden)(
    policy["trunk"], np.array([ids]), np.array([len(ids)])
  )
  got_SV = network.logits(policy, hidden_1SD[0])
  np.testing.assert_allclose(got_SV, want_SV, atol=1e-4)


def test_an_exported_model_completes_as_the_run_did(finished, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = tmp_path / "exported"
  assert export.main([str(finished / "models/reft"), str(folder)]) == 0
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  file = finished / "samples/test-reft.jsonl"
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  ours = tokenizer_lib.load(folder)
  for row in rows[:3]:
    problem = Problem("svamp_0", "svamp", row["question"], None, "0")
    # The experiment's prompts start with the token that this tokenizer adds.
    prompt = tokenizer(prompts.prompt(problem, "nl"), return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
      out = model.generate(**prompt, max_new_tokens=60, do_sample=False)
    text = ours.decode(out[0, prompt["input_ids"].shape[1] :].tolist())
    assert row["completion"].startswith(text)
    assert len(text) > 60
