"""Becomes a worker of pydantic-monty that has nothing of the trainer's.

The pool starts a worker with an empty environment, but with the trainer's
standard error, process group and those open files that libraries leave
inheritable. Run by path: `python -I -S monty_worker.py MONTY ARGUMENTS...`.
"""

import os
import resource
import sys

# Room for monty's own threads and code beside its programs' memory, which it
# limits itself; this is the second line.
ADDRESS_SPACE = 1 << 30


def main() -> None:
  """Keeps the two pipes, drops the rest and executes the arguments."""
  os.setsid()  # A Ctrl-C at the terminal is the trainer's business.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  os.closerange(3, os.sysconf("SC_OPEN_MAX"))
  for name, value in (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 64),
  ):
    resource.setrlimit(name, (value, value))
  if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
  os.execve(sys.argv[1], sys.argv[1:], {})


if __name__ == "__main__":
  main()
