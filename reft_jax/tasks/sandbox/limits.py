"""What a program may use."""

import dataclasses

WALL_FACTOR = 5.0
LEAST_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use, in either tier.

  Attributes:
    cpu_seconds: of its own process, so that a busy machine changes no score.
    memory_mb: beyond what its process has to begin with, in MiB.
  """

  cpu_seconds: float = 1.0
  memory_mb: int = 64

  @property
  def wall_seconds(self) -> float:
    """The backstop, for what uses no CPU time."""
    return WALL_FACTOR * self.cpu_seconds

  def after(self, cpu_seconds: float) -> "Limits":
    """What is left after so much CPU time; a tenth at least."""
    left = max(self.cpu_seconds - cpu_seconds, LEAST_SHARE * self.cpu_seconds)
    return dataclasses.replace(self, cpu_seconds=left)

  @property
  def memory_bytes(self) -> int:
    """`memory_mb` in bytes."""
    return self.memory_mb << 20
