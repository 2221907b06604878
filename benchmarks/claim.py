"""The claim of the default run, on several seeds, beside a control arm.

    python benchmarks/claim.py --seeds 1 2 3

Each seed is a whole default run: another corpus, base model, training set,
test set and random draws. The control arm differs in one thing: its annotator
writes one equation for each event, so that there is no terse habit for the
reward to break. Prints JSON, and a table for people on standard error.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import jax

ARMS = {"terse": [], "control": ["embedded.merge=0", "name=control"]}
STAGES = ("base", "warmup", "sft", "reft")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
  parser.add_argument("--output", type=pathlib.Path, default="runs/claim")
  parser.add_argument(
    "overrides", nargs="*", help="settings for every run, as key=value"
  )
  options = parser.parse_intermixed_args()
  runs = [
    run(arm, seed, options.output, options.overrides)
    for seed in options.seeds
    for arm in ARMS
  ]
  mean = {arm: means(arm, runs) for arm in ARMS}
  gains = {
    arm: [round(gain(one), 3) for one in runs if one["arm"] == arm]
    for arm in ARMS
  }
  result = {
    "benchmark": "claim",
    "machine": {
      "platform": platform.platform(),
      "cpus": os.cpu_count(),
      "python": platform.python_version(),
      "jax": jax.__version__,
      "devices": [str(device) for device in jax.devices()],
    },
    "overrides": options.overrides,
    "runs": runs,
    "mean": mean,
    "gain_over_sft": gains,
    "claim_holds": mean["terse"]["reft"] >= 0.85 and min(gains["terse"]) >= 0.3,
  }
  print(json.dumps(result, indent=2))
  print(table(runs), file=sys.stderr)


def run(arm: str, seed: int, folder: pathlib.Path, overrides) -> dict:
  """One run of the default command; one that is finished is not repeated."""
  output = folder / f"{arm}-seed{seed}"
  command = [sys.executable, "-m", "reft_jax.train", f"seed={seed}"]
  command += [f"output={output}", *ARMS[arm], *overrides]
  subprocess.run(command, check=True, stdout=sys.stderr)
  summary = json.loads((output / "summary.json").read_text())
  return {
    "arm": arm,
    "seed": seed,
    "stages": summary["stages"],
    "equations_a_solution": {
      stage: equations(output / "samples" / f"test-{stage}.jsonl")
      for stage in STAGES
    },
  }


def equations(file: pathlib.Path) -> float:
  """Mean number of equations in a greedy solution of a test problem."""
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  return statistics.mean(row["completion"].count("=") for row in rows)


def gain(one: dict) -> float:
  """How far ReFT is above the better of warm-up and SFT, in test accuracy."""
  accuracy = {k: v["test_accuracy"] for k, v in one["stages"].items()}
  return accuracy["reft"] - max(accuracy["warmup"], accuracy["sft"])


def means(arm: str, runs: list[dict]) -> dict[str, float]:
  """Mean greedy test accuracy of each stage over the seeds."""
  return {
    stage: statistics.mean(
      one["stages"][stage]["test_accuracy"] for one in runs if one["arm"] == arm
    )
    for stage in STAGES
  }


def table(runs: list[dict]) -> str:
  """Markdown: test accuracy, and equations in a solution, of each run."""
  lines = [
    "| annotations | seed | "
    + " | ".join(STAGES)
    + " | equations, sft -> reft |",
    "|---|---|" + "---|" * (len(STAGES) + 1),
  ]
  for one in runs:
    cells = [f"{one['stages'][s]['test_accuracy']:.3f}" for s in STAGES]
    found = one["equations_a_solution"]
    cells.append(f"{found['sft']:.1f} -> {found['reft']:.1f}")
    lines.append(
      f"| {one['arm']} | {one['seed']} | " + " | ".join(cells) + " |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  main()
