"""How a process finds the others of its run, from its environment."""

import os
import re
import sys
from collections.abc import Mapping

import pytest

from reft_jax.errors import UserError
from reft_jax.runtime import cluster

# Beginnings of the variables that launchers set.
LAUNCHERS = (
  "REFT_",
  "SLURM_",
  "OMPI_",
  "PMI_",
  "MPI_",
  "TPU_",
  "JAX_LOCAL_DEVICE_IDS",
)
NAMED = {"REFT_PROCESSES": "4", "REFT_PROCESS": "3"}
NO_ADDRESS = "MPI started 2 processes .* set REFT_COORDINATOR=HOST:PORT"
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}


def mpirun(
  variables: tuple[str, ...], rank: int, local_size: int, size: int = 2
) -> dict[str, str]:
  """The variables of a process of MPI's."""
  numbers = (size, rank, local_size, rank % local_size)
  return dict(zip(variables, map(str, numbers), strict=True))


def at(address: str, size: int, rank: int) -> dict:
  """jax's arguments without its own detection."""
  return {
    "coordinator_address": address,
    "num_processes": size,
    "process_id": rank,
    "cluster_detection_method": "deactivate",
  }


@pytest.fixture
def detect(monkeypatch):
  """`detect(environment, distributed)` with no other launcher's variables."""

  def act(environment: Mapping[str, str], distributed: str = "auto"):
    for name in [*os.environ]:
      if name.startswith(LAUNCHERS):
        monkeypatch.delenv(name)
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    return cluster.detect(distributed)

  return act


def test_an_address_and_who_overrides_it(detect):
  named = NAMED | {"REFT_COORDINATOR": "node0:8476"}
  assert detect(named) == at("node0:8476", 4, 3)
  assert detect(named, "node9:1234") == at("node9:1234", 4, 3)
  assert detect(named, "off") is None


@pytest.mark.parametrize(
  ("environment", "arguments"),
  [
    # Left to jax.
    (SRUN, {"local_device_ids": []}),
    (SRUN | {"PMI_SIZE": "2", "PMI_RANK": "0"}, {"local_device_ids": []}),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "16"}, {"local_device_ids": None}),
    (SRUN | {"JAX_LOCAL_DEVICE_IDS": "4,5"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": ""}, {}),
    # Alone.
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": ""}, None),
    ({}, None),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"SLURM_NTASKS": "8"}, None),  # A batch script's own shell.
    (mpirun(cluster._OPEN_MPI, 0, 1, size=1), None),
    (mpirun(cluster._PMI, 0, 1, size=1), None),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
  ],
)
def test_what_is_detected(detect, environment, arguments):
  assert detect(environment) == arguments


@pytest.mark.parametrize("colab", [{}, {"COLAB_RELEASE_TAG": "1"}])
def test_the_chips_of_a_tpu_vm(detect, monkeypatch, colab):
  monkeypatch.setattr(cluster.xla_flags, "has_tpu", lambda: True)
  assert detect({"JAX_PLATFORMS": "tpu"} | colab) == (None if colab else {})


@pytest.mark.parametrize("variables", [cluster._OPEN_MPI, cluster._PMI])
@pytest.mark.parametrize(("local_size", "ids"), [(1, []), (2, [1])])
def test_mpi_says_who_is_who(detect, variables, local_size, ids):
  environment = mpirun(variables, 3, local_size, size=4) | SRUN
  environment["REFT_COORDINATOR"] = "node0:8476"
  expected = at("node0:8476", 4, 3)
  assert detect(environment) == expected | {"local_device_ids": ids}
  assert detect(environment | {"JAX_LOCAL_DEVICE_IDS": "7"}) == expected


@pytest.mark.parametrize("variables", [cluster._OPEN_MPI, cluster._PMI])
def test_one_node_needs_no_address(detect, monkeypatch, variables):
  def address(rank: int) -> str:
    return detect(mpirun(variables, rank, 2))["coordinator_address"]

  first = address(0)
  assert first == address(1)
  assert re.fullmatch(r"127\.0\.0\.1:6\d{4}", first)
  monkeypatch.setattr(sys, "argv", ["another", "command"])
  assert address(1) != first


def test_jax_finds_rank_0_on_several_nodes(detect, monkeypatch):
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: True)
  environment = mpirun(cluster._OPEN_MPI, 1, 1)
  expected = {"num_processes": 2, "process_id": 1, "local_device_ids": []}
  found = detect(environment)
  assert found == expected | {"cluster_detection_method": "mpi4py"}
  found = detect(environment | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:9"})
  assert found == expected | {"cluster_detection_method": "ompi"}


PMI = mpirun(cluster._PMI, 0, 2)


@pytest.mark.parametrize(
  ("environment", "distributed", "message"),
  [
    # Several nodes, and no address.
    (mpirun(cluster._OPEN_MPI, 1, 1), "auto", NO_ADDRESS),
    (mpirun(cluster._PMI, 0, 1) | SRUN, "auto", NO_ADDRESS),
    ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "auto", NO_ADDRESS),
    # What is no number.
    ({"SLURM_STEP_NUM_TASKS": "two"}, "auto", "SLURM_STEP_NUM_TASKS='two': "),
    ({"OMPI_COMM_WORLD_SIZE": "-2"}, "auto", "OMPI_COMM_WORLD_SIZE='-2': "),
    ({"PMI_SIZE": "2"}, "auto", "PMI_RANK='': "),
    (PMI | {"MPI_LOCALRANKID": "x"}, "auto", "MPI_LOCALRANKID='x': "),
    # Half an identity, which MPI's would not complete.
    ({"REFT_PROCESS": "3"} | PMI, "node0:8476", "REFT_PROCESSES='': "),
    ({"REFT_PROCESSES": "4"}, "node0:8476", "REFT_PROCESS='': "),
    # No HOST:PORT.
    *(
      (NAMED, address, f"distributed={address} is not")
      for address in ("node0", "node0:", "node0:0", ":84", "a b")
    ),
    (NAMED | {"REFT_COORDINATOR": "a"}, "auto", "REFT_COORDINATOR=a is not"),
  ],
)
def test_an_environment_that_is_refused(
  detect, monkeypatch, environment, distributed, message
):
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=f"^{message}"):
    detect(environment, distributed)
