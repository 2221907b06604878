"""Several processes that run one program: they start, agree and exchange data.

All processes execute the same lines in the same order, each on the devices of
its machine; an array on the mesh spans all of them. This module is for what a
host does by itself: the lead process writes and prints, each process grades its
share of the texts, and JSON values are exchanged. With a single process every
function here is the identity.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from reft_jax.errors import UserError
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.runtime import cluster

# Exit codes that one process may have alone: a crash, a lost worker, Ctrl-C.
_UNSHARED_EXIT_CODES = (1, 3, 130)

# The smallest message. Each size is compiled once, so sizes are few.
_MIN_BYTES = 1 << 12


def initialize(distributed: str) -> None:
  """Connects to the other processes of this run, if there are any.

  Call it before jax has devices.

  Args:
    distributed: `auto`, `off` or HOST:PORT, as for `cluster.detect`.

  Raises:
    UserError: the environment is incomplete, or the others cannot be found.
  """
  arguments = cluster.detect(distributed)
  if arguments is None:
    return
  try:
    jax.distributed.initialize(**arguments)
  except (RuntimeError, ValueError, OSError, ImportError) as error:
    reason = str(error).partition("\n")[0]
    raise UserError(
      f"distributed={distributed}: the processes of this run did not find each "
      f"other ({reason:.200}); set {cluster.COORDINATOR}=HOST:PORT, "
      f"{cluster.COUNT} and {cluster.INDEX}, or distributed=off for this "
      "process alone."
    ) from error
  if not is_lead():  # The lead warns for all.
    logging.getLogger("reft_jax").setLevel(logging.ERROR)


def is_multiprocess() -> bool:
  """Whether there are other processes."""
  # `process_count` starts jax, which `initialize` must precede.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lead() -> bool:
  """Whether this is the process that writes and prints."""
  return not is_multiprocess() or jax.process_index() == 0


def run(program: Callable[[], int]) -> int:
  """Runs a program that may call `initialize`; returns its exit code.

  If it fails in this process alone, with an exception or an exit code of
  _UNSHARED_EXIT_CODES, the others would wait for it forever. This process then
  ends at once, without jax's shutdown, so that the others notice.
  """
  try:
    code = program()
  except Exception:
    if not is_multiprocess():
      raise
    traceback.print_exc()
    code = 1
  if is_multiprocess() and code in _UNSHARED_EXIT_CODES:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
  return code


class KnownError(UserError):
  """Bad input that every process raises."""


def refuse(error: Exception) -> int:
  """Prints what is wrong with the input; returns the exit code.

  If every process knows of it, the lead prints and the code is 2. Otherwise
  this process prints, and its code makes `run` end it alone.
  """
  known = isinstance(error, KnownError) or not is_multiprocess()
  if is_lead() or not known:
    print(f"error: {error}", file=sys.stderr)
  return 2 if known else 1


def allgather_json(value: Any) -> list[Any]:
  """The value of every process, by process index; it must fit into JSON."""
  if not is_multiprocess():
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  room = max(_MIN_BYTES, 1 << int(sizes.max() - 1).bit_length())
  texts = multihost_utils.process_allgather(np.pad(data, (0, room - data.size)))
  return [
    json.loads(text[:size].tobytes())
    for text, size in zip(texts, sizes, strict=True)
  ]


def broadcast_from_lead(value: Any) -> Any:
  """The lead's value, in every process."""
  return allgather_json(value if is_lead() else None)[0]


def own_rows(rows: int) -> range:
  """The rows of a batch that this process grades."""
  if not is_multiprocess():
    return range(rows)
  return range(jax.process_index(), rows, jax.process_count())


def allgather_rows(own: Mapping[int, Any], rows: int) -> list[Any]:
  """The values of all rows in order, each from the process that has it.

  Args:
    own: the values of `own_rows(rows)`.
    rows: the number of rows.
  """
  gathered = allgather_json(list(own.items()))
  values = dict(itertools.chain.from_iterable(gathered))
  return [values[row] for row in range(rows)]


def allgather(tree: Any) -> Any:
  """Arrays of the mesh as NumPy arrays, complete in every process."""
  if not is_multiprocess():
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def barrier(name: str) -> None:
  """Returns once all processes are here, so that written files can be read."""
  if is_multiprocess():
    multihost_utils.sync_global_devices(name)


def open_to_append(path: pathlib.Path) -> TextIO:
  """Opens a text file for appending; only the lead's text is kept."""
  target = path if is_lead() else os.devnull
  return open(target, "a", encoding="utf-8")


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
  """Bad input that one process finds inside is raised in all of them.

  The code inside must not communicate: the others would wait for a process that
  has left it.

  Raises:
    KnownError: there are several processes, and one found bad input.
    UserError: there is one process; as it was raised.
  """
  own: Exception | None = None
  try:
    yield
  except (UserError, UnsupportedModelError) as error:
    if not is_multiprocess():
      raise
    own = error
  for index, text in enumerate(allgather_json(own and str(own))):
    if text is not None:
      raise KnownError(f"process {index}: {text}") from own


def check_equal_on_all(facts: Mapping[str, str]) -> None:
  """Checks that all processes were started with the same facts.

  Raises:
    KnownError: names the first fact that differs.
  """
  gathered = allgather_json(dict(facts))
  for name in facts:
    values = [theirs[name] for theirs in gathered]
    if len(set(values)) > 1:
      raise KnownError(
        f"the processes of this run differ in their {name} "
        f"({', '.join(values)[:200]}); start all of them with the same "
        "arguments, on the same files."
      )
