"""Tier 2, seen from the trainer: CPython in a server process."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import reft_jax
from reft_jax.tasks.sandbox import seccomp, wire
from reft_jax.tasks.sandbox.results import Limits, Result, Status

START_SECONDS = 60.0  # sympy from a cold disk.

# The folder of the package, in a checkout or installed.
_ROOT = pathlib.Path(reft_jax.__file__).resolve().parent.parent
_START = (
  "import sys; sys.path.insert(0, sys.argv[1]); "
  "from reft_jax.tasks.sandbox import server; server.main()"
)

# Returns the attempts that were not refused. Any other failure does not prove a
# refusal. A refused thread raises RuntimeError, all else PermissionError.
_PROOF = """
import os, socket, threading
def solution():
  attempts = {
    "open": lambda: open("/dev/null"),
    "unlink": lambda: os.unlink("/nowhere"),
    "fork": os.fork,
    "exec": lambda: os.execv("/nowhere", ["nowhere"]),
    "socket": socket.socket,
    "kill": lambda: os.kill(os.getpid(), 0),
    "pipe": os.pipe,
    "threads": threading.Thread(target=int).start,
  }
  refusals = {"threads": RuntimeError}
  possible = []
  for name, attempt in attempts.items():
    try:
      attempt()
    except refusals.get(name, PermissionError):
      continue
    except Exception:
      pass
    possible.append(name)
  return " ".join(possible)
"""


class Server:
  """Runs programs in the server's children. Thread-safe.

  Each program that runs has a socket, with a handler at its other end.
  """

  def __init__(self, *, limits: Limits, is_confined: bool):
    """Starts the server and proves that its programs are confined.

    Raises:
      OSError: the server does not start, or the programs are not confined.
    """
    if is_confined and not seccomp.supported():
      raise OSError("no filter of system calls is known for this machine")
    self._is_confined = is_confined
    self._lock = threading.Lock()
    self._idle: list[socket.socket] = []
    self._start()
    try:
      proof = self.run(_PROOF, "one", limits)
      if proof.status is not Status.RETURNED:
        raise OSError(f"a program of its own failed ({proof.reason})")
      if is_confined and proof.text != "":
        raise OSError(f"its programs are not kept from: {proof.text}")
    except OSError:
      self.close()
      raise

  def _start(self) -> None:
    """Starts the process and waits until it is ready. Raises OSError."""
    # A fixed order of sets, so that rewards repeat. Some interpreters do not
    # start without the path to their libraries.
    environment = {"PYTHONHASHSEED": "0"}
    if "LD_LIBRARY_PATH" in os.environ:
      environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    self._control, theirs = socket.socketpair()
    self._control.settimeout(START_SECONDS)
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, "-P", "-s", "-B", "-c", _START, str(_ROOT)],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
      )
    try:
      settings = {
        "path": [os.path.abspath(folder) for folder in sys.path],
        "is_confined": self._is_confined,
      }
      wire.send(self._control, settings)
      hello = wire.receive(self._control) or {"error": "it died"}
    except OSError as error:
      hello = {"error": str(error)}
    if hello["error"]:
      self._end()
      raise OSError(f"its server did not start ({hello['error']})")

  def run(self, program: str, scopes: str, limits: Limits) -> Result:
    """Runs one program.

    Raises:
      OSError: if the child, its handler or the server was lost.
    """
    connection = self._connect()
    # The keeper enforces the limits; this is for a keeper that hangs.
    connection.settimeout(4 * limits.wall_seconds + 10)
    try:
      wire.send(connection, vars(limits))  # To the handler.
      wire.send(connection, {"program": program, "scopes": scopes})
      answer = wire.receive(connection)
      if answer is None:
        raise ConnectionError("its handler died")
      end = answer.pop("end")
      if end == "lost":
        raise ConnectionError(answer["reason"])
    except OSError:
      connection.close()
      self._drop_idle()  # Their handlers may be dead too.
      raise
    self._idle.append(connection)
    return Result(Status(end), "cpython", **answer)

  def _connect(self) -> socket.socket:
    """An idle connection or a new one; restarts a server that died."""
    with contextlib.suppress(IndexError):
      return self._idle.pop()
    with self._lock:
      if self._process.poll() is not None:
        self._end()
        self._start()
      ours, theirs = socket.socketpair()
      with theirs:
        try:
          socket.send_fds(self._control, [b"c"], [theirs.fileno()])
        except OSError:
          ours.close()
          raise
    return ours

  def _drop_idle(self) -> None:
    """Closes the connections without a program; their handlers end."""
    with contextlib.suppress(IndexError):
      while True:
        self._idle.pop().close()

  def _end(self) -> None:
    """Kills the process and its descendants."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, signal.SIGKILL)
      self._process.wait()
    self._control.close()
    self._drop_idle()

  def close(self) -> None:
    """Ends the server and its children."""
    with self._lock:
      self._end()
