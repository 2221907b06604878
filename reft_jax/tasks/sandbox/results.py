"""What a program may use, and how it ended."""

import dataclasses
import enum


@dataclasses.dataclass(frozen=True)
class Limits:
  """A program's limits, in either tier.

  Attributes:
    cpu_seconds: CPU time of its process, not wall time: a busy machine must not
      change a score.
    memory_mb: MiB beyond the memory that its process starts with.
  """

  cpu_seconds: float = 1.0
  memory_mb: int = 64

  @property
  def wall_seconds(self) -> float:
    """The backstop for programs that wait and use no CPU time."""
    return 5.0 * self.cpu_seconds

  @property
  def memory_bytes(self) -> int:
    """`memory_mb` in bytes."""
    return self.memory_mb << 20

  def after(self, cpu_seconds: float) -> "Limits":
    """The limits after CPU time was spent; at least a tenth remains."""
    left = max(self.cpu_seconds - cpu_seconds, 0.1 * self.cpu_seconds)
    return dataclasses.replace(self, cpu_seconds=left)


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
