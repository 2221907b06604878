"""The time and memory that a program may use."""

import dataclasses

WALL_FACTOR = 5.0
MIN_REMAINDER = 0.1


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
    return WALL_FACTOR * self.cpu_seconds

  def after(self, cpu_seconds: float) -> "Limits":
    """The limits after CPU time was spent; at least a tenth remains."""
    left = max(self.cpu_seconds - cpu_seconds, MIN_REMAINDER * self.cpu_seconds)
    return dataclasses.replace(self, cpu_seconds=left)

  @property
  def memory_bytes(self) -> int:
    """`memory_mb` in bytes."""
    return self.memory_mb << 20
