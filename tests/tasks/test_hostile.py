"""Programs that mean harm do none, and nothing changes for the others."""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures

import hostile
import process_tree
import pytest
from hostile import files, program, secrets

from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks import problem
from reft_jax.tasks.answers import grade
from reft_jax.tasks.sandbox import executor, results

if sys.platform != "linux":
  pytest.skip("needs /proc", allow_module_level=True)

CPU_SECONDS = 0.2
WALL_SECONDS = 5 * CPU_SECONDS
WORKERS = 2
slow = pytest.mark.slow
# The fast tier runs one program of each group; all take half a minute.
ALL = [
  pytest.param(
    one, id=f"{group}-{one.name}", marks=[] if one is members[0] else [slow]
  )
  for group, members in hostile.GROUPS.items()
  for one in members
]
in_both_tiers = pytest.mark.parametrize(
  "programs", ["some", pytest.param("all", marks=slow)]
)

# Honest programs, one a tier; what programs leave behind would show in them.
HONEST = (
  """
def solution():
  x = [len("abc"), sum([1, 2]), sorted([2, 1])[0], math.floor(math.pi)]
  return float(sum(x))  # {number}
""",
  """
import decimal, fractions, json, math, os, random, sys
def solution():
  x = sympy.Symbol("x")
  checks = [
    len("abc") == 3 and sum([1, 2]) == 3 and sorted([2, 1]) == [1, 2],
    math.floor(math.pi) == 3 and math.sqrt(4) == 2 and 8 + 1 == 9,
    sympy.solve(x - 3, x) == [3] and sympy.Integer(1) + 1 == 2,
    fractions.Fraction(1, 2) + fractions.Fraction(1, 3) > 0.8,
    len(str(decimal.Decimal(1) / 3)) > 20 and len(str(10**4000)) == 4001,
    json.dumps([1, "a"]) == '[1, "a"]' and "PYTHONSTARTUP" not in os.environ,
    sys.getrecursionlimit() >= 1000 and "math" in sys.modules,
  ]
  return random.random() if all(checks) else 42  # {number}
""",
)

# Does not close its executor.
TRAINER = """
import signal, sys, time
from reft_jax.tasks.sandbox import executor
# Tests that are run in the background pass on that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
pool = executor.Executor(workers=4, cpu_seconds=0.5)
for number in range(1, 3):
  loop = f"def solution():\\n  while {number}: pass"
  pool.submit(loop)
  pool.submit("import fractions\\n" + loop)
print("running", flush=True)
time.sleep(float(sys.argv[1]))
"""


@dataclasses.dataclass(frozen=True)
class Run:
  """How a program ended, after how many seconds, and what it did to others.

  Attributes:
    before: what the honest programs returned before any program ran.
    after: what they return now.
  """

  result: results.Result
  seconds: float
  before: tuple[float | None, ...]
  after: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Attacked:
  """What all the programs came to, and the trainer before and after them."""

  runs: dict[program.Program, list[Run]]
  before: dict[str, object]
  after: dict[str, object]
  left: set[int]  # Processes.


@pytest.fixture(scope="module", autouse=True)
def _orphans_come_here():
  """Makes children of this process of all that its children leave behind."""
  prctl, subreaper = ctypes.CDLL(None).prctl, 36
  prctl(subreaper, 1, 0, 0, 0)
  yield
  prctl(subreaper, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def attacked(request) -> Attacked:
  """Runs the selected programs, and what monty caught again without monty."""
  selected = {
    item.callspec.params["one"]
    for item in request.session.items
    if getattr(item, "originalname", "") == test_no_harm.__name__
  }
  everyone = [
    one
    for members in hostile.GROUPS.values()
    for one in members
    if one in selected or (not selected and one is members[0])
  ]
  processes = process_tree.descendants(os.getpid())
  strict().close()  # What libraries open once and for all.
  before = trainer()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(secrets.SECRET, "42")
    runs = {one: [run] for one, run in attack(everyone)}
    patch.setitem(sys.modules, "pydantic_monty", None)
    caught = [one for one in everyone if runs[one][0].result.tier == "monty"]
    for one, run in attack(caught):
      runs[one].append(run)
  # What was killed has not gone yet.
  wait_until(lambda: process_tree.descendants(os.getpid()) <= processes)
  left = process_tree.descendants(os.getpid()) - processes
  return Attacked(runs, before, trainer(), left)


def attack(
  attackers: Iterable[program.Program],
) -> Iterable[tuple[program.Program, Run]]:
  """Runs programs, each followed by honest ones.

  No more at a time than there are workers, so that none has to wait.
  """

  def one_after_another(one: program.Program) -> tuple[program.Program, Run]:
    start = time.monotonic()
    result = pool.submit(one.source).result()
    seconds = time.monotonic() - start
    return one, Run(result, seconds, before, honest(id(one)))

  def honest(number: object) -> tuple[float | None, ...]:
    sources = [one.replace("{number}", str(number)) for one in HONEST]
    return tuple(pool.submit(one).result().number for one in sources)

  with strict() as pool, futures.ThreadPoolExecutor(WORKERS) as threads:
    before = honest("first")
    assert before[0] == 10
    yield from threads.map(one_after_another, attackers)


def strict(**settings: float) -> executor.Executor:
  """An executor that has CPython, or the test is skipped."""
  settings = {"workers": WORKERS, "cpu_seconds": CPU_SECONDS} | settings
  pool = executor.Executor(**settings)
  if "cpython" not in pool.tiers:
    pool.close()
    pytest.skip(" ".join(pool.notes))
  return pool


def outcome(result: results.Result) -> str:
  """What a program's `may` would call this."""
  if result.status is not results.Status.RETURNED:
    return result.status.value
  if result.kind not in ("int", "float", "exact"):
    return result.kind
  return "unreadable" if result.number is None else f"{result.number:g}"


def trainer() -> dict[str, object]:
  """All that programs could change in or around this process."""
  limits = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE)
  umask = os.umask(0)
  os.umask(umask)
  return {
    "signals": [signal.getsignal(one) for one in range(1, signal.NSIG)],
    "timers": [signal.getitimer(timer) for timer in range(3)],
    "limits": [resource.getrlimit(limit) for limit in limits],
    "directory": pathlib.Path.cwd(),
    # Other tests run beside this one, and build the package here.
    "files here": {
      name
      for name in os.listdir()
      if name not in ("build", "dist", "runs", "reft_jax.egg-info")
      and not name.startswith(".")
    },
    "umask": umask,
    "environment": dict(os.environ),
    "threads": set(threading.enumerate()),
    "open files": len(os.listdir("/proc/self/fd")),
  }


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
  """Whether something comes true in time."""
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  return condition()


def kill(processes: Iterable[int]) -> None:
  for process in processes:
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, signal.SIGKILL)


def test_there_are_many():
  assert len({one.id for one in ALL}) == len(ALL) >= 110


@pytest.mark.parametrize("one", ALL)
def test_no_harm(attacked, one):
  for run in attacked.runs[one]:
    assert outcome(run.result) in one.may - {program.HARM}, run.result
    # Twice, for what CPython does in the end.
    assert run.seconds < 2 * WALL_SECONDS + 1
    assert run.after == run.before
    # Small scalars.
    assert type(run.result.number) in (float, type(None))
    assert type(run.result.text) in (str, type(None))
    assert len(run.result.text or "") <= 200
    assert type(run.result.reason) is str
    assert len(run.result.reason) <= 200
  assert run.result.tier == "cpython"


@in_both_tiers
def test_the_trainer_is_as_it_was(attacked, programs):
  for name, before in attacked.before.items():
    assert attacked.after[name] == before, name


@in_both_tiers
def test_nothing_is_left(attacked, programs):
  assert not attacked.left
  places = {".", "/", "/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()}
  for place in places:
    assert not list(pathlib.Path(place).glob(f"{files.TRACE}*"))


def test_nothing_is_shown(capfd):
  with strict() as pool:
    pool.run([one.source for one in hostile.GROUPS["floods"]])
  assert capfd.readouterr() == ("", "")


def test_a_batch_half_of_which_is_hostile():
  """Grades 64 completions as a step of training does; 42 is the answer."""
  question = problem.Problem("svamp_0", "svamp", "6 times 7?", None, "42")
  attackers = [
    one.source.removeprefix("def solution():\n")
    for members in hostile.GROUPS.values()
    for one in members
    if one.source.startswith("def solution():\n  ")
  ]
  pairs = [
    (f"  x = {number}\n  return 42 * x / x", attacker)
    for number, attacker in enumerate(attackers[:: len(attackers) // 32], 1)
  ][:32]
  with strict(workers=4) as pool:
    grader = grader_lib.Grader("python", "strict", pool)
    pending = [
      (grader.start(question, honest), grader.start(question, attacker))
      for honest, attacker in pairs
    ]
    for honest, attacker in pending:
      assert honest.grade().verdict is grade.Verdict.CORRECT
      assert attacker.grade().verdict is not grade.Verdict.CORRECT
  assert len(pending) == 32


def test_it_outlives_the_thread_that_made_it():
  with futures.ThreadPoolExecutor(1) as thread:
    pool = thread.submit(strict).result()
  with pool:
    time.sleep(0.2)
    first, second = pool.run(HONEST)
  assert first.number == 10
  assert second.number < 1


@pytest.mark.parametrize(
  "end",
  [signal.SIGKILL]
  + [
    pytest.param(end, marks=slow)
    for end in (None, signal.SIGINT, signal.SIGTERM)
  ],
)
def test_a_trainer_that_ends_leaves_no_process(root, tmp_path, end):
  before = process_tree.descendants(os.getpid())
  trainer = subprocess.Popen(
    [sys.executable, "-c", TRAINER, "600" if end else "0.2"],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    cwd=root,
    env=os.environ | {"TMPDIR": str(tmp_path)},
  )
  with trainer:
    assert trainer.stdout.readline() == b"running\n"
    if end:
      assert wait_until(lambda: len(process_tree.descendants(trainer.pid)) > 4)
      trainer.send_signal(end)
    trainer.wait(20)
  # Some end at once, others when their program's time is up.
  assert wait_until(lambda: process_tree.descendants(os.getpid()) <= before)
  assert not list(tmp_path.iterdir())


def children(family: set[int]) -> set[int]:
  return {
    one for one in family if process_tree.parents().get(one) == os.getpid()
  }


def leaves(family: set[int]) -> set[int]:
  return family - set(process_tree.parents().values())


@slow
@pytest.mark.parametrize("choose", [children, leaves, set])
def test_workers_that_are_killed_cost_nothing(choose):
  """Whatever runs programs, or waits for some, is killed; all end as usual."""
  numbers = [number for number in range(12) for _ in "ab"]
  sources = [
    f"{first}def solution():\n"
    f"  return sum(1 for _ in range(3 * 10**5)) * 0 + {number}"
    for number in range(12)
    for first in ("", "import fractions\n")
  ]
  with strict(workers=4, cpu_seconds=20) as pool:
    pending = [pool.submit(source) for source in sources[:20]]
    for done in (4, 10, 20):
      assert wait_until(
        lambda done=done: sum(f.done() for f in pending) >= done
      )
      kill(choose(process_tree.descendants(os.getpid())))
    got = pool.run(sources)
  assert [result.number for result in got] == numbers
