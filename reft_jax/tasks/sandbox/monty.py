"""Tier 1: pydantic-monty, a Python interpreter in Rust without I/O.

Programs run in its pool of worker processes, at 0.3 ms each. Monty limits
memory, recursion and wall time itself; this module limits CPU time. Clock and
random numbers are fixed, so rewards are repeatable.
"""

import contextlib
import dataclasses
import datetime
import math
import os
import pathlib
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from reft_jax.tasks.sandbox.results import Limits, Result, Status

WATCH_SECONDS = 0.1
LEASE_SECONDS = 2
PRINTED_BYTES = 1 << 20
RECURSION = 1000  # As in CPython.
OS_POLICY: Any = {
  "datetime": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
  "sleep": "zero",
  "random_start": {"seed": 0},
}

# Errors that monty raises for what it lacks, too: CPython tries the program.
DOUBTFUL = (
  NotImplementedError,
  ImportError,
  AttributeError,
  TypeError,
  NameError,
  RecursionError,
)

_OUT_OF_TIME = Result(Status.TIMED_OUT, "monty", reason="out of time")

# Monty's message for pow(2, -1, 7), which is valid since Python 3.8.
_NO_INVERSE = "pow() 2nd argument cannot be negative"

# The returned object is read in the worker, so that this process decodes only
# scalars. The function has a random name, so that no program can replace it.
_READER = """
import math
def {name}_kinds():
  import decimal
  return {{
    int: "int", float: "float", decimal.Decimal: "exact", bool: "bool",
    str: "text", type(None): "none",
  }}
def {name}(value, float=float, str=str, type=type, kinds={name}_kinds()):
  try:
    number = float(value)
  except Exception:
    number = None
  try:
    text = str(value)[:200]
  except Exception:
    text = None
  return (kinds.get(type(value), "other"), number, text)
"""


@dataclasses.dataclass(eq=False)
class _Run:
  """A running program."""

  pid: int  # Of its worker.
  start: float  # CPU seconds that the worker had used before.
  seconds: float = 0.0  # Of CPU time, once it has ended.
  is_over: bool = False  # Killed at its limit.


class Pool:
  """Runs programs in monty's workers. Thread-safe."""

  def __init__(self, *, workers: int, limits: Limits):
    """Starts the pool and runs a first program.

    Raises:
      ImportError: if pydantic-monty is not installed.
      OSError: if its workers do not work.
    """
    import pydantic_monty

    self._monty = pydantic_monty
    self._limits = limits
    self._monty_limits: Any = {
      "max_feed_duration_secs": limits.wall_seconds,
      "max_memory": limits.memory_bytes,
      "max_recursion_depth": RECURSION,
      "max_suspensions": 100,
    }
    reader = f"read_{secrets.token_hex(8)}"
    self._before = _READER.format(name=reader)
    self._after = f"\n\n{reader}(solution())"
    self._lock = threading.Lock()
    self._running: list[_Run] = []
    self._is_closed = threading.Event()
    with contextlib.ExitStack() as stack:
      binary = stack.enter_context(_worker_script(limits.memory_bytes))
      pool = pydantic_monty.Monty(binary_path=binary, max_processes=workers)
      try:
        self._pool = stack.enter_context(pool)
      except RuntimeError as error:
        raise OSError(str(error)) from error
      watch = threading.Thread(target=self._watch_cpu, daemon=True)
      watch.start()
      stack.callback(watch.join)
      stack.callback(self._is_closed.set)
      self.prove()
      self._stack = stack.pop_all()

  def close(self) -> None:
    """Ends the workers."""
    self._stack.close()

  def prove(self) -> None:
    """Raises OSError unless a program runs."""
    result, _ = self.run("def solution():\n  return 7")
    if result.number != 7.0:
      raise OSError(f"a program of its own failed ({result.reason})")

  def run(self, program: str) -> tuple[Result, Limits | None]:
    """Runs one program.

    Returns:
      Its result; also the remaining limits if CPython should try the program.

    Raises:
      OSError: if its worker died, or none could be started.
    """
    code = self._before + program + self._after
    printed = self._monty.CollectString(max_bytes=PRINTED_BYTES)
    checkout = self._pool.checkout(
      limits=self._monty_limits, os_policy=OS_POLICY
    )
    run = None
    try:
      with checkout as session, self._timed(session.worker_pid) as run:
        answer = session.feed_run(code, print_callback=printed)
    except self._monty.MontyCrashedError as error:
      if error.timed_out or (run and run.is_over):
        return _OUT_OF_TIME, None
      raise ConnectionError(str(error)) from error
    except self._monty.MontyError as error:
      result, is_doubtful = _judge(error.exception())
      left = self._limits.after(run.seconds if run else 0.0)
      return result, left if is_doubtful else None
    except RuntimeError as error:  # What the pool raises of itself.
      raise ConnectionError(str(error)) from error
    return _read(answer), None

  @contextlib.contextmanager
  def _timed(self, pid: Any) -> Iterator[_Run]:
    """Limits the worker's CPU time within the context."""
    run = _Run(pid, start=_cpu_time(pid))
    _extend_lease(pid)
    with self._lock:
      self._running.append(run)
    try:
      yield run
    finally:
      with self._lock:
        self._running.remove(run)
      run.seconds = _cpu_time(pid) - run.start

  def _watch_cpu(self) -> None:
    """Kills workers whose program is out of CPU time, until the pool closes."""
    while not self._is_closed.wait(WATCH_SECONDS):
      with self._lock:  # So that no worker starts its next program meanwhile.
        for run in self._running:
          if _cpu_time(run.pid) - run.start > self._limits.cpu_seconds:
            run.is_over = True
            with contextlib.suppress(ProcessLookupError):
              os.kill(run.pid, signal.SIGKILL)
          else:
            _extend_lease(run.pid)


@contextlib.contextmanager
def _worker_script(memory_bytes: int) -> Iterator[str]:
  """An executable file that starts a worker through `monty_worker`."""
  from pydantic_monty import _binary

  launcher = pathlib.Path(__file__).with_name("monty_worker.py")
  command = [sys.executable, "-I", "-S", str(launcher), str(memory_bytes)]
  command.append(_binary.find_monty_binary())
  script = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'.encode()
  if sys.platform == "linux":
    # A file in memory leaves nothing behind, however this process ends. A file
    # open for writing cannot be executed, hence the second descriptor.
    with open(os.memfd_create("monty"), "wb", buffering=0) as file:
      file.write(script)
      descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
    try:
      yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
      os.close(descriptor)
  else:
    with tempfile.TemporaryDirectory(prefix="reft_jax_") as folder:
      path = pathlib.Path(folder) / "monty"
      path.write_bytes(script)
      path.chmod(0o700)
      yield str(path)


def _cpu_time(pid: int) -> float:
  """CPU seconds of a process: clock_getcpuclockid(3), which Python lacks.

  0 for a process that has ended, and on other systems than Linux, where wall
  time is the limit.
  """
  if sys.platform != "linux":
    return 0.0
  try:
    return time.clock_gettime((~pid << 3) | 2)
  except OSError:
    return 0.0


def _extend_lease(pid: int) -> None:
  """Extends a worker's CPU limit, which ends it if this process is gone."""
  if sys.platform == "linux":
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(_cpu_time(pid)) + LEASE_SECONDS
    with contextlib.suppress(OSError, ValueError):
      resource.prlimit(pid, resource.RLIMIT_CPU, (soft, hard))


def _read(answer: Any) -> Result:
  """The reader's three scalars; FAILED for programs that bypass the reader."""
  match answer:
    case (str(kind), float() | None as number, str() | None as text):
      return Result(Status.RETURNED, "monty", kind, number, text)
  return Result(Status.FAILED, "monty", reason="SyntaxError")


def _judge(error: BaseException) -> tuple[Result, bool]:
  """The result of an exception, and whether monty may be its cause."""
  if isinstance(error, TimeoutError) and "limit exceeded" in str(error):
    return _OUT_OF_TIME, False
  status = Status.FAILED
  if isinstance(error, NotImplementedError | ImportError):
    status = Status.UNSUPPORTED
  result = Result(status, "monty", reason=type(error).__name__)
  is_doubtful = isinstance(error, DOUBTFUL) or (
    isinstance(error, ValueError) and str(error).startswith(_NO_INVERSE)
  )
  return result, is_doubtful
