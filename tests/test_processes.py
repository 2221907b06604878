"""Several processes: one run, whatever number of processes and devices.

The runs are real: two processes with four devices each, on this machine.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from reft_jax import metrics, processes, train
from reft_jax.errors import UserError
from reft_jax.models import peft

HERE = pathlib.Path(__file__).resolve().parent
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


def start(
  command: Sequence[str], log: pathlib.Path, **environment: str
) -> subprocess.Popen:
  """A process on CPU devices, in an environment that knows of no others."""
  known = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("REFT_", "SLURM_", "OMPI_"))
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
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  return [
    start(
      command,
      folder / f"log{index}",
      JAX_NUM_CPU_DEVICES="4",
      **{
        processes.COORDINATOR: address,
        processes.COUNT: "2",
        processes.INDEX: str(index),
      },
    )
    for index, command in enumerate(commands)
  ]


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
  """A run of two processes, the second of which got SIGTERM in ReFT."""
  directory = folder / "two"
  arguments = [
    *SETTINGS,
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


# One process -----------------------------------------------------------------


def test_alone_there_is_nothing_to_agree_on():
  assert processes.first()
  assert not processes.joined()
  assert processes.gather({"a": 1}) == [{"a": 1}]
  assert processes.told("x") == "x"
  assert processes.share(5) == range(5)
  assert not processes.asked_to_stop()
  processes.wait("for nobody")
  processes.check_alike({"a": "b"})


@pytest.mark.parametrize("rows", [0, 1, 7, 32])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_row_is_one_process_s(monkeypatch, rows, count):
  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes.jax, "process_count", lambda: count)
  shares = [list(share) for share in processes.shares(rows)]
  assert len(shares) == count
  assert sorted(row for share in shares for row in share) == [*range(rows)]
  assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def joins(monkeypatch) -> list[tuple]:
  """How jax is asked to join, in an environment that knows of no others."""
  for name in os.environ:
    if name.startswith(("REFT_", "SLURM_", "OMPI_", "TPU_")):
      monkeypatch.delenv(name)
  calls = []
  monkeypatch.setattr(
    processes.jax.distributed,
    "initialize",
    lambda *args, **kwargs: calls.append((args, kwargs)),
  )
  return calls


def test_nothing_is_joined_where_there_is_nothing(joins):
  processes.join("auto")
  assert joins == []


def test_the_environment_says_who_is_who(joins, monkeypatch):
  monkeypatch.setenv("REFT_COORDINATOR", "node0:8476")
  monkeypatch.setenv("REFT_PROCESSES", "4")
  monkeypatch.setenv("REFT_PROCESS", "3")
  processes.join("auto")
  ((args, kwargs),) = joins
  assert args == ("node0:8476", 4, 3)
  assert kwargs == {"cluster_detection_method": "deactivate"}


def test_the_setting_stands_above_the_environment(joins, monkeypatch):
  monkeypatch.setenv("REFT_COORDINATOR", "node0:8476")
  monkeypatch.setenv("REFT_PROCESSES", "4")
  monkeypatch.setenv("REFT_PROCESS", "3")
  processes.join("off")
  assert joins == []
  processes.join("node9:1234")
  assert joins[0][0] == ("node9:1234", 4, 3)


@pytest.mark.parametrize(
  "environment",
  [
    {"SLURM_STEP_NUM_TASKS": "2"},
    {"OMPI_COMM_WORLD_SIZE": "8"},
    {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": ""},
  ],
)
def test_clusters_are_left_to_jax(joins, monkeypatch, environment):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  processes.join("auto")
  assert joins == [((), {})]


@pytest.mark.parametrize(
  "environment",
  [
    {"SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_NTASKS": "8"},  # A batch script's own shell.
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": ""},
  ],
)
def test_a_process_that_is_alone_in_its_cluster_joins_nothing(
  joins, monkeypatch, environment
):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  processes.join("auto")
  assert joins == []


@pytest.mark.parametrize("missing", ["REFT_PROCESSES", "REFT_PROCESS"])
def test_half_an_environment_is_refused(joins, monkeypatch, missing):
  for name, value in {"REFT_PROCESSES": "2", "REFT_PROCESS": "0"}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv(missing)
  with pytest.raises(UserError, match=missing):
    processes.join("node0:8476")


def test_others_that_are_not_found_are_bad_input(joins, monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

  monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
  monkeypatch.setenv("REFT_PROCESSES", "2")
  monkeypatch.setenv("REFT_PROCESS", "0")
  with pytest.raises(UserError, match=r"did not find each other .*timed out"):
    processes.join("node0:8476")


def test_what_is_wrong_elsewhere_is_told_here(monkeypatch):
  monkeypatch.setattr(processes, "gather", lambda mine: [mine, "no such file"])
  others = pytest.raises(UserError, match="process 1: no such file")
  with others, processes.together():
    pass


def test_what_is_wrong_here_all_know(monkeypatch):
  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes, "gather", lambda mine: [None, mine])
  all_know = pytest.raises(processes.KnownError, match="process 1: mine")
  with all_know, processes.together():
    raise UserError("mine")


def test_ones_own_error_goes_on():
  with pytest.raises(UserError, match=r"^mine$"), processes.together():
    raise UserError("mine")


@pytest.mark.parametrize(
  ("error", "others", "index", "code", "told"),
  [
    (UserError("no"), False, 0, 2, True),
    (processes.KnownError("no"), True, 0, 2, True),
    (processes.KnownError("no"), True, 1, 2, False),
    (UserError("no"), True, 1, 1, True),  # The others do not know of it.
  ],
)
def test_bad_input_is_told_once(
  monkeypatch, capsys, error, others, index, code, told
):
  monkeypatch.setattr(processes, "several", lambda: others)
  monkeypatch.setattr(processes.jax, "process_index", lambda: index)
  assert processes.refuse(error) == code
  assert ("error: no" in capsys.readouterr().err) == told
