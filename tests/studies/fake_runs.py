"""Run folders with made-up numbers, and ledgers that enter them."""

import json
import math
import pathlib
from collections.abc import Iterable

from reft_jax.config import loading
from reft_jax.runtime import metrics
from reft_jax.studies import jobs as jobs_lib
from reft_jax.studies import results


def make(
  output: pathlib.Path, seed: int, *, test=0.5, curve=(0.1, 0.2), steps=None
) -> pathlib.Path:
  """A finished run in a suite's folder; its SFT swept two learning rates.

  Its dev accuracies are `curve`, at every second step, or `steps`, by step.
  """
  run = output / "runs" / f"main-seed{seed}"
  (run / "samples").mkdir(parents=True)
  (run / "config.yaml").write_text(
    loading.to_yaml(loading.load(["smoke"], ["sft.batch_size=16"]))
  )
  environment = {"cpus": 2, "devices": ["cpu:0"], "python": "3.12.1"}
  environment["packages"] = {"jax": "0.11"}
  (run / "environment.json").write_text(json.dumps(environment))
  stage = {
    "test_accuracy": test,
    "majority_accuracy": None,
    "dev_accuracy": 0.25,
    "best_step": 4,
    "learning_rate": 1e-3,
    "seconds": 12.0,
    "shares": {"verdict/none": 0.125},
  }
  (run / "summary.json").write_text(json.dumps({"stages": {"sft": stage}}))
  answers = [{"completion": "1 + 1 = 2, 2 + 3 = 5"}, {"completion": "no"}]
  (run / "samples" / "test-sft.jsonl").write_text(
    "".join(json.dumps(answer) + "\n" for answer in answers)
  )
  recorder = metrics.Recorder(run, tensorboard=False)
  steps = steps or {2 * step: value for step, value in enumerate(curve, 1)}
  for step, value in steps.items():
    row = {"dev/accuracy": value, "kl": step / 2}
    recorder.log(step, row, stage="sft-lr0.001")
    recorder.log(step, {"dev/accuracy": 0.9, "kl": 9}, stage="sft-lr0.01")
  recorder.log(2, {"dev/accuracy": math.nan}, stage="sft-lr0.001")
  recorder.close()
  file = results.evaluation_file(run, "sft")
  file.parent.mkdir(parents=True)
  figure = {"value": 0.75, "low": 0.7, "high": 0.8}
  file.write_text(json.dumps({"accuracy": {"majority@4": figure}}))
  return run


def enter(output: pathlib.Path, jobs: Iterable[jobs_lib.Job]) -> None:
  """Enters jobs into a suite's ledger as finished."""
  ledger = jobs_lib.Ledger(output)
  for job in jobs:
    ledger.started(job, 1)
    ledger.ended(job, 0, 1.0)
