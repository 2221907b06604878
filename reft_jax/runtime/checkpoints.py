"""Orbax checkpoints that a killed run finds again, whole or not at all."""

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
  """The newest states of one loop, and what the host must remember of it.

  Args:
    directory: where the checkpoints lie; made if missing.
    keep: how many are kept, the newest.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int):
    self._directory = pathlib.Path(directory).resolve()
    self._keep = keep
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return _Manager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=self._keep, create=True, cleanup_tmp_directories=True
      ),
    )

  def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
    """Saves in the background; durable after `wait`, `close` or a next save.

    Steps must rise. The state may be donated as soon as this returns. All
    processes call this with their shards; the notes are the first one's.
    """
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
      ),
    )
    if not saved:  # Orbax refuses a step below the newest without a word.
      raise RuntimeError(
        f"{self._directory}: step {step} was not saved after {self.newest}"
      )

  @property
  def newest(self) -> int:
    """The last step saved, 0 where there is none."""
    return self._manager.latest_step() or 0

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest usable state, placed as `like` is, and its notes.

    A checkpoint that cannot be read is set aside as `damaged-...` and the one
    before it is tried. None where there never was a checkpoint.

    Raises:
      UserError: if there are checkpoints and none can be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._newest(
      state=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore()
    )
    return None if restored is None else (restored.state, restored.notes)

  def notes(self) -> dict[str, Any] | None:
    """The notes beside the newest state; as `restore`, and far cheaper."""
    restored = self._newest(notes=ocp.args.JsonRestore())
    return None if restored is None else restored.notes

  def _newest(self, **parts: Any) -> Any | None:
    """The wanted parts of the newest checkpoint that can be read.

    Newer ones are set aside once an older one is read. If none can be, as
    when a program has changed, nothing is touched.
    """
    self.wait()
    unread: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      found, reason = None, ""
      # Not by the manager: it has a process that could read wait for all.
      with _closing(ocp.CompositeCheckpointHandler()) as reader:
        try:
          found = reader.restore(
            self._directory / str(step), args=ocp.args.Composite(**parts)
          )
        except Exception as error:  # Orbax has no common type for damage.
          reason = str(error) or type(error).__name__
      if reason := max(multihost.allgather_json(reason)):  # Of any of them.
        unread[step] = reason
        continue
      for damaged, error in unread.items():
        _log.warning(
          "%s: checkpoint %d is damaged and set aside: %.200s",
          self._directory,
          damaged,
          error,
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
    self._manager = self._open()

  def wait(self) -> None:
    """Returns when everything saved so far is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases Orbax's threads."""
    self._manager.close()


class _Manager(ocp.CheckpointManager):
  """Orbax's, but that it never asks whether to stop.

  Our loops do, with numbers of their own: jax has processes agree on such a
  number, and would miss it if Orbax asked for other numbers in between.
  """

  def reached_preemption(self, step: int) -> bool:
    """No."""
    return False


def shapes(folder: pathlib.Path) -> Any:
  """The shapes of a saved state's arrays, without reading them.

  Args:
    folder: one state, such as a run's `stages/reft/checkpoints/40/state`.

  Raises:
    UserError: no state can be read there.
  """
  try:
    with _closing(ocp.PyTreeCheckpointHandler()) as reader:
      tree = reader.metadata(folder.resolve()).tree
  except Exception as error:  # Orbax has no common type for damage.
    raise _unreadable(folder, error) from error
  return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def read(folder: pathlib.Path, like: Any) -> Any:
  """The parts of a saved state that `like` holds, placed as it says.

  Nothing is tidied up, unlike by `Checkpoints`: a run may be writing there.

  Args:
    folder: as in `shapes`.
    like: ShapeDtypeStructs with shardings, in a part of the state's tree.

  Raises:
    UserError: they cannot be read.
  """
  try:
    with _closing(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
        folder.resolve(),
        args=ocp.args.PyTreeRestore(
          item=like,
          restore_args=ocp.checkpoint_utils.construct_restore_args(like),
          partial_restore=True,
        ),
      )
  except Exception as error:
    raise _unreadable(folder, error) from error


class _Loop(asyncio.SelectorEventLoop):
  """Waits for what still runs in it before it is closed."""

  def close(self) -> None:
    if not self.is_closed():
      self.run_until_complete(self._end())
    super().close()

  async def _end(self) -> None:
    # Never cancelled: a read of TensorStore's that is can hang for good.
    tasks = asyncio.all_tasks(self) - {asyncio.current_task()}
    await asyncio.gather(*tasks, return_exceptions=True)
    await self.shutdown_default_executor()


@contextlib.contextmanager
def _closing(handler: Any) -> Iterator[Any]:
  """Reads by one of Orbax's handlers: a Checkpointer warns of a mere part.

  Where one array cannot be read Orbax closes its event loop under the reads
  of the others, and each of them is told of on the terminal. So its loops are
  of those that wait.
  """
  loops = mock.patch.object(asyncio, "new_event_loop", _Loop)
  with loops, contextlib.closing(handler):
    yield handler


def _unreadable(folder: pathlib.Path, error: Exception) -> UserError:
  reason = str(error).partition("\n")[0]
  return UserError(
    f"{folder}: no checkpoint that can be read ({reason:.200}); give another."
  )
