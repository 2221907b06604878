"""Whole runs in which the policy writes programs, some of them hostile."""

import itertools
import json
import time

import pytest

from reft_jax import train
from reft_jax.runtime import metrics
from reft_jax.tasks import programs

pytestmark = pytest.mark.slow

TINY = (
  "--config=smoke",
  "data.reasoning=python",
  "data.max_prompt_tokens=88",
  "data.max_response_tokens=40",
  "embedded.programs=1",
  "embedded.questions=24",
  "embedded.test=16",
  "embedded.documents=640",
  "data.dev_size=8",
  "base.width=16",
  "base.layers=1",
  "base.ffn=24",
  "base.steps=10",
  "warmup.epochs=1",
  "stages=[base,warmup,reft]",
  "reft.steps=3",
  "reft.batch_size=16",
  "reft.minibatch_size=16",
  "evaluation.batch_size=16",
  "evaluation.majority_samples=0",
  "programs.cpu_seconds=0.2",
  "programs.workers=2",
  "logging.every=1",
  "logging.tensorboard=false",
)
# What a policy may come upon: each ends an unguarded trainer, or stops it.
HOSTILE = (
  "    while True: pass",
  "    import os\n    os.kill(os.getppid(), 9)",
  "    raise SystemExit",
  "    return 9 ** 9 ** 9",
  "    import fractions, os\n    os._exit(0)",
  "    import fractions, os\n    while True: os.fork()",
  "    return 'x' * 10 ** 12",
  "    def f(): return f()\n    return f()",
)


def run(directory, *settings):
  arguments = (*TINY, f"output={directory}", f"base.cache={directory}-base")
  begin = time.monotonic()
  assert train.main([*arguments, *settings]) == 0
  return metrics.read(directory), time.monotonic() - begin


def rows(directory, name):
  text = (directory / "samples" / f"{name}.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  directory = tmp_path_factory.mktemp("plain") / "run"
  return directory, *run(directory)


def test_verdicts_and_ends_of_programs_are_metrics(plain):
  directory, logged, _ = plain
  steps = [row for row in logged if "kl" in row]
  assert len(steps) == 3
  for row in steps:
    verdicts = [row[f"verdict/{name}"] for name in ("correct", "wrong", "none")]
    assert sum(verdicts) == pytest.approx(1)
    ends = ("returned", "failed", "timed_out", "unsupported")
    assert sum(row[f"program/{end}"] for end in ends) == pytest.approx(1)
  summary = json.loads((directory / "summary.json").read_text())
  for result in summary["stages"].values():
    assert sum(
      result["shares"][f"verdict/{name}"]
      for name in ("correct", "wrong", "none")
    ) == pytest.approx(1)


def test_samples_say_how_their_programs_ended(plain):
  directory, *_ = plain
  for row in rows(directory, "test-reft"):
    assert row["program"] in ("returned", "failed", "timed out", "unsupported")
    assert row["tier"] in ("monty", "cpython")
    assert (row["verdict"] == "none") or row["program"] == "returned"


def test_hostile_programs_neither_end_nor_slow_a_run(
  plain, tmp_path, monkeypatch
):
  """Every other program that the policy writes in ReFT is hostile."""
  honest, written, attacks = programs.source, itertools.count(), []

  def source(completion, problem, *, mode):
    number = next(written)
    if number % 2 or number < 100:  # The known answers come first.
      return honest(completion, problem, mode=mode)
    attack = HOSTILE[number // 2 % len(HOSTILE)]
    attacks.append(attack)
    # Each is another program: none is known already.
    return f"def solution():\n{attack}\n# {number}"

  monkeypatch.setattr(programs, "source", source)
  logged, seconds = run(tmp_path / "run")
  assert len(attacks) > 20
  assert set(attacks) == set(HOSTILE)
  steps = [row for row in logged if "kl" in row]
  assert [row["step"] for row in steps] == [1, 2, 3]
  assert all(row["program/failed"] > 0 for row in steps)
  # An attack costs its CPU time, of which two workers share the sum.
  assert seconds < plain[2] + len(attacks) * 0.6 + 20
  for row in rows(tmp_path / "run", "reft"):
    assert (row["verdict"] == "none") or row["program"] == "returned"
