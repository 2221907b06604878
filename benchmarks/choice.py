"""Multiple choice: what a policy learns when only the letter is paid.

    python benchmarks/choice.py --seeds 1 2 3

The same questions, warmed-up policy and number of rollouts, rewarded in three
ways, as the paper's section on MathQA does:

  letter   the released code: the right letter earns 1, however it was found
  value    the right letter earns 1 only if the reasoning reaches its value
  numeric  the questions without their options, answered by the number

Prints JSON, a table for people on standard error, and draws a picture.
"""

import json
import pathlib
import statistics
import sys

import harness
import matplotlib.figure

from reft_jax.runtime import metrics
from reft_jax.tasks.answers import choices, quantities

ARMS = {
  "letter": ["reft.choice_reward=letter"],
  "value": ["reft.choice_reward=value"],
  "numeric": ["data.task=embedded"],
}
COLORS = {"letter": "#d1495b", "value": "#3b6fb6", "numeric": "#6b9080"}
STAGES = ("warmup", "reft")
UNREACHED = "choice/unreached"
PANELS = (
  ("verdict/correct", "Rollouts with the right answer"),
  (UNREACHED, "Right letters that come from another value"),
  ("reasoned", "Test questions reasoned to the right value"),
)


def main() -> None:
  options = harness.options(__doc__, "runs/choice")
  runs = [
    run(arm, seed, options.output, options.overrides)
    for seed in options.seeds
    for arm in ARMS
  ]
  picture = options.output / "choice.png"
  draw(runs, options.output, picture)
  result = {
    "benchmark": "choice",
    "machine": harness.machine(),
    "overrides": options.overrides,
    "runs": runs,
    "mean": {arm: means(arm, runs) for arm in ARMS},
  }
  print(json.dumps(result, indent=2))
  print(f"{table(runs)}\n\n{picture}", file=sys.stderr)


def run(arm: str, seed: int, folder: pathlib.Path, overrides) -> dict:
  """One run, and what its test answers are made of."""
  output = folder / f"{arm}-seed{seed}"
  summary = harness.train(
    output,
    "--config=embedded_choice",
    f"seed={seed}",
    f"name=choice-{arm}",
    "stages=[base,warmup,reft]",
    *ARMS[arm],
    *overrides,
  )
  stages = {}
  for stage in STAGES:
    rows = harness.samples(output, f"test-{stage}")
    stages[stage] = {
      "right": statistics.mean(row["verdict"] == "correct" for row in rows),
      "reasoned": statistics.mean(map(reasoned, rows)),
      "unreached": summary["stages"][stage]["shares"].get(UNREACHED),
    }
  return {"arm": arm, "seed": seed, "stages": stages}


def reasoned(row: dict) -> bool:
  """Whether the reasoning came to the right value, whatever was answered."""
  options = choices.options(row["question"])
  if not options:  # The answer is the number.
    return row["verdict"] == "correct"
  right = options[row["answer"]].value
  return row["reached"] is not None and quantities.close(row["reached"], right)


def means(arm: str, runs: list[dict]) -> dict[str, dict[str, list | None]]:
  """Mean and deviation over the seeds, stage by stage."""
  some = [one["stages"] for one in runs if one["arm"] == arm]
  return {
    stage: {
      name: spread([each[stage][name] for each in some])
      for name in some[0][stage]
    }
    for stage in STAGES
  }


def spread(numbers: list[float | None]) -> list[float] | None:
  """[mean, standard deviation], None where there is nothing to measure."""
  if None in numbers:
    return None
  deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
  return [round(statistics.mean(numbers), 4), round(deviation, 4)]


def table(runs: list[dict]) -> str:
  """Markdown: a row a run, then the means."""
  heads = (
    "reward",
    "seed",
    "warm-up right",
    "right",
    "reasoned",
    "unreached",
  )
  lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]

  def line(arm, seed, warmup, reft):
    cells = (warmup["right"], *(reft[n] for n in ("right", "reasoned")))
    text = [show(cell) for cell in (*cells, reft["unreached"])]
    lines.append("| " + " | ".join([arm, seed, *text]) + " |")

  for one in sorted(runs, key=lambda one: list(ARMS).index(one["arm"])):
    line(one["arm"], str(one["seed"]), *one["stages"].values())
  for arm in ARMS:
    line(f"**{arm}**", "**mean**", *means(arm, runs).values())
  return "\n".join(lines)


def show(cell: float | list[float] | None) -> str:
  if cell is None:
    return "-"
  if isinstance(cell, list):
    return f"{cell[0]:.3f} ± {cell[1]:.3f}"
  return f"{cell:.3f}"


def draw(runs: list[dict], folder: pathlib.Path, path: pathlib.Path) -> None:
  """Curves of the rollouts, a thin line a seed, and what tests say at last."""
  figure = matplotlib.figure.Figure(
    figsize=(13, 3.6), dpi=150, layout="constrained"
  )
  for ax, (metric, title) in zip(
    figure.subplots(1, len(PANELS)), PANELS, strict=True
  ):
    for place, arm in enumerate(ARMS):
      some = [one for one in runs if one["arm"] == arm]
      if metric == "reasoned":
        shares = [one["stages"]["reft"]["reasoned"] for one in some]
        ax.bar(place, statistics.mean(shares), color=COLORS[arm], alpha=0.4)
        ax.plot([place] * len(shares), shares, "o", color=COLORS[arm])
        continue
      for number, one in enumerate(some):
        rows = metrics.read(folder / f"{arm}-seed{one['seed']}")
        points = [
          (row["step"], row[metric])
          for row in rows
          if row["stage"] == "reft" and metric in row
        ]
        if points:
          label = arm if number == 0 else None
          ax.plot(*zip(*points, strict=True), color=COLORS[arm], label=label)
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_ylim(0, 1)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if metric == "reasoned":
      ax.set_xticks(range(len(ARMS)), ARMS)
    else:
      ax.set_xlabel("ReFT step")
      ax.legend(frameon=False, fontsize=8)
  figure.savefig(path)


if __name__ == "__main__":
  main()
