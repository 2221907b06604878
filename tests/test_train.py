"""Whole runs: what they leave behind, and that they resume bitwise."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from reft_jax import rate, train
from reft_jax.config import checks, loading
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import metrics

TINY = [
  "data.dev_size=8",
  "embedded.questions=24",
  "embedded.test=16",
  "embedded.documents=64",
  "base.width=16",
  "base.ffn=24",
  "base.steps=4",
  "base.batch_size=16",
  "warmup.epochs=1",
  "warmup.batch_size=8",
  "sft.epochs=2",
  "sft.batch_size=8",
  "sft.learning_rates=[1e-3,1e-2]",
  "reft.steps=6",
  "reft.batch_size=16",
  "reft.minibatch_size=8",
  "reft.evaluate_every=3",
  "reft.optimizer.learning_rate=1e-3",
  "evaluation.batch_size=16",
  "evaluation.majority_samples=2",
  "logging.every=1",
  "logging.sample_every=3",
  "logging.tensorboard=false",
  "checkpoint.every=1",
]


@pytest.fixture(scope="module")
def compilations() -> Iterator[dict[str, list[int]]]:
  """By stage, how much had been compiled when each step of it was done."""
  compiled, counts = [0], {}

  def count(event, duration, **_):
    compiled[0] += event == "/jax/core/compile/backend_compile_duration"

  original = loop_lib.Loop.end_step

  def end_step(self, step, *args, **kwargs):
    original(self, step, *args, **kwargs)
    counts.setdefault(self._name, []).append(compiled[0])

  jax.monitoring.register_event_duration_secs_listener(count)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop_lib.Loop, "end_step", end_step)
    yield counts


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compilations) -> pathlib.Path:
  """A finished run of all stages on eight devices."""
  folder = tmp_path_factory.mktemp("runs")
  directory = folder / "whole"
  code = train.main(
    [*TINY, f"output={directory}", f"base.cache={folder / 'cache'}"]
  )
  assert code == 0
  return directory


def test_a_run_leaves_what_it_promises(finished):
  for name in (
    "config.yaml",
    "manifest.json",
    "environment.json",
    "metrics.jsonl",
    "learning_curves.png",
    "samples/reft.jsonl",
    "samples/test-reft.jsonl",
    "models/reft/model.safetensors",
    "models/reft/tokenizer.json",
    "stages/reft/checkpoints",
  ):
    assert (finished / name).exists(), name
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["seed"] == 0
  assert list(summary["stages"]) == ["base", "warmup", "sft", "reft"]
  for stage in summary["stages"].values():
    assert 0 <= stage["test_accuracy"] <= 1
    assert 0 <= stage["majority_accuracy"] <= 1
    assert stage["seconds"] > 0
  assert len(
    (finished / "samples/test-sft.jsonl").read_text().splitlines()
  ) == (16)


def test_metrics_of_every_step_are_there(finished):
  rows = metrics.read(finished)
  steps = [r["step"] for r in rows if r["stage"] == "reft" and "kl" in r]
  assert steps == [1, 2, 3, 4, 5, 6]
  first = next(r for r in rows if r["stage"] == "reft" and "kl" in r)
  assert first["kl"] == 0
  assert first["verdict/correct"] + first["verdict/wrong"] + first[
    "verdict/none"
  ] == pytest.approx(1)
  evaluated = [
    r["step"] for r in rows if r["stage"] == "reft" and "dev/accuracy" in r
  ]
  assert evaluated == [0, 3, 6]
  swept = {r["stage"] for r in rows if r["stage"].startswith("sft")}
  assert swept == {"sft-lr0.001", "sft-lr0.01"}


def test_a_finished_run_is_not_run_again(finished, capsys):
  cache = finished.parent / "cache"
  before = (finished / "metrics.jsonl").read_bytes()
  assert train.main([*TINY, f"output={finished}", f"base.cache={cache}"]) == 0
  assert "finished before" in capsys.readouterr().out
  assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_another_run_takes_the_base_model_from_the_cache(finished, tmp_path):
  cache = finished.parent / "cache"
  code = train.main(
    [
      *TINY,
      f"output={tmp_path / 'run'}",
      f"base.cache={cache}",
      "stages=[base]",
      "embedded.merge=0",
    ]
  )
  assert code == 0
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["stages"]["base"]["cached"]
  ours, theirs = (
    (folder / "models/base/model.safetensors").read_bytes()
    for folder in (finished, tmp_path / "run")
  )
  assert ours == theirs


@pytest.fixture(scope="module")
def others(finished) -> tuple[pathlib.Path, list[str]]:
  """A run of the stages that `finished` lacks, and its arguments."""
  directory = finished.parent / "others"
  arguments = [
    "--config=embedded",
    *TINY,
    f"output={directory}",
    f"model.path={finished / 'models' / 'base'}",
    f"model.warmup={finished / 'models' / 'warmup'}",
    "stages=[offline_st,online_st,reward_model]",
    "collect.per_question=4",
    "offline_st.epochs=2",
    "offline_st.batch_size=8",
    "online_st.steps=6",
    "online_st.batch_size=16",
    "reward_model.epochs=1",
    "reward_model.batch_size=8",
  ]
  assert train.main(arguments) == 0
  return directory, arguments


@pytest.mark.slow
def test_finished_stages_are_not_run_again(others, capsys):
  directory, arguments = others
  before = (directory / "metrics.jsonl").read_bytes()
  # What only reft_jax.evaluate reads may change.
  assert train.main([*arguments, "evaluation.samples=7"]) == 0
  said = capsys.readouterr().out
  for stage in ("offline_st", "online_st", "reward_model"):
    assert f"{stage}: finished before" in said
  assert "it prefers among 4 samples" in said
  assert (directory / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_solutions_of_a_run_can_be_rated(finished, tmp_path):
  sources = [f"{finished}:sft", f"{finished}:reft"]
  options = ["--questions=3", f"--output={tmp_path}"]
  assert rate.main(["draw", *sources, *options]) == 0
  assert (tmp_path / "rating.html").is_file()


@pytest.mark.slow
def test_no_step_compiles_after_the_first(finished, others, compilations):
  long = {name: seen for name, seen in compilations.items() if len(seen) > 4}
  names = {"sft-lr0.001", "sft-lr0.01", "online_st", "reft", "reward_model"}
  assert names <= long.keys()
  for name, at_step in long.items():
    # The first step compiles; the second may, for what a first result is put
    # into (a state that came out of an update, metrics that are added up).
    assert at_step[0] > 0, "the listener heard nothing"
    assert len(set(at_step[1:])) == 1, (name, at_step)


def settings(finished, output) -> list[str]:
  return [
    "--config",
    "embedded",
    *TINY,
    f"output={output}",
    f"model.path={finished / 'models' / 'warmup'}",
    "stages=[reft]",
    # Neither falls on the other, so that a save finds half a row of metrics.
    "logging.every=4",
    "checkpoint.every=3",
  ]


# The same command, but a signal strikes when a step is done: after the save
# before it is on disk, before the step itself is logged or saved.
STRUCK = """
import os, signal, sys
from reft_jax import train
from reft_jax.run import loop

how, at = signal.Signals[sys.argv[1]], int(sys.argv[2])
end_step = loop.Loop.end_step

def strike(self, step, *rest):
  if step + 1 == at:
    self._latest.wait()
    os.kill(os.getpid(), how)
  end_step(self, step, *rest)

loop.Loop.end_step = strike
sys.exit(train.main(sys.argv[3:]))
"""


def run(root, *arguments) -> subprocess.CompletedProcess:
  """python ARGUMENTS in the repository, with the tests' compile cache."""
  environment = {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.run(
    [sys.executable, *arguments],
    check=False,
    cwd=root,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=300,
  )


def train_in(root, arguments) -> str:
  """The output of a run that comes to its end."""
  process = run(root, "-m", "reft_jax.train", *arguments)
  assert process.returncode == 0, process.stdout
  return process.stdout


def traces(directory) -> dict:
  """What two equal runs share: numbers, parameters, completions."""
  last = (directory / "stages/reft/checkpoints/6/state").resolve()
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(last)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {
    "metrics": metrics.read(directory),
    # Parameters and optimizer after the last step, not only the best policy.
    "state": {
      jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
      for path, leaf in leaves
    },
    "model": (directory / "models/reft/model.safetensors").read_bytes(),
    "samples": (directory / "samples/reft.jsonl").read_text(),
    "test": (directory / "samples/test-reft.jsonl").read_text(),
  }


@pytest.fixture(scope="module")
def unbroken(finished, root) -> tuple[pathlib.Path, str]:
  directory = finished.parent / "unbroken"
  return directory, train_in(root, settings(finished, directory))


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_is_bitwise_the_unbroken_one(
  finished, unbroken, root
):
  directory = finished.parent / "broken"
  arguments = settings(finished, directory)
  killed = run(root, "-c", STRUCK, "SIGKILL", "4", *arguments)
  assert killed.returncode == -signal.SIGKILL, killed.stdout
  stopped = run(root, "-c", STRUCK, "SIGTERM", "5", *arguments)
  assert stopped.returncode == 75, stopped.stdout
  assert "resumes after step 3\n" in stopped.stdout
  assert not (directory / "summary.json").exists()
  assert "resumes after step 5\n" in train_in(root, arguments)
  expected, found = traces(unbroken[0]), traces(directory)
  assert len(expected["state"]) > 20
  for name, value in expected.items():
    assert found[name] == value, name


@pytest.mark.slow
def test_piped_output_has_no_control_characters(unbroken):
  _, output = unbroken
  assert "reft 6/6" in output
  assert "\x1b" not in output
  assert "\r" not in output


def test_the_resolved_config_runs_again(finished):
  resolved = loading.load([str(finished / "config.yaml")])
  checks.validate(resolved)
  assert resolved.reft.steps == 6
