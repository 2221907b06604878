"""How the processes of a run find each other, from what their launcher says.

jax's own cluster detection is used where it serves: for SLURM, TPU slices, and
the coordinator of Open MPI before version 5 and of mpi4py. It does not know
MPICH, Intel MPI and newer Open MPI, and gives a process that is alone on its
node one of the node's devices. Where it detects nothing, each of several
processes would run by itself, all of them in one folder: that is an error here.
"""

import importlib.util
import os
import re
import sys
import zlib
from typing import Any, NamedTuple

from reft_jax.errors import UserError
from reft_jax.runtime import xla_flags

# How processes find each other where no launcher says so.
COORDINATOR, COUNT, INDEX = "REFT_COORDINATOR", "REFT_PROCESSES", "REFT_PROCESS"


class _Rank(NamedTuple):
  """One of MPI's processes, and its place among those of its node."""

  size: int
  rank: int
  local_size: int  # 0 if MPI does not say.
  local_rank: int

  def arguments(self) -> dict[str, Any]:
    """Several processes of a node drive one device each, a single one all."""
    ids = [self.local_rank] if self.local_size > 1 else []
    return {
      "num_processes": self.size,
      "process_id": self.rank,
      **_local_devices(ids),
    }


# The variables that MPI sets, in the order of _Rank.
_OPEN_MPI = (
  *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  *("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
# MPICH and Intel MPI.
_PMI = ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID")


def detect(distributed: str) -> dict[str, Any] | None:
  """Arguments of jax.distributed.initialize; None if this process is alone.

  Args:
    distributed: `off`, one process whatever the environment says; HOST:PORT,
      the address of process 0; or `auto`, the first of these in the
      environment: REFT_COORDINATOR (HOST:PORT), a launcher (SLURM's srun, MPI's
      mpirun), a TPU slice. With an address, REFT_PROCESSES is the number of
      processes and REFT_PROCESS the index of this one, unless MPI sets both.

  Raises:
    UserError: the environment is incomplete, or does not say where process 0
      is.
  """
  if distributed == "off":
    return None
  setting, address = "distributed", distributed
  if distributed == "auto":
    setting, address = COORDINATOR, os.environ.get(COORDINATOR, "")
  if not address:
    return _detect()
  if not re.fullmatch(r"[^\s/]+:[1-9]\d*", address):
    raise UserError(f"{setting}={address} is not HOST:PORT")
  return _at(address) | _identity()


def _at(address: str) -> dict[str, Any]:
  # jax's detection is off: it would choose this process's devices.
  return {
    "coordinator_address": address,
    "cluster_detection_method": "deactivate",
  }


def _identity() -> dict[str, Any]:
  """Which of how many processes this is, where an address is given."""
  mpi = _mpi()
  if mpi and not {COUNT, INDEX} & set(os.environ):
    return mpi.arguments()
  remedy = (
    f"with {COORDINATOR} or distributed=HOST:PORT, set {COUNT} to the number "
    f"of processes and {INDEX} to the index of this one, from 0."
  )
  return {
    "num_processes": _number(COUNT, remedy),
    "process_id": _number(INDEX, remedy),
  }


def _detect() -> dict[str, Any] | None:
  """As `detect`, where no address is given."""
  # SLURM_NTASKS would also be set in a batch script, which runs once.
  tasks = _launched("SLURM_STEP_NUM_TASKS", 1)
  # mpirun may start its processes by srun; srun may set PMI_SIZE itself.
  by_mpirun = {"OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"} & set(os.environ)
  if tasks > 1 and not by_mpirun:
    one_per_node = tasks == _launched("SLURM_STEP_NUM_NODES", 1)
    return _local_devices([] if one_per_node else None)
  if mpi := _mpi():
    return _mpi_coordinator(mpi) | mpi.arguments()
  return {} if _on_tpu_slice() else None


def _mpi() -> _Rank | None:
  """This process's rank, if MPI started several."""
  for size, rank, *local in (_OPEN_MPI, _PMI):
    if _launched(size, 1) > 1:
      local_size, local_rank = (_launched(name, 0) for name in local)
      return _Rank(_launched(size), _launched(rank), local_size, local_rank)
  return None


def _mpi_coordinator(mpi: _Rank) -> dict[str, Any]:
  """Where rank 0 is."""
  if "OMPI_MCA_orte_hnp_uri" in os.environ:  # Open MPI before version 5.
    return {"cluster_detection_method": "ompi"}
  if mpi.local_size == mpi.size:
    # The same port in all processes of a command, and another for another. From
    # 61440 on, Linux does not use ports by itself.
    command = "\0".join([os.getcwd(), *sys.argv])
    port = 61440 + zlib.crc32(os.fsencode(command)) % 4096
    return _at(f"127.0.0.1:{port}")
  if importlib.util.find_spec("mpi4py"):
    return {"cluster_detection_method": "mpi4py"}
  raise UserError(
    f"MPI started {mpi.size} processes and does not tell them where rank 0 is; "
    f"set {COORDINATOR}=HOST:PORT in all of them, the node of rank 0 and a "
    "port that is free there, or install mpi4py."
  )


def _local_devices(ids: list[int] | None) -> dict[str, Any]:
  """The devices of this node to drive: [] means all, None leaves it to jax."""
  chosen = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  return {} if chosen else {"local_device_ids": ids}


def _launched(name: str, default: int | None = None) -> int:
  """A number that a launcher sets."""
  if default is not None and not os.environ.get(name):
    return default
  return _number(
    name, "the launcher must set this to a number; else use distributed=off."
  )


def _number(name: str, remedy: str) -> int:
  text = os.environ.get(name, "")
  if not text.isdecimal():
    raise UserError(f"{name}={text!r}: {remedy}")
  return int(text)


def _on_tpu_slice() -> bool:
  """Whether jax's detection will find the workers of a TPU slice."""
  environ = os.environ
  if environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu", "tpu,cpu"):
    return False
  hosts = environ.get("TPU_WORKER_HOSTNAMES")
  if hosts is None:
    # jax asks the metadata server of a Cloud TPU VM. Notebooks have none.
    return xla_flags.has_tpu() and "COLAB_RELEASE_TAG" not in environ
  return "," in hosts
