"""Programs that a policy might write to do harm, in groups.

Policies explore: these are endless loops and memory bombs that they meet by
chance, and attacks that a reward could teach. None damages a machine that does
not guard against it by more than a few processes and a file in /tmp.
"""

from hostile import (
  exits,
  files,
  floods,
  liars,
  loops,
  memory,
  network,
  patches,
  processes,
  recursion,
  secrets,
  signals,
  syntax,
  traces,
)

GROUPS = {
  module.__name__.rpartition(".")[2]: module.PROGRAMS
  for module in (
    exits,
    files,
    floods,
    liars,
    loops,
    memory,
    network,
    patches,
    processes,
    recursion,
    secrets,
    signals,
    syntax,
    traces,
  )
}
