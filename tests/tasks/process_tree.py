"""The processes that a process started, from /proc."""

import contextlib
import pathlib


def parents() -> dict[int, int]:
  """Every living process and its parent."""
  found = {}
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      # The name is in parentheses and may contain some itself.
      fields = (entry / "stat").read_text().rpartition(")")[2].split()
      if fields[0] != "Z":
        found[int(entry.name)] = int(fields[1])
  return found


def descendants(ancestor: int) -> set[int]:
  """The processes that a process started, that those started, and so on."""
  parent_of = parents()
  found: set[int] = set()
  new = {ancestor}
  while new:
    new = {one for one, parent in parent_of.items() if parent in new}
    found |= new
  return found
