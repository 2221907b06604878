"""Programs a second: the executor beside a pool of forks.

    python benchmarks/executor.py --programs svamp_python_sdp.json

The released code makes a pebble.ProcessPool of 8 forks of the trainer for every
batch of rollouts and gives each program 10 s of wall time (`pip install
pebble`). What a fork costs depends on the memory of the process that forks, so
this one holds as much as a small trainer (--trainer-mb). The same pool kept
from batch to batch is measured too. Every program is another one, so that no
cache helps. Prints JSON, and a table for people on standard error. It takes
some ten minutes, which the pools spend waiting for endless loops;
--pool-seconds makes them wait less.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata

import harness
import pebble
import sympy

from reft_jax.tasks.sandbox import executor

Answers = list[float | None]

POOL_WORKERS = 8
RELEASED, KEPT, OURS = SYSTEMS = ("new pool a batch", "kept pool", "executor")
PLAIN, SYMPY = "no imports", "sympy"


@dataclasses.dataclass(frozen=True)
class Work:
  """Programs of a kind, a share of them endless, run a batch at a time."""

  kind: str
  loops: float
  batch: int
  programs: list[str]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--programs",
    type=pathlib.Path,
    help="a released data file with programs in `answer_cot`; by default "
    "programs like SVAMP's are made up",
  )
  parser.add_argument("--count", type=int, default=2048)
  parser.add_argument("--count-with-loops", type=int, default=512)
  parser.add_argument("--count-of-sympy", type=int, default=128)
  parser.add_argument("--no-loops", action="store_true")
  parser.add_argument("--batches", type=int, nargs="+", default=[32, 256])
  parser.add_argument("--cpu-seconds", type=float, default=1.0)
  parser.add_argument("--pool-seconds", type=float, default=10.0)
  parser.add_argument("--trainer-mb", type=int, default=1000)
  options = parser.parse_args()
  memory = b"x" * (options.trainer_mb << 20)
  works = plan(options)
  # The pools come first: they are forks, and the executor has threads.
  rows = [
    measure(system, work, options) for system in SYSTEMS for work in works
  ]
  compare(rows)
  result = {
    "benchmark": "executor",
    "machine": harness.machine()
    | {
      name: metadata.version(name)
      for name in ("pydantic-monty", "sympy", "pebble")
    },
    "settings": {
      "trainer_mb": len(memory) >> 20,
      "programs": options.programs.name if options.programs else "made up",
      "executor_workers": os.cpu_count(),
      "executor_cpu_seconds": options.cpu_seconds,
      "pool_workers": POOL_WORKERS,
      "pool_wall_seconds": options.pool_seconds,
    },
    "rows": rows,
    "targets": targets(rows),
  }
  print(json.dumps(result, indent=2))
  print(table(rows), file=sys.stderr)


def plan(options: argparse.Namespace) -> list[Work]:
  """What every system is to do."""
  file = options.programs
  plain = read(file) if file else made_up(options.count)
  works = []
  for loops in (0.0,) if options.no_loops else (0.0, 0.05):
    count = options.count_with_loops if loops else options.count
    programs = with_loops(plain[:count], loops)
    works += [Work(PLAIN, loops, batch, programs) for batch in options.batches]
  programs = made_up_with_sympy(options.count_of_sympy)
  return [*works, Work(SYMPY, 0.0, options.batches[0], programs)]


def read(file: pathlib.Path) -> list[str]:
  """The distinct programs of a file, up to a blank line as released."""
  rows = json.loads(file.read_text("utf-8"))
  return list(dict.fromkeys(row["answer_cot"].split("\n\n")[0] for row in rows))


def made_up(count: int) -> list[str]:
  """Programs that look like SVAMP's."""
  draw = random.Random(0)
  programs = []
  for number in range(count):
    things = draw.choice(["apples", "books", "coins", "stickers"])
    lines = [
      "def solution():",
      f'    """Story {number} tells of {things}. How many are there now?"""',
      f"    {things}_now = {draw.randint(2, 200)}",
    ]
    for step in range(draw.randint(1, 4)):
      lines += [
        f"    change_{step} = {draw.randint(2, 50)}",
        f"    {things}_now = {things}_now {draw.choice('+-*/')} change_{step}",
      ]
    lines += [f"    result = {things}_now", "    return result"]
    programs.append("\n".join(lines))
  return programs


def made_up_with_sympy(count: int) -> list[str]:
  """Programs that solve a system of equations."""
  draw = random.Random(0)
  programs = []
  for number in range(count):
    a, b, c, d = (draw.randint(2, 99) for _ in range(4))
    programs.append(
      "def solution():\n"
      f'    """System {number}."""\n'
      "    import sympy\n"
      "    x, y = sympy.symbols('x y')\n"
      f"    first = sympy.Eq({a} * x + {b} * y, {c})\n"
      f"    second = sympy.Eq(x - {a + b} * y, {d})\n"
      "    return sympy.solve([first, second], [x, y])[x]"
    )
  return programs


def with_loops(programs: list[str], share: float) -> list[str]:
  """The programs, some of which now never end."""
  every = round(1 / share) if share else len(programs) + 1
  return [
    f"def solution():\n    while {number}:\n        pass"
    if number % every == 0
    else program
    for number, program in enumerate(programs, 1)
  ]


def run_as_released(program: str) -> object:
  """What the released code does in a fork of the trainer."""
  scope = {"math": math, "sympy": sympy}
  module = {}
  exec("import math\nimport sympy\n" + program, scope, module)
  return eval("solution()", scope, module)


def collect(
  pool: pebble.ProcessPool, programs: list[str], seconds: float
) -> Answers:
  """The answers of a pool's workers; None for a program that fails."""
  pending = [
    pool.schedule(run_as_released, args=[program], timeout=seconds)
    for program in programs
  ]
  answers = []
  for future in pending:
    try:
      answers.append(float(future.result()))
    except Exception:
      answers.append(None)
  return answers


@contextlib.contextmanager
def started(
  system: str, options: argparse.Namespace
) -> Iterator[Callable[[list[str]], Answers]]:
  """One of SYSTEMS, ready to run batches."""

  def pool() -> pebble.ProcessPool:
    fork = multiprocessing.get_context("fork")
    return pebble.ProcessPool(POOL_WORKERS, context=fork)

  def run_in_a_new_pool(programs: list[str]) -> Answers:
    with pool() as new:
      return collect(new, programs, options.pool_seconds)

  if system == RELEASED:
    yield run_in_a_new_pool
  elif system == KEPT:
    with pool() as kept:
      yield lambda programs: collect(kept, programs, options.pool_seconds)
  else:
    with executor.Executor(cpu_seconds=options.cpu_seconds) as ours:
      if ours.tiers != ("monty", "cpython"):
        raise SystemExit(" ".join(ours.notes))
      yield lambda programs: [one.number for one in ours.run(programs)]


def measure(system: str, work: Work, options: argparse.Namespace) -> dict:
  """How fast a system is at some work, what that costs, and the answers."""
  start = time.perf_counter()
  with started(system, options) as run:
    run(["def solution():\n    return 1"] * POOL_WORKERS)
    begin, cpu = time.perf_counter(), cpu_seconds()
    answers = []
    for first in range(0, len(work.programs), work.batch):
      answers += run(work.programs[first : first + work.batch])
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
  row = {
    "programs": work.kind,
    "count": len(work.programs),
    "loops": work.loops,
    "batch": work.batch,
    "system": system,
    "start_seconds": round(begin - start, 2),
    "programs_a_second": round(len(answers) / seconds, 1),
    "cpu_ms_a_program": round(1e3 * cpu / len(answers), 3),
  }
  print(json.dumps(row), file=sys.stderr)
  return row | {"answers": answers}


def cpu_seconds() -> float:
  """CPU time so far of this process and of all that came of it (Linux)."""
  usages = [
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
  fields = {}
  for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      # The name before them is in parentheses, and may hold some itself.
      fields[int(file.parent.name)] = (
        file.read_text().rpartition(")")[2].split()
      )
  new = {os.getpid()}
  while new:
    new = {pid for pid, values in fields.items() if int(values[1]) in new}
    ticks = sum(int(one) for pid in new for one in fields[pid][11:15])
    total += ticks / os.sysconf("SC_CLK_TCK")
  return total


def compare(rows: list[dict]) -> None:
  """Puts in each row how it compares with the released code's, no answers."""
  released = {
    key(row): (row["programs_a_second"], row["answers"])
    for row in rows
    if row["system"] == RELEASED
  }
  for row in rows:
    speed, answers = released[key(row)]
    pairs = zip(row.pop("answers"), answers, strict=True)
    row["other_answers"] = sum(not same(*pair) for pair in pairs)
    row["speed_over_released"] = round(row["programs_a_second"] / speed, 2)


def key(row: dict) -> tuple[str, float, int]:
  """The same for all systems' rows of the same work."""
  return row["programs"], row["loops"], row["batch"]


def same(one: float | None, other: float | None) -> bool:
  if one is None or other is None:
    return one is other
  return math.isclose(one, other) or (math.isnan(one) and math.isnan(other))


def targets(rows: list[dict]) -> dict:
  """What the executor is held to on programs without imports or loops."""
  ours = [row for row in rows if row["system"] == OURS]
  real = [row for row in ours if row["programs"] == PLAIN and not row["loops"]]
  speed = min(row["speed_over_released"] for row in real)
  cost = max(row["cpu_ms_a_program"] for row in real)
  others = sum(row["other_answers"] for row in ours)
  return {
    "speed_over_released": speed,
    "cpu_ms_a_program": cost,
    "other_answers": others,
    "met": speed >= 3 and cost <= 1 and others == 0,
  }


def table(rows: list[dict]) -> str:
  """Markdown: a line for each system at each work."""
  lines = [
    "| programs | endless | batch | system | programs/s | x | CPU ms a program "
    "| other answers |",
    "|---|---|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {row['programs']} | {row['loops']:.0%} | {row['batch']} "
    f"| {row['system']} | {row['programs_a_second']:.0f} "
    f"| {row['speed_over_released']:.1f} | {row['cpu_ms_a_program']:.2f} "
    f"| {row['other_answers']} |"
    for row in sorted(rows, key=key)
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
