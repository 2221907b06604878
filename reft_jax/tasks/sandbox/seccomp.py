"""The system calls that a program may make: to compute and to answer.

An allow-list in classic BPF; see seccomp(2) and the kernel's
Documentation/userspace-api/seccomp_filter.rst. Other calls fail with EPERM,
which programs see as PermissionError. `futex` is not allowed either: a program
has one thread, so it only waits for a lock in a deadlock, and must end then.
"""

import ctypes
import dataclasses
import errno
import os
import platform
import signal
import struct
import sys

# The last descriptor for read and write: 0 to 2 are the null device, 3 is the
# answer's pipe.
LAST_DESCRIPTOR = 3

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2

# Instructions of classic BPF: load a word, compare and jump, return.
_LOAD, _RETURN = 0x20, 0x06
_EQUAL, _GREATER, _AT_LEAST, _HAS_BITS = 0x15, 0x25, 0x35, 0x45

# Offsets in struct seccomp_data: the low words on little-endian machines.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_KILL = 0x80000000
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM

_PROT_EXEC = 4
# x86_64 has a second set of numbers with this bit, which would evade the list.
_X32 = 0x40000000


@dataclasses.dataclass(frozen=True)
class _Machine:
  """An architecture's audit number and its numbers of the allowed calls."""

  audit: int
  files: tuple[int, int]  # read and write
  memory: tuple[int, int]  # mmap and mprotect
  free: tuple[int, ...]  # Allowed with any arguments.


# free: munmap brk mremap madvise, rt_sigreturn restart_syscall sched_yield,
# getpid, gettimeofday clock_gettime clock_getres (and time), getrandom,
# exit exit_group.
_MACHINES = {
  "x86_64": _Machine(
    audit=0xC000003E,
    files=(0, 1),
    memory=(9, 10),
    free=(11, 12, 25, 28, 15, 219, 24, 39, 96, 228, 229, 201, 318, 60, 231),
  ),
  "aarch64": _Machine(
    audit=0xC00000B7,
    files=(63, 64),
    memory=(222, 226),
    free=(215, 214, 216, 233, 139, 128, 124, 172, 169, 113, 114, 278, 93, 94),
  ),
}


def supported() -> bool:
  """Whether there is a filter for this machine; the kernel may still refuse."""
  return sys.platform == "linux" and platform.machine() in _MACHINES


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
  """One instruction (struct sock_filter); the jumps are relative."""
  return struct.pack("HBBI", code, if_true, if_false, value)


def _unless(number: int, argument: int, test: int, value: int) -> list[bytes]:
  """Allows a call unless one of its arguments passes the test."""
  return [
    _step(_EQUAL, number, 0, 4),
    _step(_LOAD, _ARGUMENTS + 8 * argument),
    _step(test, value, 0, 1),
    _step(_RETURN, _REFUSE),
    _step(_RETURN, _ALLOW),
  ]


def _filter(machine: _Machine) -> bytes:
  """The filter: kills other instruction sets, refuses what is not allowed."""
  # The same number is another call in another instruction set.
  steps = [
    _step(_LOAD, _ARCHITECTURE),
    _step(_EQUAL, machine.audit, 1, 0),
    _step(_RETURN, _KILL),
    _step(_LOAD, _NUMBER),
    _step(_AT_LEAST, _X32, 0, 1),
    _step(_RETURN, _KILL),
  ]
  for number in machine.free:
    steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
  for number in machine.files:
    steps += _unless(number, 0, _GREATER, LAST_DESCRIPTOR)
  # No executable memory: machine code would escape the limits of Python.
  for number in machine.memory:
    steps += _unless(number, 2, _HAS_BITS, _PROT_EXEC)
  steps.append(_step(_RETURN, _REFUSE))
  return b"".join(steps)


def _control(option: int, value: int, address: int = 0) -> None:
  """prctl(2). Raises OSError."""
  prctl = ctypes.CDLL(None, use_errno=True).prctl
  prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
  if prctl(option, value, address, 0, 0) != 0:
    number = ctypes.get_errno()
    raise OSError(number, f"prctl: {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
  """Asks the kernel to kill this process when its `parent` ends."""
  if sys.platform == "linux":
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It ended before the request.
      os._exit(1)


def confine() -> None:
  """Installs the filter, which cannot be removed. Raises OSError."""
  steps = _filter(_MACHINES[platform.machine()])
  buffer = ctypes.create_string_buffer(steps, len(steps))
  program = ctypes.create_string_buffer(
    struct.pack("HP", len(steps) // 8, ctypes.addressof(buffer))
  )
  _control(_PR_SET_NO_NEW_PRIVS, 1)  # Required of users other than root.
  _control(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))
