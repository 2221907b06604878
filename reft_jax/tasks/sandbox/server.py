"""Tier 2's process: forks a child for every program.

The trainer starts it by exec, so it has none of the trainer's memory,
environment or files. It imports the modules that programs may use. For each
connection from the trainer it forks a handler, and the handler forks a keeper
for each program, one after another:

  trainer -- socket --> handler -- fork --> keeper -- fork --> child
  trainer <------------ verdict ----------- keeper <-- pipe -- answer, or end

Only the child reads the program from the socket, and only the keeper reads the
answer and then ends: a child inherits no memory of another program. The answer
is a few scalars in JSON, read from the returned object in the child. Nothing
else that a child writes is trusted.
"""

import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from reft_jax.tasks.sandbox import child, preload, results, seccomp, wire

ANSWER_BYTES = 4096
OPEN_FILES = 64
KINDS = {*child.KINDS.values(), "other"}

# The kernel's signals to a program that is out of CPU time.
_OUT_OF_TIME = (signal.SIGPROF, signal.SIGXCPU)
# A confined program cannot send itself these: the machine or a person did.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def main() -> None:
  """Serves until the trainer ends or closes the socket at descriptor 0."""
  trainer = os.getppid()
  control = socket.socket(fileno=os.dup(0))
  os.dup2(os.open(os.devnull, os.O_RDWR), 0)
  _reset()
  settings = wire.receive(control) or {}
  sys.path[:] = settings["path"]
  try:
    sympy = preload.preload()
  except ImportError as error:
    wire.send(control, {"error": str(error)})
    return
  gc.freeze()  # Collections in children would copy the shared pages.
  wire.send(control, {"error": None})
  run_child = functools.partial(
    child.main,
    is_confined=settings["is_confined"],
    sympy=sympy,
    read=child.reader(sympy),
  )
  server = os.getpid()
  while os.getppid() == trainer:
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-1, os.WNOHANG) != (0, 0):
        pass
    if not select.select([control], [], [], 1.0)[0]:
      continue
    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not descriptors:
      return
    if os.fork() == 0:
      try:
        seccomp.die_with_parent(server)
        control.close()
        _handle(socket.socket(fileno=descriptors[0]), run_child)
      finally:
        os._exit(0)
    os.close(descriptors[0])


def _reset() -> None:
  """Undoes what is inherited: signals end the process, few files are open."""
  signal.pthread_sigmask(signal.SIG_SETMASK, ())
  for number in (signal.SIGPROF, signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
  resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def _handle(connection: socket.socket, run_child: Callable[..., None]) -> None:
  """Runs the programs of one connection, until one is lost."""
  handler = os.getpid()
  status = 0
  while status == 0 and (message := wire.receive(connection)) is not None:
    keeper = os.fork()
    if keeper == 0:
      is_known = False
      try:
        seccomp.die_with_parent(handler)
        is_known = _keep(connection, results.Limits(**message), run_child)
      finally:
        os._exit(0 if is_known else 1)
    _, status = os.waitpid(keeper, 0)


def _keep(
  connection: socket.socket,
  limits: results.Limits,
  run_child: Callable[..., None],
) -> bool:
  """Runs one program and sends its verdict; False if it was lost."""
  keeper = os.getpid()
  answer_from, answer_to = os.pipe()
  process = os.fork()
  if process == 0:
    try:
      run_child(connection, answer_to, keeper=keeper, limits=limits)
    finally:
      os._exit(0)
  os.close(answer_to)
  heard, in_time = _listen(answer_from, limits.wall_seconds)
  os.kill(process, signal.SIGKILL)  # Whatever it still does.
  _, status, usage = os.wait4(process, 0)
  cpu_seconds = usage.ru_utime + usage.ru_stime
  is_over = not in_time or cpu_seconds >= limits.cpu_seconds
  verdict = _verdict(heard, status, is_over)
  wire.send(connection, verdict)
  return verdict["end"] != "lost"


def _listen(pipe: int, seconds: float) -> tuple[bytes, bool]:
  """The bytes from the pipe, and whether they came in time.

  Reads up to the second line, the end of the child or ANSWER_BYTES.
  """
  heard = b""
  deadline = time.monotonic() + seconds
  while heard.count(b"\n") < 2 and len(heard) < ANSWER_BYTES:
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([pipe], [], [], left)[0]:
      return heard, False
    more = os.read(pipe, ANSWER_BYTES - len(heard))
    if not more:
      break
    heard += more
  return heard, True


def _verdict(heard: bytes, status: int, is_over: bool) -> dict[str, Any]:
  """How a program ended, from what was `heard` and the `status` of wait4(2)."""
  if not heard:
    return {"end": "lost", "reason": "no process could be prepared for it"}
  if heard.count(b"\n") >= 2:
    return _parse(heard.split(b"\n")[1])
  if len(heard) >= ANSWER_BYTES:
    return {"end": "failed", "reason": "wrote too much"}
  ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
  if ended_by in _OUT_OF_TIME or (ended_by == signal.SIGKILL and is_over):
    return {"end": "timed out", "reason": "out of time"}
  if ended_by in _FROM_OUTSIDE:
    return {"end": "lost", "reason": "its process was killed"}
  reason = signal.Signals(ended_by).name if ended_by else "exited"
  return {"end": "failed", "reason": reason}


def _parse(line: bytes) -> dict[str, Any]:
  """A child's answer, built from the scalars that have the right types."""
  try:
    answer = json.loads(line)
  except (ValueError, RecursionError):
    answer = None
  match answer:
    case {"raised": str(name)} if name.isidentifier():
      return {"end": "failed", "reason": name}
    case {
      "kind": str(kind),
      "number": float() | None as number,
      "text": str() | None as text,
    } if kind in KINDS:
      if text is not None:  # Lone surrogates would raise in the trainer.
        text = text.encode("utf-8", "replace").decode("utf-8")
      return {"end": "returned", "kind": kind, "number": number, "text": text}
  return {"end": "failed", "reason": "not an answer"}
