"""The process of one program: sets its limits, runs it, writes its answer."""

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
import socket
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from reft_jax.tasks.sandbox import results, seccomp, wire

TEXT_CHARACTERS = 200

# Subclasses are `other`: their `float` and `str` may disagree.
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
  connection: socket.socket,
  answer_to: int,
  *,
  keeper: int,
  limits: results.Limits,
  is_confined: bool,
  sympy: types.ModuleType,
  read: Callable[[object], dict[str, Any]],
) -> None:
  """Runs the program that comes over the connection, with its scopes.

  Writes to the descriptor `answer_to`: an empty line once it is confined, then
  a line with the answer. `keeper` forked this process; `read` is a `reader`.
  """
  seccomp.die_with_parent(keeper)
  request = wire.receive(connection)
  connection.close()
  if request is None:
    return
  os.dup2(answer_to, seccomp.LAST_DESCRIPTOR)
  _limit(limits)
  random.seed(0)
  if is_confined:
    seccomp.confine()
  os.write(seccomp.LAST_DESCRIPTOR, b"\n")
  answer = json.dumps(_run(**request, sympy=sympy, read=read))
  os.write(seccomp.LAST_DESCRIPTOR, answer.encode() + b"\n")


def _limit(limits: results.Limits) -> None:
  """Leaves the program some time, some memory and the answer's pipe."""
  files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  os.closerange(seccomp.LAST_DESCRIPTOR + 1, files)
  if sys.platform == "linux":
    # If the machine runs out of memory, the kernel kills programs first.
    pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  # The timer sends SIGPROF in time; the limit, in whole seconds, backs it up.
  at_last = math.ceil(limits.cpu_seconds) + 1
  resource.setrlimit(resource.RLIMIT_CPU, (at_last, at_last))
  signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)


def _run(
  program: str,
  scopes: str,
  *,
  sympy: types.ModuleType,
  read: Callable[[object], dict[str, Any]],
) -> dict[str, Any]:
  """Runs a program in this process and reads what its solution() returned."""
  offered = {"__name__": "__main__", "__builtins__": builtins}
  offered |= {"math": math, "sympy": sympy}
  module = offered if scopes == "one" else {}
  try:
    # `read` is evaluated before the program runs and can rebind any name.
    return read(_call(program, offered, module))
  except BaseException as error:
    return {"raised": type(error).__name__[:TEXT_CHARACTERS]}


def _call(
  program: str, offered: dict[str, Any], module: dict[str, Any]
) -> object:
  """Returns what solution() returns, or raises what it raises."""
  code = compile(program, "program", "exec", dont_inherit=True)
  exec(code, offered, module)
  return eval("solution()", offered, module)


def reader(sympy: types.ModuleType) -> Callable[[object], dict[str, Any]]:
  """Makes the function that reads a returned object into a `Result`'s fields.

  The function holds all that it uses, so programs that rebind names do not
  affect it. It knows classes by identity, because classes can lie about their
  names, modules and equality. It knows the sympy classes that exist now, before
  any program could define one.
  """
  kinds = {id(known): kind for known, kind in KINDS.items()}
  sympys = {id(known): known for known in _family(sympy.Basic)}

  def read(
    value: Any,
    *,
    id: Any = id,
    type: Any = type,
    float: Any = float,
    str: Any = str,
    error: Any = Exception,
  ) -> dict[str, Any]:
    known = id(type(value))
    kind = kinds.get(known, "other")
    if known in sympys and value.is_number:
      kind = "exact"
    try:
      number = float(value)
    except error:
      number = None
    try:
      text = str(value)[:TEXT_CHARACTERS]
    except error:
      text = None
    return {"kind": kind, "number": number, "text": text}

  return read


def _family(ancestor: type) -> Iterator[type]:
  """A class and all its descendants."""
  yield ancestor
  heirs: list[type] = type.__subclasses__(ancestor)
  for heir in heirs:
    yield from _family(heir)
