"""Becomes a pydantic-monty worker that inherits nothing from the trainer.

The pool starts workers with an empty environment, but with the trainer's
standard error, process group and inheritable open files. Run by path:

  python -I -S monty_worker.py MEMORY_BYTES MONTY ARGUMENTS...
"""

import os
import resource
import sys

# Monty's own memory, generously: monty limits its programs' memory itself, and
# this is the second line of defence.
OWN_BYTES = 1 << 29

# Descriptors to close where the system does not list the open ones.
MOST_FILES = 1 << 16


def main() -> None:
  """Drops all but the two pipes and becomes monty."""
  memory_bytes, *command = sys.argv[1:]
  os.setsid()  # A Ctrl-C at the terminal is for the trainer alone.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  try:
    for name in os.listdir("/proc/self/fd"):
      if int(name) > 2:
        os.closerange(int(name), int(name) + 1)
  except OSError:
    os.closerange(3, MOST_FILES)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
  if sys.platform == "linux":
    soft = OWN_BYTES + int(memory_bytes)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > soft:
      resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
  os.execve(command[0], command, {})


if __name__ == "__main__":
  main()
