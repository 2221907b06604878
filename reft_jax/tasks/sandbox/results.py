"""The result of a program."""

import dataclasses
import enum


class Status(enum.Enum):
  """How a program ended."""

  RETURNED = "returned"
  FAILED = "failed"  # Not Python, an exception, no solution(), too much memory.
  TIMED_OUT = "timed out"  # In CPU time or wall time.
  UNSUPPORTED = "unsupported"  # It needs a tier that this machine lacks.


@dataclasses.dataclass(frozen=True)
class Result:
  """How a program ended and what its `solution()` returned.

  All fields are plain scalars, read in the process of the program: its own
  objects never reach the trainer, where their methods could run.

  Attributes:
    status: how it ended; `kind`, `number` and `text` are set if it RETURNED.
    tier: the last tier that ran it, `monty` or `cpython`.
    kind: of the returned object: `int`, `float`, `exact` (Fraction, Decimal or
      a sympy number), `bool`, `text`, `none` or `other`.
    number: `float` of the object, nan and inf included; None if that raised.
    text: `str` of the object, cut at 200 characters; None if that raised.
    reason: why it failed, for people, such as `ZeroDivisionError`.
  """

  status: Status
  tier: str
  kind: str = "none"
  number: float | None = None
  text: str | None = None
  reason: str = ""
