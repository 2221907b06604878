"""Several processes: one run, whatever number of processes and devices.

The slow tests start two processes with four devices each on this machine.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import test_cluster

from reft_jax import train
from reft_jax.errors import UserError
from reft_jax.models.hf import peft
from reft_jax.runtime import cluster, metrics, multihost

HERE = pathlib.Path(__file__).resolve().parent
SETTINGS = shlex.split("""
  data.dev_size=8 embedded.questions=24 embedded.test=16 embedded.documents=64
  base.width=16 base.ffn=24 base.steps=3 base.batch_size=16 warmup.epochs=1
  warmup.batch_size=8 sft.epochs=1 sft.learning_rates=[1e-3] sft.batch_size=8
  reft.steps=6 reft.batch_size=16 reft.minibatch_size=8 reft.evaluate_every=6
  reft.optimizer.learning_rate=1e-3 evaluation.batch_size=16
  evaluation.majority_samples=0 logging.every=1 logging.tensorboard=false
  checkpoint.every=1
""")
# Differences of rounding, below a thousandth of a nat.
ROUNDING = {"sampler_gap", "old_logprob_gap"}


def start(
  command: Sequence[str], log: pathlib.Path, **environment: str
) -> subprocess.Popen:
  """Starts a process on CPU devices, without other launchers' variables."""
  known = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(test_cluster.LAUNCHERS)
  }
  known |= {"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}
  with log.open("w") as file:
    return subprocess.Popen(
      [sys.executable, *command],
      env=known | environment,
      stdout=file,
      stderr=subprocess.STDOUT,
    )


def start_both(
  folder: pathlib.Path, commands: Sequence[Sequence[str]]
) -> list[subprocess.Popen]:
  """Starts two processes of four devices each."""
  shared = {
    "JAX_NUM_CPU_DEVICES": "4",
    cluster.COORDINATOR: free_address(),
    cluster.COUNT: "2",
  }
  return [
    start(command, folder / f"log{i}", **shared, **{cluster.INDEX: str(i)})
    for i, command in enumerate(commands)
  ]


def start_training(
  folder: pathlib.Path, *arguments: Sequence[str]
) -> list[subprocess.Popen]:
  """Starts two processes that train, with the arguments of each."""
  script = str(HERE / "one_of_two.py")
  return start_both(
    folder,
    [
      [script, str(folder / f"known{index}"), *SETTINGS, *own]
      for index, own in enumerate(arguments)
    ],
  )


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def ended(
  started: Sequence[subprocess.Popen], folder: pathlib.Path
) -> list[int]:
  """Their exit codes; fails with all that they printed after ten minutes."""
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
    "mesh.sampler_tensor=4",
    f"output={directory}",
    f"base.cache={folder / 'cache'}",
  ]
  started = start_training(folder, arguments, arguments)
  file = directory / metrics.FILE
  while all(process.poll() is None for process in started):
    if file.exists() and b'"reft", "step": 2' in file.read_bytes():
      started[1].send_signal(signal.SIGTERM)
      break
    time.sleep(0.05)
  assert ended(started, folder) == [75, 75], (folder / "log0").read_text()
  return directory


@pytest.fixture(scope="module")
def unbroken(folder, stopped) -> pathlib.Path:
  """The same run in one process with eight devices, which nobody stops."""
  directory = folder / "one"
  code = train.main(
    [*SETTINGS, f"output={directory}", f"base.cache={folder / 'cache-one'}"]
  )
  assert code == 0
  return directory


@pytest.mark.slow
def test_both_have_the_same_metrics_and_stop_at_the_same_step(stopped, folder):
  first, second = metrics.read(stopped), metrics.read(folder / "known1")
  np.testing.assert_equal(second, first)
  assert {row["stage"] for row in first} == {"base", "warmup", "sft", "reft"}
  assert 2 <= first[-1]["step"] < 6


@pytest.mark.slow
def test_the_lead_alone_prints(stopped, folder):
  lead, other = ((folder / f"log{i}").read_text() for i in range(2))
  warning = "V=163 does not divide by the mesh axis tensor=4"
  for text in ("embedded, seed 0", "stopped by a signal; reft step", warning):
    assert text in lead
  # Libraries may print too.
  for text in ("embedded, seed 0", "problems:", "devices:", "reft", "error:"):
    assert text not in other
  assert warning not in other


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 2, 1])
def test_one_process_resumes_with_any_number_of_devices(
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
  assert rows_of(directory) == pytest.approx(
    rows_of(unbroken), rel=1e-4, abs=1e-6, nan_ok=True
  )
  summary = json.loads((directory / "summary.json").read_text())
  expected = json.loads((unbroken / "summary.json").read_text())
  for name, stage in expected["stages"].items():
    assert summary["stages"][name]["test_accuracy"] == stage["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("own", "words"),
  [
    (
      (["data.dev_size=8"], ["data.test=nowhere.json"]),
      ("error: process 1: data.test=", "no such file"),
    ),
    (
      (["reft.steps=6"], ["reft.steps=7"]),
      ("differ in their setting reft.steps (6, 7)",),
    ),
  ],
)
def test_bad_input_of_one_ends_both(folder, own, words):
  output = f"output={folder / 'bad'}"
  started = start_training(folder, *([output, *each] for each in own))
  assert ended(started, folder) == [2, 2]
  printed = (folder / "log0").read_text()
  for text in words:
    assert text in printed
  assert not (folder / "bad").exists()


@pytest.mark.slow
def test_the_lead_writes_adapters_that_are_sharded_over_both(folder):
  directory = folder / "adapted"
  arguments = [
    "stages=[base,warmup]",
    "lora.rank=2",
    f"output={directory}",
    f"base.cache={folder / 'cache'}",
  ]
  started = start_training(folder, arguments, arguments)
  assert ended(started, folder) == [0, 0]
  stored = directory / "models" / "warmup" / peft.FOLDER
  assert (stored / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_checkpoint_that_one_cannot_read_is_restored_by_none(folder):
  command = [str(HERE / "one_cannot_read.py"), str(folder / "saved")]
  assert ended(start_both(folder, [command, command]), folder) == [0, 0]
  for log in ("log0", "log1"):
    assert "restored {'step': 1}" in (folder / log).read_text()
  assert [*folder.glob("damaged-saved-2-*")]


def srun(rank: int) -> dict[str, str]:
  """The variables of one of two processes of SLURM's, each on its own node."""
  return {
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(rank),
    "SLURM_LOCALID": "0",
  }


@pytest.mark.parametrize(
  ("launched", "devices"),
  [
    # Open MPI on one node; MPICH and SLURM on two.
    (lambda rank: test_cluster.mpirun(cluster._OPEN_MPI, rank, 2), ["0", "1"]),
    pytest.param(
      lambda rank: test_cluster.mpirun(cluster._PMI, rank, 1),
      ["all", "all"],
      marks=pytest.mark.slow,
    ),
    pytest.param(srun, ["all", "all"], marks=pytest.mark.slow),
  ],
)
def test_processes_of_a_launcher_exchange_data(tmp_path, launched, devices):
  """A process that is alone on its node has all of the node's devices."""
  by_mpich = "PMI_SIZE" in launched(0)  # It does not say where rank 0 is.
  address = {cluster.COORDINATOR: free_address()} if by_mpich else {}
  program = (
    "import jax\n"
    "from reft_jax.runtime import multihost\n"
    "multihost.initialize('auto')\n"
    "indices = multihost.allgather_json(jax.process_index())\n"
    "print(indices, jax.config.values['jax_cuda_visible_devices'])\n"
  )
  started = [
    start(["-c", program], tmp_path / f"log{rank}", **launched(rank), **address)
    for rank in (0, 1)
  ]
  assert ended(started, tmp_path) == [0, 0]
  for rank in (0, 1):
    text = (tmp_path / f"log{rank}").read_text()
    assert f"[0, 1] {devices[rank]}\n" in text


# One process -----------------------------------------------------------------


def test_a_process_that_is_alone():
  assert multihost.is_lead()
  assert multihost.allgather_json({"a": 1}) == [{"a": 1}]
  assert multihost.broadcast_from_lead("x") == "x"
  assert multihost.own_rows(5) == range(5)
  assert multihost.allgather_rows({1: "b", 0: "a"}, 2) == ["a", "b"]
  multihost.barrier("for nobody")
  multihost.check_equal_on_all({"a": "b"})


@pytest.mark.parametrize("rows", [0, 1, 7, 32])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_row_belongs_to_one_process(monkeypatch, rows, count):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: True)
  monkeypatch.setattr(multihost.jax, "process_count", lambda: count)
  parts = []
  for index in range(count):
    monkeypatch.setattr(multihost.jax, "process_index", lambda i=index: i)
    parts.append(list(multihost.own_rows(rows)))
  assert sorted(row for part in parts for row in part) == [*range(rows)]
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture
def jax_initialize(monkeypatch):
  """The calls of jax.distributed.initialize, which find no other process."""
  calls = []

  def initialize(**arguments):
    calls.append(arguments)
    raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

  monkeypatch.setattr(multihost.jax.distributed, "initialize", initialize)
  monkeypatch.setenv(cluster.COUNT, "2")
  monkeypatch.setenv(cluster.INDEX, "0")
  return calls


def test_processes_that_do_not_find_each_other(jax_initialize):
  multihost.initialize("off")
  assert not jax_initialize
  with pytest.raises(UserError, match=r"did not find each other .*timed out"):
    multihost.initialize("node0:8476")
  (arguments,) = jax_initialize
  assert arguments == cluster.detect("node0:8476")


def test_bad_input_of_another_process_is_raised_here(monkeypatch):
  monkeypatch.setattr(
    multihost, "allgather_json", lambda own: [own, "no such file"]
  )
  with (
    pytest.raises(multihost.KnownError, match="process 1: no such file"),
    multihost.raise_on_all_processes(),
  ):
    pass


@pytest.mark.parametrize(
  ("others", "kind", "message"),
  [
    (True, multihost.KnownError, r"^process 1: bad$"),
    (False, UserError, r"^bad$"),
  ],
)
def test_bad_input_of_this_process(monkeypatch, others, kind, message):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: others)
  monkeypatch.setattr(multihost, "allgather_json", lambda own: [None, own])
  with (
    pytest.raises(kind, match=message),
    multihost.raise_on_all_processes(),
  ):
    raise UserError("bad")


@pytest.mark.parametrize(
  ("error", "others", "index", "code", "printed"),
  [
    (UserError("no"), False, 0, 2, True),
    (multihost.KnownError("no"), True, 0, 2, True),
    (multihost.KnownError("no"), True, 1, 2, False),
    (UserError("no"), True, 1, 1, True),  # The others do not know of it.
  ],
)
def test_bad_input_is_printed_once(
  monkeypatch, capsys, error, others, index, code, printed
):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: others)
  monkeypatch.setattr(multihost.jax, "process_index", lambda: index)
  assert multihost.refuse(error) == code
  assert ("error: no" in capsys.readouterr().err) == printed
