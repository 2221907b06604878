"""Several processes that run one program: they join, agree and exchange.

Each process drives the devices of its machine, and all of them run the same
lines in the same order: an array on the mesh is theirs together. What a host
does by itself is shared out here. The first process alone writes and prints;
text is graded by all, each its share; what one process finds out, the others
are told. With a single process every function here is the identity.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import itertools
import json
import logging
import os
import pathlib
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from reft_jax.errors import UserError
from reft_jax.models.errors import UnsupportedModelError

# How processes find each other where nothing else tells them.
COORDINATOR, COUNT, INDEX = "REFT_COORDINATOR", "REFT_PROCESSES", "REFT_PROCESS"

# Exit codes of what one process does not share: a crash, a worker lost, Ctrl-C.
ALONE = (1, 3, 130)

_LEAST_BYTES = 1 << 12  # Few sizes of messages, few compilations.

_looks = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class _Rank:
  """Which process this is, as the launcher that started it says."""

  size: int
  rank: int
  local_size: int  # How many are on this node; 0 if it does not say.
  local_rank: int


# Variables of a launcher's processes, in the order of _Rank.
_OPEN_MPI = (
  *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  *("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
# MPICH and Intel MPI.
_PMI = ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID")


def initialize(how: str) -> None:
  """Joins the other processes of this run, if there are any.

  To be called before jax has devices. `auto` takes, in this order,
  REFT_COORDINATOR (HOST:PORT of the first process), with REFT_PROCESSES (how
  many) and REFT_PROCESS (which one this is, from 0) or what MPI says of both;
  what SLURM's srun or MPI's mpirun tell their processes; what a TPU slice tells
  its workers. Without any of these there is one process.

  Args:
    how: `auto`; `off`, one process whatever the environment says; or HOST:PORT,
      in the place of REFT_COORDINATOR.

  Raises:
    UserError: the environment says half of it, or the others cannot be found.
  """
  if how == "off":
    return
  setting, address = "distributed", how
  if how == "auto":
    setting, address = COORDINATOR, os.environ.get(COORDINATOR)
  if address:
    if not re.fullmatch(r"[^\s/]+:[1-9]\d*", address):
      raise UserError(f"{setting}={address} is not HOST:PORT")
    arguments = _at(address) | _identity()
  else:
    arguments = _detected()
  if arguments is None:
    return
  try:
    jax.distributed.initialize(**arguments)
  except (RuntimeError, ValueError, OSError, ImportError) as error:
    reason = str(error).partition("\n")[0]
    raise UserError(
      f"distributed={how}: the processes of this run did not find each other "
      f"({reason:.200}); set {COORDINATOR}=HOST:PORT, {COUNT} and {INDEX}, or "
      "distributed=off for this process alone."
    ) from error
  if not is_lead():  # The first warns for all.
    logging.getLogger(__package__).setLevel(logging.ERROR)


def _at(address: str) -> dict[str, Any]:
  """To be called with a coordinator; jax's detection would choose devices."""
  return {
    "coordinator_address": address,
    "cluster_detection_method": "deactivate",
  }


def _identity() -> dict[str, Any]:
  """Which of how many processes this is, where an address is given."""
  mpi = _mpi()
  if mpi and not {COUNT, INDEX} & set(os.environ):
    return _ranked(mpi)
  remedy = (
    f"with {COORDINATOR} or distributed=HOST:PORT, {COUNT} must say how many "
    f"processes there are, and {INDEX} which of them this is, from 0."
  )
  return {
    "num_processes": _number(COUNT, remedy),
    "process_id": _number(INDEX, remedy),
  }


def _detected() -> dict[str, Any] | None:
  """How to join the others that the environment tells of, if it does."""
  tasks = _launched("SLURM_STEP_NUM_TASKS", 1)
  # mpirun may start its processes by srun; srun may set PMI_SIZE itself.
  by_mpirun = {"OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"} & set(os.environ)
  if tasks > 1 and not by_mpirun:
    alone = tasks == _launched("SLURM_STEP_NUM_NODES", 1)
    return _devices([] if alone else None)
  if mpi := _mpi():
    return _coordinator(mpi) | _ranked(mpi)
  return {} if _on_slice() else None


def _mpi() -> _Rank | None:
  """What MPI says, where it started several processes."""
  for size, rank, *local in (_OPEN_MPI, _PMI):
    if _launched(size, 1) > 1:
      here = [_launched(name, 0) for name in local]
      return _Rank(_launched(size), _launched(rank), *here)
  return None


def _coordinator(mpi: _Rank) -> dict[str, Any]:
  """Where the first of MPI's processes is."""
  if "OMPI_MCA_orte_hnp_uri" in os.environ:  # Before Open MPI 5.
    return {"cluster_detection_method": "ompi"}
  if mpi.local_size == mpi.size:
    # The same for one command, and none that Linux hands out by itself.
    command = "\0".join([os.getcwd(), *sys.argv])
    port = 61440 + zlib.crc32(os.fsencode(command)) % 4096
    return _at(f"127.0.0.1:{port}")
  if importlib.util.find_spec("mpi4py"):
    return {"cluster_detection_method": "mpi4py"}
  raise UserError(
    f"MPI started {mpi.size} processes and does not tell them where the first "
    f"is; set {COORDINATOR}=HOST:PORT for all of them, the node of rank 0 and "
    "a port that is free there, or install mpi4py."
  )


def _ranked(mpi: _Rank) -> dict[str, Any]:
  """Several processes of a node drive one device each, a single one all."""
  return {
    "num_processes": mpi.size,
    "process_id": mpi.rank,
    **_devices([mpi.local_rank] if mpi.local_size > 1 else []),
  }


def _devices(ids: list[int] | None) -> dict[str, Any]:
  """Those of this node to drive: [] is all, None is left to jax."""
  chosen = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  return {} if chosen else {"local_device_ids": ids}


def _launched(name: str, missing: int | None = None) -> int:
  """A number that a launcher sets."""
  if missing is not None and not os.environ.get(name):
    return missing
  return _number(
    name, "what starts the processes sets a number; else distributed=off."
  )


def _number(name: str, remedy: str) -> int:
  text = os.environ.get(name, "")
  if not text.isdecimal():
    raise UserError(f"{name}={text!r}: {remedy}")
  return int(text)


def _on_slice() -> bool:
  """Whether jax's own detection will find the workers of a TPU slice."""
  environ = os.environ
  if environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu", "tpu,cpu"):
    return False
  if "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
    return True
  # A Cloud TPU VM asks its metadata server, which notebooks do not have.
  on_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(
    on_tpu
    and importlib.util.find_spec("libtpu")
    and environ.get("TPU_WORKER_HOSTNAMES") is None
    and "COLAB_RELEASE_TAG" not in environ
  )


def is_initialized() -> bool:
  """Whether `join` has joined anything, if only this process."""
  return jax.distributed.is_initialized()


def is_multiprocess() -> bool:
  """Whether there are other processes."""
  return is_initialized() and jax.process_count() > 1


def is_lead() -> bool:
  """Whether this is the process that writes and prints."""
  return not is_multiprocess() or jax.process_index() == 0


def run(program: Callable[[], int]) -> int:
  """Runs a program that may `join`, and leaves the others; its exit code.

  Where it fails alone, with one of ALONE or an exception, the others wait for
  it in vain: this process ends at once, so that they notice.
  """
  try:
    code = program()
  except Exception:
    if not is_multiprocess():
      raise
    traceback.print_exc()
    code = 1
  if is_multiprocess() and code in ALONE:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  if is_initialized():
    jax.distributed.shutdown()
  return code


class KnownError(UserError):
  """Bad input that all processes know of."""


def refuse(error: Exception) -> int:
  """Prints what is wrong with the input; the exit code.

  Once, and 2, where all processes know of it; else this process says it and
  ends alone.
  """
  known = isinstance(error, KnownError) or not is_multiprocess()
  if is_lead() or not known:
    print(f"error: {error}", file=sys.stderr)
  return 2 if known else ALONE[0]


def allgather_json(value: Any) -> list[Any]:
  """What each process has to say, told to all; whatever JSON can hold."""
  if not is_multiprocess():
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  room = max(_LEAST_BYTES, 1 << int(sizes.max() - 1).bit_length())
  texts = multihost_utils.process_allgather(np.pad(data, (0, room - data.size)))
  return [
    json.loads(text[:size].tobytes())
    for text, size in zip(texts, sizes, strict=True)
  ]


def broadcast_from_lead(value: Any) -> Any:
  """What the first process says."""
  return allgather_json(value if is_lead() else None)[0]


def agree(flag: bool) -> bool:
  """Whether any process says so."""
  return any(allgather_json(bool(flag)))


def rows_by_process(rows: int) -> list[range]:
  """Which of some rows are whose to grade, process by process."""
  count = jax.process_count() if is_multiprocess() else 1
  return [range(index, rows, count) for index in range(count)]


def own_rows(rows: int) -> range:
  """Which of some rows are this process's to grade."""
  return rows_by_process(rows)[jax.process_index() if is_multiprocess() else 0]


def allgather_rows(mine: Mapping[int, Any], rows: int) -> list[Any]:
  """What each found of its `share`, told to all, row by row."""
  found = [None] * rows
  told = allgather_json([mine[row] for row in own_rows(rows)])
  for theirs, values in zip(rows_by_process(rows), told, strict=True):
    for row, value in zip(theirs, values, strict=True):
      found[row] = value
  return found


def allgather(tree: Any) -> Any:
  """Arrays of the mesh in each process's memory, with all their rows."""
  if not is_multiprocess():
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def barrier(what: str) -> None:
  """Returns when all processes have come here, so that files can be read."""
  if is_multiprocess():
    multihost_utils.sync_global_devices(what)


def open_to_append(path: pathlib.Path) -> TextIO:
  """A text file to be added to; what others than the first add goes nowhere."""
  where = path if is_lead() else os.devnull
  return open(where, "a", encoding="utf-8")


def asked_to_stop() -> bool:
  """Whether all are to stop now, since one of them got SIGTERM.

  True once, and in the same step of all: each step must ask. Where nothing is
  joined, SIGTERM is not listened to here.
  """
  return is_initialized() and multihost_utils.reached_preemption_sync_point(
    next(_looks)
  )


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
  """What is bad input for one process ends all of them.

  Inside, nothing may be exchanged.

  Raises:
    KnownError: where there are several, in all of them.
    UserError: where there is one, as it was raised.
  """
  mine: Exception | None = None
  try:
    yield
  except (UserError, UnsupportedModelError) as error:
    mine = error
  if mine is not None and not is_multiprocess():
    raise mine
  for index, text in enumerate(allgather_json(mine and str(mine))):
    if text is not None:
      raise KnownError(f"process {index}: {text}") from mine


def check_equal_on_all(facts: Mapping[str, str]) -> None:
  """All processes must have been given the same.

  Raises:
    KnownError: names the first fact that differs.
  """
  told = allgather_json(dict(facts))
  for name in facts:
    by_process = [theirs[name] for theirs in told]
    if len(set(by_process)) > 1:
      raise KnownError(
        f"the processes of this run differ in their {name} "
        f"({', '.join(by_process)[:200]}); start all of them with the same "
        "arguments, on the same files."
      )
