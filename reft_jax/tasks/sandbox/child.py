"""A program's own process: first its limits, then itself, then its answer."""

import builtins
import decimal
import fractions
import json
import math
import os
import pathlib
import random
import resource
import signal
import sys
import types
from typing import Any

from reft_jax.tasks.sandbox import limits as limits_lib
from reft_jax.tasks.sandbox import seccomp

TEXT_CHARACTERS = 200

# Subclasses are `other`: they may say one thing to float and one to str.
KINDS = {
  int: "int",
  float: "float",
  fractions.Fraction: "exact",
  decimal.Decimal: "exact",
  bool: "bool",
  str: "text",
  type(None): "none",
}


def main(
  request: dict[str, str],
  answer_to: int,
  *,
  handler: int,
  limits: limits_lib.Limits,
  is_confined: bool,
  sympy: types.ModuleType,
) -> None:
  """Writes a line when everything is in place, then a line with the answer.

  Args:
    request: the `program` and whether it sees one or two `scopes`.
    answer_to: the descriptor to write to.
    handler: the process that forked this one.
    limits: of the program.
    is_confined: whether it gets the filter too.
    sympy: the module to offer.
  """
  seccomp.die_with_parent(handler)
  os.dup2(answer_to, seccomp.LAST_DESCRIPTOR)
  _limit(limits)
  random.seed(0)
  if is_confined:
    seccomp.confine()
  os.write(seccomp.LAST_DESCRIPTOR, b"\n")
  answer = json.dumps(_run(request["program"], request["scopes"], sympy))
  os.write(seccomp.LAST_DESCRIPTOR, answer.encode() + b"\n")


def _limit(limits: limits_lib.Limits) -> None:
  """Leaves nothing but some time, some memory and the answer's pipe."""
  files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  os.closerange(seccomp.LAST_DESCRIPTOR + 1, files)
  if sys.platform == "linux":
    _limit_memory(limits.memory_bytes)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  # The timer ends the program by SIGPROF; the limit knows whole seconds only.
  at_last = math.ceil(limits.cpu_seconds) + 1
  resource.setrlimit(resource.RLIMIT_CPU, (at_last, at_last))
  signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)


def _limit_memory(room: int) -> None:
  """Lets this process grow by `room` bytes."""
  # Should the machine itself run out of memory, programs are to go first.
  pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  limit = pages * resource.getpagesize() + room
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _run(program: str, scopes: str, sympy: types.ModuleType) -> dict[str, Any]:
  """Runs a program here and reads out what its solution() returned."""
  offered = {"__name__": "__main__", "__builtins__": builtins}
  offered |= {"math": math, "sympy": sympy}
  module = offered if scopes == "one" else {}
  try:
    code = compile(program, "program", "exec", dont_inherit=True)
    exec(code, offered, module)
    value = eval("solution()", offered, module)
    return {
      "kind": _kind(value, sympy),
      "number": _number(value),
      "text": _text(value),
    }
  except BaseException as error:
    return {"raised": type(error).__name__[:TEXT_CHARACTERS]}


# What reads the returned object is bound here, before a program can rebind it.


def _kind(value: object, sympy: types.ModuleType, type=type) -> str:
  """`Result.kind`."""
  for known, kind in KINDS.items():
    if type(value) is known:  # Classes can lie about being equal.
      return kind
  is_exact = isinstance(value, sympy.Basic) and value.is_number
  return "exact" if is_exact else "other"


def _number(value: object, float=float) -> float | None:
  """`Result.number`."""
  try:
    return float(value)
  except Exception:
    return None


def _text(value: object, str=str) -> str | None:
  """`Result.text`."""
  try:
    return str(value)[:TEXT_CHARACTERS]
  except Exception:
    return None
