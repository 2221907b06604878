"""A run's metrics: one JSON object a line, and TensorBoard."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from reft_jax import errors, files

FILE = "metrics.jsonl"


class Recorder:
  """Writes a run's metrics into its folder.

  A row is a JSON object: `stage`, `step` (steps done in that stage) and the
  metrics as numbers; nan and inf, which JSON lacks, become null. Of several
  processes only the lead writes; the others have a `Silent` recorder.
  """

  def __init__(
    self, directory: str | os.PathLike[str], *, tensorboard: bool = True
  ):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self._path = directory / FILE
    # A row appended to a line torn by a crash would be lost.
    files.replace(self._path, _lines(self._path))
    self._file = self._path.open("ab")
    self._board: Any = None
    if tensorboard:
      import tensorboardX  # Slow, and only needed here.

      board = str(directory / "tensorboard")
      self._board = tensorboardX.SummaryWriter(board, write_to_disk=True)

  def log(self, step: int, values: Mapping[str, float], *, stage: str) -> None:
    """Appends one row; it survives this process when this returns."""
    finite = {k: float(v) for k, v in values.items() if math.isfinite(v)}
    row = {"stage": stage, "step": int(step)}
    row |= {name: finite.get(name) for name in values}
    self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
    self._file.flush()
    if self._board:
      for name, value in finite.items():
        self._board.add_scalar(f"{stage}/{name}", value, step)

  def rewind(self, stage: str, next_step: int) -> None:
    """Drops a stage's rows from `next_step` on: these steps are run again.

    The file is replaced at once: a crash leaves the old or the new one.
    TensorBoard keeps the old rows.
    """
    self._file.close()
    rows = zip(_lines(self._path), read(self._path.parent), strict=True)
    kept = (
      line
      for line, row in rows
      if row["stage"] != stage or row["step"] < next_step
    )
    files.replace(self._path, kept)
    self._file = self._path.open("ab")

  def close(self) -> None:
    """Flushes and closes; nothing can be logged afterwards."""
    self._file.close()
    if self._board:
      self._board.close()


class Silent:
  """The recorder of a process that writes nothing."""

  def log(self, step: int, values: Mapping[str, float], *, stage: str) -> None:
    """As `Recorder.log`."""

  def rewind(self, stage: str, next_step: int) -> None:
    """As `Recorder.rewind`."""

  def close(self) -> None:
    """As `Recorder.close`."""


def read(directory: str | os.PathLike[str]) -> list[dict]:
  """A run's rows in the order they were logged; null is read as nan.

  A last line without its end, torn by a crash, is left out.

  Raises:
    UserError: a line is not JSON.
  """
  path = pathlib.Path(directory) / FILE
  rows = []
  for number, line in enumerate(_lines(path), start=1):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.UserError(f"{path} line {number}: not JSON") from error
    rows.append({k: math.nan if v is None else v for k, v in row.items()})
  return rows


def _lines(path: pathlib.Path) -> list[bytes]:
  """The complete lines of a file; none if it does not exist."""
  if not path.exists():
    return []
  with path.open("rb") as file:
    return [line for line in file if line.endswith(b"\n")]
