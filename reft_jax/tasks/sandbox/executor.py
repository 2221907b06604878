"""Runs programs in the safest place that can run them.

Two tiers: pydantic-monty first; what it lacks (sympy, fractions, `yield`, ...)
goes to CPython under a seccomp allow-list. A program's result depends on the
program alone: its limit is CPU time, and what the machine got wrong is tried
again or raised, never scored.
"""

import collections
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Literal

from reft_jax.errors import UserError
from reft_jax.tasks.sandbox import cpython, monty, results
from reft_jax.tasks.sandbox import limits as limits_lib

Isolation = Literal["strict", "monty", "unsafe"]
Scopes = Literal["one", "two"]

PAUSES = (0.0, 0.1, 1.0)  # Seconds before an attempt.
MOST_WORKERS = 32  # This process could not keep more of them busy.
CACHED_PROGRAMS = 16_384
PROGRAM_CHARACTERS = 1 << 16

# Modules that are offered anyway: importing sympy first, as the released code
# does for every program, would send every program to tier 2.
_OFFERED = re.compile(r"\A(?:import (?:math|sympy)\n)+")

# A module of one function: its other lines are blank or begin with a space or
# a tab, and cannot get to module level (a form feed would reset the column).
_ONE_FUNCTION = re.compile(r"def solution\(\):[ \t]*(?:\n(?:[ \t].*)?)+")
_OTHER_LINE_ENDS = re.compile(r"[\f\r]")
_DOCSTRING = re.compile(r'\A.*\n[ \t]+"""[^"\\]*"""')
_SEES_SCOPES = re.compile(r"solution|\b(?:eval|exec|globals|locals|vars|dir)\b")


class LostWorkerError(RuntimeError):
  """What runs the programs failed, not a program; its score is not known."""


class Executor:
  """Runs programs that nobody has read. Thread-safe; a context manager.

  Attributes:
    tiers: what is in use: `("monty", "cpython")` or one of the two.
    notes: lines for the person, such as why a tier was refused.
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
      isolation: `strict` is monty, then CPython if it proves to be confined;
        `monty` is monty alone; `unsafe` uses CPython where it cannot be
        confined too, with limits on its resources only.
      workers: programs that run at the same time; if None, one a CPU core,
        32 at most.
      cpu_seconds: what a program may use; five times that in wall time.
      memory_mb: what a program may allocate.

    Raises:
      UserError: if there is no safe tier on this machine.
    """
    workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    self._limits = limits = limits_lib.Limits(cpu_seconds, memory_mb)
    notes = []
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
    self._cache: collections.OrderedDict[
      tuple[str, Scopes], futures.Future[results.Result]
    ] = collections.OrderedDict()

  def __enter__(self) -> "Executor":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def submit(
    self, program: str, *, scopes: Scopes = "one"
  ) -> futures.Future[results.Result]:
    """Runs a program's `solution()` in the background, or knows its result.

    Args:
      program: complete source that defines `solution()`; `math`, and in tier
        2 `sympy`, are there without an import.
      scopes: `two` is the released code's `exec(code, globals, locals)`, where
        functions do not see what else the module defines or imports.

    Returns:
      The result to come, shared with whoever submits the same program; it
      raises LostWorkerError if the machine could not run it.
    """
    key = (program, scopes)
    with self._lock:
      future = self._cache.get(key)
      if future is None or _is_void(future):
        future = self._threads.submit(self._run, program, scopes)
        self._cache[key] = future
        if len(self._cache) > CACHED_PROGRAMS:
          self._cache.popitem(last=False)
      self._cache.move_to_end(key)
    return future

  def run(
    self, programs: Sequence[str], *, scopes: Scopes = "one"
  ) -> list[results.Result]:
    """The results of programs, in their order. Raises LostWorkerError."""
    pending = [self.submit(program, scopes=scopes) for program in programs]
    return [future.result() for future in pending]

  def close(self) -> None:
    """Waits for the programs that run, drops the others, ends all processes."""
    self._threads.shutdown(wait=True, cancel_futures=True)
    self._stack.close()

  def _run(self, program: str, scopes: Scopes) -> results.Result:
    """Tries the tiers in turn."""
    if len(program) > PROGRAM_CHARACTERS:
      return _no_result(results.Status.FAILED, self.tiers[0], "too long")
    result = _no_result(results.Status.UNSUPPORTED, "monty", "two scopes")
    left = self._limits
    plain = _OFFERED.sub("", program)
    if self._monty and (scopes == "one" or _is_one_function(plain)):
      result, left = self._run_monty(plain)
    if self._cpython and left:
      return _persist(self._cpython.run, program, scopes, left)
    return result

  def _run_monty(
    self, program: str
  ) -> tuple[results.Result, limits_lib.Limits | None]:
    """Tier 1; a program that fells worker after worker is no accident."""
    try:
      return _persist(self._monty.run, program)
    except LostWorkerError:
      _persist(self._monty.prove)  # Unless they fall for any program.
      result = _no_result(results.Status.FAILED, "monty", "crashed")
      return result, self._limits


def _no_result(
  status: results.Status, tier: str, reason: str
) -> results.Result:
  return results.Result(status, tier, reason=reason)


def _persist(run: Callable[..., Any], *arguments: Any) -> Any:
  """Calls what accidents of the machine stop. Raises LostWorkerError."""
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


def _is_void(future: futures.Future) -> bool:
  """Whether a future has come to nothing, so that another may succeed."""
  return future.cancelled() or (
    future.done() and future.exception() is not None
  )


def _is_one_function(program: str) -> bool:
  """Whether one scope or two are the same to a program; False if in doubt."""
  if _OTHER_LINE_ENDS.search(program) or not _ONE_FUNCTION.fullmatch(program):
    return False
  body = _DOCSTRING.sub("", program).removeprefix("def solution()")
  return not _SEES_SCOPES.search(body)


def _start_monty(
  workers: int, limits: limits_lib.Limits, notes: list[str]
) -> monty.Pool | None:
  """Tier 1, or a note why not."""
  try:
    return monty.Pool(workers=workers, limits=limits)
  except (ImportError, OSError) as error:
    notes.append(f"pydantic-monty is not in use: {error}.")
    return None


def _start_cpython(
  limits: limits_lib.Limits, is_unsafe: bool, notes: list[str]
) -> cpython.Server | None:
  """Tier 2, or a note why not; without its confinement only if asked for."""
  try:
    return cpython.Server(limits=limits, is_confined=True)
  except OSError as error:
    reason = error
  if is_unsafe:
    try:
      server = cpython.Server(limits=limits, is_confined=False)
      notes.append(f"CPython runs programs UNCONFINED, as asked: {reason}.")
      return server
    except OSError as error:
      reason = error
  notes.append(f"CPython is not in use: {reason}.")
  return None
