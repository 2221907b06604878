"""Several processes: one run, whatever number of processes and devices.

The runs are real: two processes with four devices each, on this machine.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from reft_jax import train
from reft_jax.errors import UserError
from reft_jax.models.hf import peft
from reft_jax.runtime import metrics, multihost

HERE = pathlib.Path(__file__).resolve().parent
# How variables begin that tell processes of each other.
LAUNCHERS = ("REFT_", "SLURM_", "OMPI_", "PMI_", "MPI_", "JAX_LOCAL_DEVICE_IDS")
SETTINGS = [
  "data.dev_size=8",
  "embedded.questions=24",
  "embedded.test=16",
  "embedded.documents=64",
  "base.width=16",
  "base.ffn=24",
  "base.steps=3",
  "base.batch_size=16",
  "warmup.epochs=1",
  "warmup.batch_size=8",
  "sft.epochs=1",
  "sft.learning_rates=[1e-3]",
  "sft.batch_size=8",
  "reft.steps=6",
  "reft.batch_size=16",
  "reft.minibatch_size=8",
  "reft.evaluate_every=6",
  "reft.optimizer.learning_rate=1e-3",
  "evaluation.batch_size=16",
  "evaluation.majority_samples=0",
  "logging.every=1",
  "logging.tensorboard=false",
  "checkpoint.every=1",
]
# Not a thousandth of a nat: what is left is how sums were rounded.
ROUNDING = {"sampler_gap", "old_logprob_gap"}


# Number of processes, which one, and the same on its node.
OPEN_MPI = tuple(
  f"OMPI_COMM_WORLD_{name}"
  for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
)
PMI = ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID")

SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}


def mpirun(
  variables: Sequence[str], rank: int, local_size: int, size: int = 2
) -> dict[str, str]:
  """What mpirun tells a process."""
  numbers = (size, rank, local_size, rank % local_size)
  return dict(zip(variables, map(str, numbers), strict=True))


def start(
  command: Sequence[str], log: pathlib.Path, **environment: str
) -> subprocess.Popen:
  """A process on CPU devices, in an environment that knows of no others."""
  known = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(LAUNCHERS)
  }
  known |= {
    "PYTHONPATH": str(HERE.parent),
    "JAX_PLATFORMS": "cpu",
  }
  with log.open("w") as file:
    return subprocess.Popen(
      [sys.executable, *command],
      env=known | environment,
      stdout=file,
      stderr=subprocess.STDOUT,
    )


def start_two(
  folder: pathlib.Path, arguments: Sequence[Sequence[str]]
) -> list[subprocess.Popen]:
  """Two processes that train, with their arguments."""
  script = str(HERE / "one_of_two.py")
  return start_both(
    folder,
    [
      [script, str(folder / f"known{index}"), *mine]
      for index, mine in enumerate(arguments)
    ],
  )


def start_both(
  folder: pathlib.Path, commands: Sequence[Sequence[str]]
) -> list[subprocess.Popen]:
  """Two processes of four devices each."""
  address = free_address()
  return [
    start(
      command,
      folder / f"log{index}",
      JAX_NUM_CPU_DEVICES="4",
      **{
        multihost.COORDINATOR: address,
        multihost.COUNT: "2",
        multihost.INDEX: str(index),
      },
    )
    for index, command in enumerate(commands)
  ]


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def ended(
  started: Sequence[subprocess.Popen], folder: pathlib.Path
) -> list[int]:
  """Their exit codes; all that they printed if they take too long."""
  try:
    return [process.wait(timeout=600) for process in started]
  except subprocess.TimeoutExpired:
    for process in started:
      process.kill()
    pytest.fail("\n".join(f.read_text() for f in sorted(folder.glob("log*"))))


def rows_of(directory: pathlib.Path) -> Mapping[tuple[str, int, str], float]:
  """A run's metrics by stage, step and name."""
  return {
    (row["stage"], row["step"], name): value
    for row in metrics.read(directory)
    for name, value in row.items()
    if name not in {"stage", "step", *ROUNDING}
  }


def assert_alike(one: pathlib.Path, other: pathlib.Path) -> None:
  """The same metrics, but for rounding."""
  ours, theirs = rows_of(one), rows_of(other)
  assert ours.keys() == theirs.keys()
  for key, value in ours.items():
    np.testing.assert_allclose(
      theirs[key], value, rtol=1e-4, atol=1e-6, err_msg=str(key)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def stopped(folder) -> pathlib.Path:
  """A run of two processes, the second of which got SIGTERM in ReFT.

  Its sampler has a layout of its own.
  """
  directory = folder / "two"
  arguments = [
    *SETTINGS,
    "mesh.sampler_tensor=4",
    f"output={directory}",
    f"base.cache={folder / 'cache'}",
  ]
  started = start_two(folder, [arguments, arguments])
  file = directory / metrics.FILE
  while all(process.poll() is None for process in started):
    if file.exists() and b'"reft", "step": 2' in file.read_bytes():
      started[1].send_signal(signal.SIGTERM)
      break
    time.sleep(0.05)
  codes = ended(started, folder)
  assert codes == [75, 75], (folder / "log0").read_text()
  return directory


@pytest.fixture(scope="module")
def unbroken(folder, stopped) -> pathlib.Path:
  """The same run in one process that nobody stops, on eight devices."""
  directory = folder / "one"
  code = train.main(
    [*SETTINGS, f"output={directory}", f"base.cache={folder / 'cache-one'}"]
  )
  assert code == 0
  return directory


def test_both_know_the_same_and_stop_at_the_same_step(stopped, folder):
  first, second = metrics.read(stopped), metrics.read(folder / "known1")
  np.testing.assert_equal(second, first)
  assert {row["stage"] for row in first} == {"base", "warmup", "sft", "reft"}
  assert 2 <= first[-1]["step"] < 6


def test_the_first_alone_speaks(stopped, folder):
  # What libraries print, in pieces, is not ours.
  said = (folder / "log1").read_text()
  assert "embedded, seed 0" in (folder / "log0").read_text()
  for ours in ("embedded, seed 0", "problems:", "devices:", "reft", "error:"):
    assert ours not in said
  assert "stopped by a signal; reft step" in (folder / "log0").read_text()
  warning = "V=163 does not divide by the mesh axis tensor=4"
  assert warning in (folder / "log0").read_text()


@pytest.mark.parametrize("count", [8, 2, 1])
def test_one_process_goes_on_with_any_number_of_devices(
  count, stopped, unbroken, folder
):
  directory = folder / f"resumed{count}"
  shutil.copytree(stopped, directory)
  again = start(
    [
      *("-m", "reft_jax.train", *SETTINGS),
      f"output={directory}",
      f"base.cache={folder / 'cache'}",
    ],
    folder / f"log-resumed{count}",
    JAX_NUM_CPU_DEVICES=str(count),
  )
  assert ended([again], folder) == [0]
  assert_alike(unbroken, directory)
  summary = json.loads((directory / "summary.json").read_text())
  expected = json.loads((unbroken / "summary.json").read_text())
  for name, stage in expected["stages"].items():
    assert summary["stages"][name]["test_accuracy"] == stage["test_accuracy"]


def test_bad_input_of_one_ends_both(folder):
  arguments = [*SETTINGS, f"output={folder / 'bad'}"]
  other = [*arguments, f"data.test={folder / 'nowhere.json'}"]
  assert ended(start_two(folder, [arguments, other]), folder) == [2, 2]
  said = (folder / "log0").read_text()
  assert "error: process 1: data.test=" in said
  assert "no such file" in said


def test_the_first_writes_adapters_that_both_hold(folder):
  directory = folder / "adapted"
  arguments = [
    *SETTINGS,
    "stages=[base,warmup]",
    "lora.rank=2",
    f"output={directory}",
    f"base.cache={folder / 'cache'}",
  ]
  assert ended(start_two(folder, [arguments, arguments]), folder) == [0, 0]
  stored = directory / "models" / "warmup" / peft.FOLDER
  assert (stored / "adapter_model.safetensors").is_file()


def test_settings_that_differ_are_named(folder):
  arguments = [*SETTINGS, f"output={folder / 'bad'}"]
  both = [[*arguments, f"reft.steps={steps}"] for steps in (6, 7)]
  assert ended(start_two(folder, both), folder) == [2, 2]
  said = (folder / "log0").read_text()
  assert "differ in their setting reft.steps (6, 7)" in said
  assert not (folder / "bad").exists()


def test_what_one_cannot_read_none_restores(folder):
  command = [str(HERE / "one_cannot_read.py"), str(folder / "saved")]
  assert ended(start_both(folder, [command, command]), folder) == [0, 0]
  for log in ("log0", "log1"):
    assert "restored {'step': 1}" in (folder / log).read_text()
  assert [*folder.glob("damaged-saved-2-*")]


def srun(rank: int, job: int) -> dict[str, str]:
  """What srun tells a process, of which each node has one."""
  return SRUN | {
    "SLURM_JOB_ID": str(job),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(rank),
    "SLURM_LOCALID": "0",
  }


@pytest.mark.parametrize(
  ("launcher", "visible"),
  [
    ("Open MPI, one node", ["0", "1"]),
    ("MPICH, one node", ["0", "1"]),
    ("MPICH, two nodes", ["all", "all"]),
    ("SLURM, two nodes", ["all", "all"]),
  ],
)
def test_launchers_are_joined(tmp_path, launcher, visible):
  """And a process that is alone on its node has all devices of it."""
  address = free_address()
  told = {
    "Open MPI, one node": lambda rank: mpirun(OPEN_MPI, rank, 2),
    "MPICH, one node": lambda rank: mpirun(PMI, rank, 2),
    "MPICH, two nodes": lambda rank: (
      mpirun(PMI, rank, 1) | {multihost.COORDINATOR: address}
    ),
    "SLURM, two nodes": lambda rank: srun(rank, job=os.getpid()),
  }[launcher]
  program = (
    "import jax\n"
    "from reft_jax.runtime import multihost\n"
    "multihost.initialize('auto')\n"
    "told = multihost.allgather_json(jax.process_index())\n"
    "print(told, jax.config.values['jax_cuda_visible_devices'])\n"
  )
  started = [
    start(["-c", program, tmp_path], tmp_path / f"log{rank}", **told(rank))
    for rank in (0, 1)
  ]
  assert ended(started, tmp_path) == [0, 0]
  for rank in (0, 1):
    said = (tmp_path / f"log{rank}").read_text()
    assert f"[0, 1] {visible[rank]}\n" in said


# One process -----------------------------------------------------------------


def test_alone_there_is_nothing_to_agree_on():
  assert multihost.is_lead()
  assert not multihost.is_initialized()
  assert multihost.allgather_json({"a": 1}) == [{"a": 1}]
  assert multihost.broadcast_from_lead("x") == "x"
  assert multihost.own_rows(5) == range(5)
  assert not multihost.asked_to_stop()
  multihost.barrier("for nobody")
  multihost.check_equal_on_all({"a": "b"})


@pytest.mark.parametrize("rows", [0, 1, 7, 32])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_row_is_one_process_s(monkeypatch, rows, count):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: True)
  monkeypatch.setattr(multihost.jax, "process_count", lambda: count)
  shares = [list(share) for share in multihost.rows_by_process(rows)]
  assert len(shares) == count
  assert sorted(row for share in shares for row in share) == [*range(rows)]
  assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def joins(monkeypatch) -> list[dict]:
  """How jax is asked to join, in an environment that knows of no others."""
  for name in os.environ:
    if name.startswith((*LAUNCHERS, "TPU_")):
      monkeypatch.delenv(name)
  calls = []
  monkeypatch.setattr(
    multihost.jax.distributed,
    "initialize",
    lambda **arguments: calls.append(arguments),
  )
  return calls


def test_nothing_is_joined_where_there_is_nothing(joins):
  multihost.initialize("auto")
  assert joins == []


def at(address: str, size: int, rank: int) -> dict:
  """jax's arguments, with its own detection out of the way."""
  return {
    "coordinator_address": address,
    "num_processes": size,
    "process_id": rank,
    "cluster_detection_method": "deactivate",
  }


def set_all(monkeypatch, environment: Mapping[str, str]) -> None:
  for name, value in environment.items():
    monkeypatch.setenv(name, value)


NAMED = {"REFT_PROCESSES": "4", "REFT_PROCESS": "3"}


def test_the_environment_says_who_is_who(joins, monkeypatch):
  set_all(monkeypatch, {"REFT_COORDINATOR": "node0:8476", **NAMED})
  multihost.initialize("auto")
  assert joins == [at("node0:8476", 4, 3)]


def test_the_setting_stands_above_the_environment(joins, monkeypatch):
  set_all(monkeypatch, {"REFT_COORDINATOR": "node0:8476", **NAMED})
  multihost.initialize("off")
  assert joins == []
  multihost.initialize("node9:1234")
  assert joins == [at("node9:1234", 4, 3)]


@pytest.mark.parametrize(
  ("environment", "arguments"),
  [
    (SRUN, {"local_device_ids": []}),
    (SRUN | {"PMI_SIZE": "2", "PMI_RANK": "0"}, {"local_device_ids": []}),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "16"}, {"local_device_ids": None}),
    (SRUN | {"JAX_LOCAL_DEVICE_IDS": "4,5"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": ""}, {}),
  ],
)
def test_clusters_are_left_to_jax(joins, monkeypatch, environment, arguments):
  set_all(monkeypatch, environment)
  multihost.initialize("auto")
  assert joins == [arguments]


@pytest.mark.parametrize(
  "environment",
  [
    {"SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_NTASKS": "8"},  # A batch script's own shell.
    mpirun(OPEN_MPI, 0, 1, size=1),
    mpirun(PMI, 0, 1, size=1),
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": ""},
  ],
)
def test_a_process_that_is_alone_in_its_cluster_joins_nothing(
  joins, monkeypatch, environment
):
  set_all(monkeypatch, environment)
  multihost.initialize("auto")
  assert joins == []


@pytest.mark.parametrize("variables", [OPEN_MPI, PMI])
@pytest.mark.parametrize(("local_size", "ids"), [(1, []), (2, [1])])
def test_mpi_says_who_is_who(joins, monkeypatch, variables, local_size, ids):
  set_all(monkeypatch, mpirun(variables, 3, local_size, size=4) | SRUN)
  monkeypatch.setenv("REFT_COORDINATOR", "node0:8476")
  multihost.initialize("auto")
  assert joins == [at("node0:8476", 4, 3) | {"local_device_ids": ids}]
  joins.clear()
  monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "7")
  multihost.initialize("auto")
  assert joins == [at("node0:8476", 4, 3)]


@pytest.mark.parametrize("variables", [OPEN_MPI, PMI])
def test_one_node_needs_no_address(joins, monkeypatch, variables):
  for rank in (0, 1):
    set_all(monkeypatch, mpirun(variables, rank, 2))
    multihost.initialize("auto")
  monkeypatch.setattr(sys, "argv", ["another", "command"])
  multihost.initialize("auto")
  first, second, other = [call["coordinator_address"] for call in joins]
  assert first == second != other
  assert re.fullmatch(r"127\.0\.0\.1:6\d{4}", first)


@pytest.mark.parametrize(
  ("environment", "method"),
  [
    ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:9"}, "ompi"),
    ({}, "mpi4py"),
  ],
)
def test_jax_finds_the_first_of_several_nodes(
  joins, monkeypatch, environment, method
):
  set_all(monkeypatch, mpirun(OPEN_MPI, 1, 1) | environment)
  monkeypatch.setattr(multihost.importlib.util, "find_spec", lambda name: True)
  multihost.initialize("auto")
  assert joins == [
    {
      "cluster_detection_method": method,
      "num_processes": 2,
      "process_id": 1,
      "local_device_ids": [],
    }
  ]


@pytest.mark.parametrize(
  "environment",
  [
    mpirun(OPEN_MPI, 1, 1),
    mpirun(PMI, 0, 1) | SRUN,  # mpirun started by srun.
    {"PMI_SIZE": "2", "PMI_RANK": "0"},
  ],
)
def test_several_nodes_need_an_address(joins, monkeypatch, environment):
  set_all(monkeypatch, environment)
  monkeypatch.setattr(multihost.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="set REFT_COORDINATOR=HOST:PORT"):
    multihost.initialize("auto")
  assert joins == []


@pytest.mark.parametrize(
  ("environment", "named"),
  [
    ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS='two'"),
    ({"OMPI_COMM_WORLD_SIZE": "-2"}, "OMPI_COMM_WORLD_SIZE='-2'"),
    ({"PMI_SIZE": "2"}, "PMI_RANK=''"),
    (mpirun(PMI, 0, 2) | {"MPI_LOCALRANKID": "x"}, "MPI_LOCALRANKID='x'"),
  ],
)
def test_what_is_no_number_is_named(joins, monkeypatch, environment, named):
  set_all(monkeypatch, environment)
  with pytest.raises(UserError, match=f"^{named}: "):
    multihost.initialize("auto")
  assert joins == []


@pytest.mark.parametrize("missing", ["REFT_PROCESSES", "REFT_PROCESS"])
def test_half_an_environment_is_refused(joins, monkeypatch, missing):
  set_all(monkeypatch, NAMED | mpirun(PMI, 0, 2))
  monkeypatch.delenv(missing)
  with pytest.raises(UserError, match=f"^{missing}=''"):
    multihost.initialize("node0:8476")


@pytest.mark.parametrize(
  "address", ["node0", "node0:", "node0:0", ":84", "a b"]
)
def test_an_address_has_a_port(joins, monkeypatch, address):
  set_all(monkeypatch, NAMED | {"REFT_COORDINATOR": address})
  with pytest.raises(UserError, match=f"^REFT_COORDINATOR={address} is not"):
    multihost.initialize("auto")
  with pytest.raises(UserError, match=f"^distributed={address} is not"):
    multihost.initialize(address)
  assert joins == []


def test_others_that_are_not_found_are_bad_input(joins, monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

  monkeypatch.setattr(multihost.jax.distributed, "initialize", fail)
  monkeypatch.setenv("REFT_PROCESSES", "2")
  monkeypatch.setenv("REFT_PROCESS", "0")
  with pytest.raises(UserError, match=r"did not find each other .*timed out"):
    multihost.initialize("node0:8476")


def test_what_is_wrong_elsewhere_is_told_here(monkeypatch):
  monkeypatch.setattr(
    multihost, "allgather_json", lambda mine: [mine, "no such file"]
  )
  others = pytest.raises(UserError, match="process 1: no such file")
  with others, multihost.raise_on_all_processes():
    pass


def test_what_is_wrong_here_all_know(monkeypatch):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: True)
  monkeypatch.setattr(multihost, "allgather_json", lambda mine: [None, mine])
  all_know = pytest.raises(multihost.KnownError, match="process 1: mine")
  with all_know, multihost.raise_on_all_processes():
    raise UserError("mine")


def test_ones_own_error_goes_on():
  with (
    pytest.raises(UserError, match=r"^mine$"),
    multihost.raise_on_all_processes(),
  ):
    raise UserError("mine")


@pytest.mark.parametrize(
  ("error", "others", "index", "code", "told"),
  [
    (UserError("no"), False, 0, 2, True),
    (multihost.KnownError("no"), True, 0, 2, True),
    (multihost.KnownError("no"), True, 1, 2, False),
    (UserError("no"), True, 1, 1, True),  # The others do not know of it.
  ],
)
def test_bad_input_is_told_once(
  monkeypatch, capsys, error, others, index, code, told
):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: others)
  monkeypatch.setattr(multihost.jax, "process_index", lambda: index)
  assert multihost.refuse(error) == code
  assert ("error: no" in capsys.readouterr().err) == told
