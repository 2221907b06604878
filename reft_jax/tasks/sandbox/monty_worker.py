"""Becomes a worker of pydantic-monty that has nothing of the trainer's.

The pool starts a worker with an empty environment, but with the trainer's
standard error, process group and those open files that libraries leave
inheritable. Run by path:

  python -I -S monty_worker.py MEMORY_BYTES MONTY ARGUMENTS...
"""

import os
import resource
import sys

# What monty takes for itself, generously: it limits its programs' memory on its
# own, this is the second line.
OWN_BYTES = 1 << 29

# Where the system does not list a process's open files, up to where to look.
MOST_FILES = 1 << 16


def main() -> None:
  """Keeps the two pipes, drops the rest and becomes monty."""
  memory_bytes, *command = sys.argv[1:]
  os.setsid()  # A Ctrl-C at the terminal is the trainer's business.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  _close_files()
  for name, value in (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 64),
  ):
    resource.setrlimit(name, (value, value))
  if sys.platform == "linux":
    soft = OWN_BYTES + int(memory_bytes)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > soft:
      resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
  os.execve(command[0], command, {})


def _close_files() -> None:
  """Closes all but the standard streams, which may be many or unlimited."""
  try:
    for name in os.listdir("/proc/self/fd"):
      if int(name) > 2:
        os.closerange(int(name), int(name) + 1)
  except OSError:
    os.closerange(3, MOST_FILES)


if __name__ == "__main__":
  main()
