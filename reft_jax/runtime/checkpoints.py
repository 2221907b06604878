"""Orbax checkpoints: a killed run finds a complete one or none."""

import asyncio
import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import orbax.checkpoint as ocp

from reft_jax.errors import UserError
from reft_jax.runtime import multihost

_log = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one loop: its state, and notes of the host in JSON.

  Args:
    directory: of the checkpoints; made if missing.
    keep: how many checkpoints to keep, the newest.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int):
    self._directory = pathlib.Path(directory).resolve()
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, cleanup_tmp_directories=True
    )
    self._manager = _Manager(self._directory, options=self._options)

  def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
    """Saves in the background; durable after `wait`, `close` or the next save.

    Steps must rise. The state may be donated as soon as this returns. All
    processes call this, each saves its shards, and the lead its notes.
    """
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
      ),
    )
    if not saved:  # Orbax silently refuses a step below the newest.
      raise RuntimeError(
        f"{self._directory}: step {step} was not saved after {self.newest}"
      )

  @property
  def newest(self) -> int:
    """The last step saved, 0 if there is none."""
    return self._manager.latest_step() or 0

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest readable state, sharded as `like`, and its notes.

    A damaged checkpoint is reported, renamed to `damaged-...`, and the one
    before it is tried. Returns None if there is no checkpoint.

    Raises:
      UserError: there are checkpoints, and none can be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._newest(
      state=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore()
    )
    return None if restored is None else (restored.state, restored.notes)

  def notes(self) -> dict[str, Any] | None:
    """As `restore`, without reading the state."""
    restored = self._newest(notes=ocp.args.JsonRestore())
    return None if restored is None else restored.notes

  def _newest(self, **parts: Any) -> Any | None:
    """These parts of the newest checkpoint that all processes can read.

    Newer ones are set aside after an older one was read. If none can be read,
    as when the program has changed, nothing is renamed.
    """
    self.wait()
    unread: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      found, reason = None, ""
      # The manager would have processes that can read wait for one that cannot.
      with _closing(ocp.CompositeCheckpointHandler()) as reader:
        try:
          found = reader.restore(
            self._directory / str(step), args=ocp.args.Composite(**parts)
          )
        except Exception as error:  # Orbax has no common type for damage.
          reason = str(error) or type(error).__name__
      if reason := max(multihost.allgather_json(reason)):  # Any process's.
        unread[step] = reason
        continue
      for damaged, why in unread.items():
        _log.warning(
          "%s: checkpoint %d is damaged and set aside: %.200s",
          self._directory,
          damaged,
          why,
        )
        self._set_aside(damaged)
      return found
    if unread:
      reason = next(iter(unread.values())).partition("\n")[0]
      raise UserError(
        f"{self._directory}: none of the checkpoints {list(unread)} can be "
        f"read ({reason:.200}); remove the run's folder to start over."
      )
    return None

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    multihost.barrier("closed")
    if multihost.is_lead():
      name = f"damaged-{self._directory.name}-{step}-{int(time.time())}"
      (self._directory / str(step)).rename(self._directory.parent / name)
    multihost.barrier("set aside")
    self._manager = _Manager(self._directory, options=self._options)

  def wait(self) -> None:
    """Returns once everything saved so far is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases Orbax's threads."""
    self._manager.close()


class _Manager(ocp.CheckpointManager):
  """Orbax's, but it leaves preemption to `runtime.preemption`.

  jax has the processes agree on a number at which to stop. The numbers that
  Orbax would ask about in between would make them miss it.
  """

  def reached_preemption(self, step: int) -> bool:
    """Always False."""
    return False


def shapes(folder: pathlib.Path) -> Any:
  """The shapes of a saved state's arrays, without reading them.

  Args:
    folder: of one state, such as `RUN/stages/reft/checkpoints/40/state`.

  Raises:
    UserError: no state can be read there.
  """
  with _reading(folder) as reader:
    tree = reader.metadata(folder.resolve()).tree
  return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def read(folder: pathlib.Path, like: Any) -> Any:
  """The parts of a saved state that `like` has, sharded as `like`.

  Unlike `Checkpoints`, this removes nothing: a run may be writing there.

  Args:
    folder: as in `shapes`.
    like: a part of the state's tree, of ShapeDtypeStructs with shardings.

  Raises:
    UserError: they cannot be read.
  """
  wanted = ocp.args.PyTreeRestore(
    item=like,
    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
    partial_restore=True,
  )
  with _reading(folder) as reader:
    return reader.restore(folder.resolve(), args=wanted)


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[ocp.PyTreeCheckpointHandler]:
  """A reader of one saved state, whose errors become a UserError."""
  try:
    with _closing(ocp.PyTreeCheckpointHandler()) as reader:
      yield reader
  except Exception as error:  # Orbax has no common type for damage.
    reason = str(error).partition("\n")[0]
    raise UserError(
      f"{folder}: no checkpoint that can be read ({reason:.200}); give another."
    ) from error


class _Loop(asyncio.SelectorEventLoop):
  """An event loop that finishes its tasks before it closes."""

  def close(self) -> None:
    if not self.is_closed():
      self.run_until_complete(self._finish())
    super().close()

  async def _finish(self) -> None:
    # Not cancelled: a cancelled read of TensorStore's may hang forever.
    tasks = asyncio.all_tasks(self) - {asyncio.current_task()}
    await asyncio.gather(*tasks, return_exceptions=True)
    await self.shutdown_default_executor()


@contextlib.contextmanager
def _closing(handler: Any) -> Iterator[Any]:
  """Opens one of Orbax's handlers for reading, and closes it.

  A handler, not a Checkpointer, which warns if only a part is read. If one
  array cannot be read, Orbax closes its event loop while the other arrays are
  being read, and each of them prints an error. `_Loop` waits for them.
  """
  loops = mock.patch.object(asyncio, "new_event_loop", _Loop)
  with loops, contextlib.closing(handler):
    yield handler
