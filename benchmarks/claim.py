"""The claim of the default run, on several seeds, beside a control arm.

    python benchmarks/claim.py --seeds 1 2 3

Each seed is a whole default run: another corpus, base model, training set,
test set and random draws. The control arm differs in one thing: its annotator
writes one equation for each event, so that there is no terse habit for the
reward to break. Prints JSON, and a table for people on standard error.
"""

import json
import pathlib
import statistics
import sys

import harness

ARMS = {"terse": [], "control": ["embedded.merge=0", "name=control"]}
STAGES = ("base", "warmup", "sft", "reft")


def main() -> None:
  options = harness.options(__doc__, "runs/claim")
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
    "machine": harness.machine(),
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
  summary = harness.train(output, f"seed={seed}", *ARMS[arm], *overrides)
  return {
    "arm": arm,
    "seed": seed,
    "stages": summary["stages"],
    "equations_a_solution": {
      stage: equations(harness.samples(output, f"test-{stage}"))
      for stage in STAGES
    },
  }


def equations(rows: list[dict]) -> float:
  """Mean number of equations in a solution."""
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
