"""What a hostile program is and what may come of it."""

import dataclasses
import textwrap

# What is seen only if an attack worked.
HARM = "42"

FAILED = "failed"
TIMED_OUT = "timed out"
STOPPED = (FAILED, TIMED_OUT)


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that a policy might write to do harm.

  Attributes:
    name: unique among all of them.
    source: the whole text that is handed to the executor.
    may: the outcomes that do no harm: `failed`, `timed out`, the number that
      was returned, or the kind of a result that is no number. An attack that
      works returns 42, which is never among them.
  """

  name: str
  source: str
  may: frozenset[str]


def bodies(*may: str, **sources: str) -> tuple[Program, ...]:
  """Programs by name, each written as the body of its solution()."""
  return modules(
    *may,
    **{
      name: "def solution():\n"
      + textwrap.indent(textwrap.dedent(body).strip("\n"), "  ")
      for name, body in sources.items()
    },
  )


def modules(*may: str, **sources: str) -> tuple[Program, ...]:
  """Programs by name, each written in full."""
  return tuple(
    Program(name, textwrap.dedent(source), frozenset(may))
    for name, source in sources.items()
  )
