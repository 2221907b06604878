"""The table of docs/plan.md, from what `python -m reft_jax.plan --json` said.

    python benchmarks/plan_table.py [--again NAME...]

Reads benchmarks/results/plan/*.json, in their order: plans as they were
printed, and the `command` that printed each. With --again, those whose files'
names start with a NAME are made anew first.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from reft_jax.runtime import console as console_lib

PLANS = pathlib.Path(__file__).parent / "results" / "plan"
PHASES = ("supervised", "sample", "score", "update", "evaluate")
STEP = ("sample", "score", "update")
_COLUMNS = (
  *("", "devices", "model", *PHASES, "usable", "fits"),
  *("GB sent", "step", "epoch", "sample, score, update: bound by"),
)
_GIB = 2**30


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--again", nargs="+", default=(), metavar="NAME")
  for name in parser.parse_args().again:
    for path in sorted(PLANS.glob(f"{name}*.json")):
      make(path)
  print("\n".join(table()))


def make(path: pathlib.Path) -> None:
  """Runs a plan's command again."""
  command = json.loads(path.read_text())["command"]
  program = [sys.executable, *shlex.split(command)[1:]]
  done = subprocess.run(program, stdout=subprocess.PIPE, check=True)
  plan = {"command": command, **json.loads(done.stdout)}
  path.write_text(json.dumps(plan, indent=1) + "\n")


def table() -> Iterator[str]:
  """Its lines."""
  yield f"| {' | '.join(_COLUMNS)} |"
  yield "|---" * len(_COLUMNS) + "|"
  for number, path in enumerate(sorted(PLANS.glob("*.json")), 1):
    file = json.loads(path.read_text())
    (plan,) = file["plans"]
    yield f"| {number} | {' | '.join(_row(file, plan))} |"


def _row(file: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
  memory, times = plan["memory"], plan["time"]
  yield plan["target"].removesuffix(" x1")
  lora = "lora.rank=" in file["command"]
  yield file["model"] + ", LoRA" * lora
  for phase in PHASES:
    yield _size(plan, phase)
  yield f"{memory['usable'] / _GIB:.1f}"
  yield "yes" if memory["fits"] else "no"
  step = [times["phases"][phase] for phase in STEP]
  yield console_lib.number(sum(row["near"] + row["far"] for row in step) / 1e9)
  yield console_lib.duration(times["reft"]["step"])
  yield console_lib.duration(times["reft"]["epoch"])
  yield ", ".join(row["bound"] for row in step)


def _size(plan: Mapping[str, Any], phase: str) -> str:
  """GiB of a device; of what the compiler refused, at least so many."""
  row = plan["memory"]["phases"].get(phase)
  if row is None:
    return "-"
  size = f"{row['total'] / _GIB:.1f}"
  refused = any(
    program["phase"] == phase and not program["fits_alone"]
    for program in plan["programs"]
  )
  if refused or not plan["compiled"]:
    size = f"≥ {size}"
  return size if row["fits"] else f"**{size}**"


if __name__ == "__main__":
  main()
