"""What is known of a program that was run."""

import dataclasses
import enum


class Status(enum.Enum):
  """How a program ended."""

  RETURNED = "returned"
  FAILED = "failed"  # Not Python, an exception, no solution(), too much memory.
  TIMED_OUT = "timed out"  # Its CPU time, or the wall time behind it, was up.
  UNSUPPORTED = "unsupported"  # It needs a tier that this machine has not.


@dataclasses.dataclass(frozen=True)
class Result:
  """How a program ended and what its `solution()` returned.

  Everything here is a plain scalar that was read out where the program ran; no
  object of the program's own ever reaches the trainer.

  Attributes:
    status: the fields after `tier` mean something if it RETURNED.
    tier: the last tier that ran it, `monty` or `cpython`.
    kind: of the returned object: `int`, `float`, `exact` (Fraction, Decimal or
      a number of sympy's), `bool`, `text`, `none` or `other`.
    number: what `float` made of it, nan and inf included; None if it raised.
    text: what `str` made of it, cut at 200 characters; None if it raised.
    reason: why it failed, for people, such as `ZeroDivisionError`.
  """

  status: Status
  tier: str
  kind: str = "none"
  number: float | None = None
  text: str | None = None
  reason: str = ""
