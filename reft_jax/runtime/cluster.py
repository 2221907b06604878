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
from typing import Any

from reft_jax.errors import UserError
from reft_jax.runtime import xla_flags

# How processes find each other where no launcher says so.
COORDINATOR, COUNT, INDEX = "REFT_COORDINATOR", "REFT_PROCESSES", "REFT_PROCESS"
_LAUNCHED = "the launcher must set this to a number; else use distributed=off."
# jax's own detection would choose this process's devices.
_UNDETECTED = {"cluster_detection_method": "deactivate"}

# The variables that MPI sets: the number of processes and the rank of this one,
# in all and on its node. The latter two may be missing.
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
  at = {"coordinator_address": address} | _UNDETECTED
  mpi = _mpi()
  if mpi and not {COUNT, INDEX} & set(os.environ):
    return at | mpi[0]
  remedy = (
    f"with {COORDINATOR} or distributed=HOST:PORT, set {COUNT} to the number "
    f"of processes and {INDEX} to the index of this one, from 0."
  )
  count, index = (_number(name, remedy=remedy) for name in (COUNT, INDEX))
  return at | {"num_processes": count, "process_id": index}


def _detect() -> dict[str, Any] | None:
  """As `detect`, where no address is given."""
  # SLURM_NTASKS would also be set in a batch script, which runs once.
  tasks = _number("SLURM_STEP_NUM_TASKS", "1")
  # mpirun may start its processes by srun; srun may set PMI_SIZE itself.
  by_mpirun = {"OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"} & set(os.environ)
  if tasks > 1 and not by_mpirun:
    one_per_node = tasks == _number("SLURM_STEP_NUM_NODES", "1")
    return _local_devices([] if one_per_node else None)
  if mpi := _mpi():
    return _mpi_coordinator(*mpi) | mpi[0]
  return {} if _on_tpu_slice() else None


def _mpi() -> tuple[dict[str, Any], bool] | None:
  """Which process this is, if MPI started several; whether on one node."""
  for names in (_OPEN_MPI, _PMI):
    if _number(names[0], "1") > 1:
      size, rank = map(_number, names[:2])
      local_size, local_rank = (_number(name, "0") for name in names[2:])
      # Several processes of a node drive one device each, a single one all.
      devices = _local_devices([local_rank] if local_size > 1 else [])
      which = {"num_processes": size, "process_id": rank} | devices
      return which, local_size == size
  return None


def _mpi_coordinator(which: dict[str, Any], one_node: bool) -> dict[str, Any]:
  """Where rank 0 is; the arguments are those that `_mpi` returns."""
  if "OMPI_MCA_orte_hnp_uri" in os.environ:  # Open MPI before version 5.
    return {"cluster_detection_method": "ompi"}
  if one_node:
    # The same port in all processes of a command, and another for another. From
    # 61440 on, Linux does not use ports by itself.
    command = "\0".join([os.getcwd(), *sys.argv])
    port = 61440 + zlib.crc32(os.fsencode(command)) % 4096
    return {"coordinator_address": f"127.0.0.1:{port}"} | _UNDETECTED
  if importlib.util.find_spec("mpi4py"):
    return {"cluster_detection_method": "mpi4py"}
  raise UserError(
    f"MPI started {which['num_processes']} processes and does not tell them "
    f"where rank 0 is; set {COORDINATOR}=HOST:PORT in all of them, the node of "
    "rank 0 and a port that is free there, or install mpi4py."
  )


def _local_devices(ids: list[int] | None) -> dict[str, Any]:
  """The devices of this node to drive: [] means all, None leaves it to jax."""
  chosen = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  return {} if chosen else {"local_device_ids": ids}


def _number(name: str, default: str = "", remedy: str = _LAUNCHED) -> int:
  """A number of the environment; the default if it is empty or not set."""
  text = os.environ.get(name) or default
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
