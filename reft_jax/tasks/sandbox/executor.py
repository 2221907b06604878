"""Runs programs in the safest tier that can run them.

The first tier is pydantic-monty. Programs that need what it lacks (sympy,
fractions, `yield`, ...) run in CPython under a seccomp allow-list. A result
depends on its program alone: the limit is CPU time, and failures of the machine
are retried or raised, never scored.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Literal

from reft_jax.errors import UserError
from reft_jax.tasks.sandbox import cpython, monty
from reft_jax.tasks.sandbox.results import Limits, Result, Status

Isolation = Literal["strict", "monty", "unsafe"]
Scopes = Literal["one", "two"]

PAUSES = (0.0, 0.1, 1.0)  # Seconds before each attempt.
MAX_WORKERS = 32  # This process cannot keep more of them busy.
CACHED_PROGRAMS = 16_384
PROGRAM_CHARACTERS = 1 << 16

# These modules are offered anyway. The released code imports sympy in every
# program, which would send every program to tier 2.
_OFFERED = re.compile(r"\A(?:import (?:math|sympy)\n)+")

# A module of one function: its other lines are blank or indented by spaces or
# tabs. A form feed would reset the column to module level.
_ONE_FUNCTION = re.compile(r"def solution\(\):[ \t]*(?:\n(?:[ \t].*)?)+")
_OTHER_LINE_ENDS = re.compile(r"[\f\r]")
_DOCSTRING = re.compile(r'\A.*\n[ \t]+"""[^"\\]*"""')
_SEES_SCOPES = re.compile(r"solution|\b(?:eval|exec|globals|locals|vars|dir)\b")


class LostWorkerError(RuntimeError):
  """The machine failed, not the program, so the program has no score."""


class Executor:
  """Runs untrusted programs. Thread-safe; a context manager.

  Attributes:
    tiers: the tiers in use: `("monty", "cpython")` or one of the two.
    notes: messages for the user, such as why a tier is not in use.
  """

  def __init__(
    self,
    *,
    isolation: Isolation = "strict",
    workers: int | None = None,
    cpu_seconds: float = 1.0,
    memory_mb: int = 64,
  ):
    """Starts the tiers and proves that the second one confines programs.

    Args:
      isolation: `strict` is monty, then CPython if its confinement is proved;
        `monty` is monty alone; `unsafe` also allows CPython without
        confinement, with limits on its resources only.
      workers: programs that run at the same time; None is one per CPU core, at
        most 32.
      cpu_seconds: a program's limit; its wall time limit is five times that.
      memory_mb: the MiB that a program may allocate.

    Raises:
      UserError: there is no safe tier on this machine.
    """
    workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
    self._limits = limits = Limits(cpu_seconds, memory_mb)
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
      self._monty = _start_monty(workers, limits, notes)
      if self._monty:
        stack.callback(self._monty.close)
      self._cpython = None
      if isolation != "monty":
        self._cpython = _start_cpython(limits, isolation == "unsafe", notes)
      if self._cpython:
        stack.callback(self._cpython.close)
      self.notes = tuple(notes)
      tiers = {"monty": self._monty, "cpython": self._cpython}
      self.tiers = tuple(name for name, tier in tiers.items() if tier)
      if not self.tiers:
        raise UserError(
          f"programs cannot be run safely here. {' '.join(notes)} Install "
          "pydantic-monty, or set data.reasoning=nl."
        )
      self._threads = futures.ThreadPoolExecutor(workers, "sandbox")
      self._stack = stack.pop_all()
    self._lock = threading.Lock()
    self._cache: dict[tuple[str, Scopes], futures.Future[Result]] = {}

  def __enter__(self) -> "Executor":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def submit(
    self, program: str, *, scopes: Scopes = "one"
  ) -> futures.Future[Result]:
    """Runs a program's `solution()` in the background, once per program.

    Args:
      program: complete source that defines `solution()`; it needs no import of
        `math`, or of `sympy` in tier 2.
      scopes: `two` is the released code's `exec(code, globals, locals)`, where
        functions do not see the module's other definitions and imports.

    Returns:
      A future of the result, the same for equal programs. It raises
      LostWorkerError if the machine could not run the program.
    """
    key = (program, scopes)
    with self._lock:
      future = self._cache.pop(key, None)
      if (
        future and future.done() and (future.cancelled() or future.exception())
      ):
        future = None  # A new one may succeed.
      if future is None:
        future = self._threads.submit(self._run, program, scopes)
      self._cache[key] = future  # The last one that was asked for is last.
      if len(self._cache) > CACHED_PROGRAMS:
        del self._cache[next(iter(self._cache))]
    return future

  def run(
    self, programs: Sequence[str], *, scopes: Scopes = "one"
  ) -> list[Result]:
    """The results of programs, in order. Raises LostWorkerError."""
    pending = [self.submit(program, scopes=scopes) for program in programs]
    return [future.result() for future in pending]

  def close(self) -> None:
    """Waits for running programs, drops waiting ones and ends all processes."""
    self._threads.shutdown(wait=True, cancel_futures=True)
    self._stack.close()

  def _run(self, program: str, scopes: Scopes) -> Result:
    """Runs a program in tier 1, then in tier 2 if that may do better."""
    if len(program) > PROGRAM_CHARACTERS:
      return Result(Status.FAILED, self.tiers[0], reason="too long")
    result = Result(Status.UNSUPPORTED, "monty", reason="two scopes")
    left: Limits | None = self._limits
    plain = _OFFERED.sub("", program)
    if self._monty and (scopes == "one" or _is_one_function(plain)):
      result, left = self._run_monty(self._monty, plain)
    if self._cpython and left:
      return _persist(self._cpython.run, program, scopes, left)
    return result

  def _run_monty(
    self, pool: monty.Pool, program: str
  ) -> tuple[Result, Limits | None]:
    """Runs a program in tier 1; one that crashes every worker has FAILED."""
    try:
      return _persist(pool.run, program)
    except LostWorkerError:
      _persist(pool.prove)  # Raises if other programs crash too.
      result = Result(Status.FAILED, "monty", reason="crashed")
      return result, self._limits


def _persist(run: Callable[..., Any], *arguments: Any) -> Any:
  """Retries `run` after failures of the machine. Raises LostWorkerError."""
  for pause in PAUSES:
    time.sleep(pause)
    try:
      return run(*arguments)
    except OSError as error:
      last = error
  raise LostWorkerError(
    f"a program was lost {len(PAUSES)} times ({last}); is the machine short "
    "of memory or processes?"
  ) from last


def _is_one_function(program: str) -> bool:
  """Whether one and two scopes are the same to a program; False if in doubt."""
  if _OTHER_LINE_ENDS.search(program) or not _ONE_FUNCTION.fullmatch(program):
    return False
  body = _DOCSTRING.sub("", program).removeprefix("def solution()")
  return not _SEES_SCOPES.search(body)


def _start_monty(
  workers: int, limits: Limits, notes: list[str]
) -> monty.Pool | None:
  """Tier 1; or None, with a note why."""
  try:
    return monty.Pool(workers=workers, limits=limits)
  except (ImportError, OSError) as error:
    notes.append(f"pydantic-monty is not in use: {error}.")
    return None


def _start_cpython(
  limits: Limits, is_unsafe: bool, notes: list[str]
) -> cpython.Server | None:
  """Tier 2; or None, with a note why. Unconfined only if `is_unsafe`."""
  reason = None
  for is_confined in (True, False) if is_unsafe else (True,):
    try:
      server = cpython.Server(limits=limits, is_confined=is_confined)
    except OSError as error:
      reason = error
      continue
    if not is_confined:
      notes.append(f"CPython runs programs UNCONFINED, as asked: {reason}.")
    return server
  notes.append(f"CPython is not in use: {reason}.")
  return None
