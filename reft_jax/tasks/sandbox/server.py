"""Tier 2's process: forks a child for every program.

The trainer starts it by exec, so that nothing of the trainer's memory,
environment or files is in it. It imports what programs may want and forks, for
each connection the trainer hands over, a handler, and that a keeper for one
program after another:

  trainer -- socket --> handler -- fork --> keeper -- fork --> child
  trainer <------------ verdict ----------- keeper <-- pipe -- answer, or end

Only the child reads the program from the socket, and only the keeper, which
then ends, hears the answer: nothing of another program is in the memory that a
child inherits. The answer is a few scalars in JSON, read out of the returned
object in the child. The child is believed in nothing but its own answer.
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

from reft_jax.tasks.sandbox import child, preload, seccomp, wire
from reft_jax.tasks.sandbox import limits as limits_lib

ANSWER_BYTES = 4096
OPEN_FILES = 64
KINDS = {*child.KINDS.values(), "other"}

# By which the kernel ends a program that is out of CPU time.
_OUT_OF_TIME = (signal.SIGPROF, signal.SIGXCPU)
# What no program can do to itself: someone else did, or the machine.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def main() -> None:
  """Serves until the trainer closes the socket at descriptor 0, or ends."""
  trainer = os.getppid()
  control = socket.socket(fileno=os.dup(0))
  os.dup2(os.open(os.devnull, os.O_RDWR), 0)
  _reset()
  settings = wire.receive(control)
  sys.path[:] = settings["path"]
  try:
    sympy = preload.preload()
  except ImportError as error:
    wire.send(control, {"error": str(error)})
    return
  gc.freeze()
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
  """Undoes what is inherited: signals end a process, files are few."""
  signal.pthread_sigmask(signal.SIG_SETMASK, ())
  for number in (signal.SIGPROF, signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
  resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def _handle(connection: socket.socket, run_child: Callable[..., None]) -> None:
  """Has the programs of one connection run, until one is lost."""
  handler = os.getpid()
  status = 0
  while status == 0 and (message := wire.receive(connection)) is not None:
    keeper = os.fork()
    if keeper == 0:
      is_known = False
      try:
        seccomp.die_with_parent(handler)
        is_known = _keep(connection, limits_lib.Limits(**message), run_child)
      finally:
        os._exit(0 if is_known else 1)
    _, status = os.waitpid(keeper, 0)


def _keep(
  connection: socket.socket,
  limits: limits_lib.Limits,
  run_child: Callable[..., None],
) -> bool:
  """Has one program run, sends the verdict; whether it is known."""
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
  os.kill(process, signal.SIGKILL)
  _, status, usage = os.wait4(process, 0)
  cpu_seconds = usage.ru_utime + usage.ru_stime
  is_over = not in_time or cpu_seconds >= limits.cpu_seconds
  verdict = _verdict(heard, status, is_over)
  wire.send(connection, verdict)
  return verdict["end"] != "lost"


def _listen(pipe: int, seconds: float) -> tuple[bytes, bool]:
  """What comes down the pipe, and whether it came before the time was up.

  Listens until the second line, the end of the child, or too much.
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
  """How a program ended, for the trainer.

  Args:
    heard: an empty line when the child was ready, a line with its answer.
    status: of its process, as of waitpid(2).
    is_over: whether it used up its time.
  """
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
  """A child's answer, made anew of the scalars that are what they should be."""
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
      if text is not None:  # Half a character would be an error later on.
        text = text.encode("utf-8", "replace").decode("utf-8")
      return {"end": "returned", "kind": kind, "number": number, "text": text}
  return {"end": "failed", "reason": "not an answer"}
