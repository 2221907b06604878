"""What starts the program elsewhere: scripts, images, manifests, a notebook.

Machines are played by programs of the right names that write down how they were
called and end as they are told to.
"""

import fnmatch
import glob
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib

import jax
import nbclient
import nbformat
import pytest
import yaml

from reft_jax import config as configs
from reft_jax import processes

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PROGRAM = ["-m", "reft_jax.train"]
# With all that a shell could stumble over.
ARGUMENTS = ["--config", "smoke", "data.train=my file.json", "name=it's $HOME"]
TYPED = "--config smoke 'data.train=my file.json' 'name=it'\\''s $HOME'"

# A call is written down; then the first reply that is left for it is given, one
# whose words `to` are all in the call. `says` is printed; `until` is the signal
# that the program waits for, or how a word of another call ends.
FAKE = """#!{python} -IS
import json, os, pathlib, signal, sys, time
call = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
here = pathlib.Path({folder!r})
calls = here / "calls.jsonl"
with calls.open("a") as file:
  file.write(json.dumps(call) + "\\n")
replies = json.loads((here / "replies.json").read_text())
for reply in replies:
  if all(any(word in part for part in call) for word in reply["to"]):
    break
else:
  sys.exit()
replies.remove(reply)
(here / "replies.json").write_text(json.dumps(replies))
print(reply["says"], end="", flush=True)
until = reply["until"]
if isinstance(until, int):
  signal.signal(until, lambda *_: os._exit(reply["ends"]))
if until:
  (here / "waiting").touch()
for _ in range(3000 if until else 0):
  time.sleep(0.02)
  made = map(json.loads, calls.read_text().splitlines())
  if any(part.endswith(str(until)) for parts in made for part in parts):
    break
sys.exit(reply["ends"])
"""


class Machine:
  """A place where some programs are played, and the rest is real."""

  def __init__(self, folder: pathlib.Path, names):
    self.folder = folder
    self.home = folder / "home"
    self.home.mkdir()
    self._fakes = folder / "bin"
    self._replies: list[dict] = []
    for name in names:
      self.play(self._fakes / name)
    self.environment = {
      "PATH": f"{self._fakes}:{os.environ['PATH']}",
      "HOME": str(self.home),
    }

  def play(self, path: pathlib.Path) -> None:
    """Puts a played program somewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.format(python=sys.executable, folder=str(self.folder)))
    path.chmod(0o755)

  def replies(self, *to: str, says="", ends=0, until=None) -> None:
    """The next call with these words is answered so."""
    self._replies.append({"to": to, "says": says, "ends": ends, "until": until})

  def prepare(self) -> None:
    """Has the replies given from now on."""
    (self.folder / "replies.json").write_text(json.dumps(self._replies))

  def start(self, script: str, *arguments: str, **environment: str):
    """Starts a script of the folder launch."""
    self.prepare()
    return subprocess.Popen(
      [str(LAUNCH / script), *arguments],
      cwd=self.folder,
      env=self.environment | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script: str, *arguments: str, **environment: str):
    """Runs a script to its end; returns its code and what it printed."""
    process = self.start(script, *arguments, **environment)
    said, complained = process.communicate(timeout=120)
    return process.returncode, said, complained

  def run_until(self, number: int, script: str, *arguments, **environment):
    """As `run`, but sends a signal once a played program waits for one."""
    process = self.start(script, *arguments, **environment)
    deadline = time.monotonic() + 30
    while not (self.folder / "waiting").exists():
      assert time.monotonic() < deadline, "nothing waits for a signal"
      time.sleep(0.02)
    process.send_signal(number)
    said, complained = process.communicate(timeout=120)
    return process.returncode, said, complained

  @property
  def calls(self) -> list[list[str]]:
    """How the played programs were called, in order."""
    file = self.folder / "calls.jsonl"
    if not file.exists():
      return []
    return [json.loads(line) for line in file.read_text().splitlines()]


# Never the real ones: they would reach clusters, clouds and other processes.
PLAYED = (
  *("python", "srun", "sbatch", "scontrol", "gcloud", "sleep", "sudo", "curl"),
  *("gcsfuse", "mountpoint", "pkill", "pgrep", "lsb_release"),
)


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path, PLAYED)


def shellcheck(*paths) -> subprocess.CompletedProcess:
  binary = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
  return subprocess.run(
    [binary, *paths], capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
  checked = shellcheck(script)
  assert not checked.returncode, checked.stdout


def test_shellcheck_finds_a_fault(tmp_path):
  faulty = tmp_path / "faulty.sh"
  faulty.write_text("#!/usr/bin/env bash\nrm $1\n")
  assert "SC2086" in shellcheck(faulty).stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_strict_and_tells_its_settings(script, machine):
  text = script.read_text()
  assert os.access(script, os.X_OK)
  assert text.startswith("#!/usr/bin/env bash\n")
  first = next(ln for ln in text.splitlines() if not re.match(r"#|$", ln))
  assert first == "set -euo pipefail"
  code, told, complained = machine.run(script.name, "--help")
  assert (code, complained, machine.calls) == (0, "", [])
  for word in ("needs", "does", "gives", "--dry-run", "--help"):
    assert word in told
  for name, default in re.findall(r'"\$\{(\w+):=(.*?)\}"', text):
    setting = f"{name}={default} " if default else f"{name} "
    assert re.search(f"^ *{re.escape(setting)}", told, re.M)
  assert max(map(len, text.splitlines())) <= 80


def test_one_machine_prints_its_command(machine):
  code, said, _ = machine.run("one_machine.sh", "--dry-run", *ARGUMENTS)
  expected = "env XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python -m reft_jax.train"
  assert (code, said) == (0, f"{expected} {TYPED}\n")
  assert not machine.calls


def test_one_machine_passes_arguments_on(machine):
  # From the first that is not its own: --dry-run is the program's here.
  assert machine.run("one_machine.sh", *ARGUMENTS, "--dry-run")[0] == 0
  assert machine.calls == [["python", *PROGRAM, *ARGUMENTS, "--dry-run"]]


def test_one_machine_takes_another_interpreter(machine):
  python = machine.folder / "an environment" / "python3"
  machine.play(python)
  assert machine.run("one_machine.sh", PYTHON=str(python))[0] == 0
  assert machine.calls == [["python3", *PROGRAM]]


def starts(machine: Machine, program: str) -> int:
  """How often a program was started."""
  return sum(call[0] == program for call in machine.calls)


@pytest.mark.parametrize("code", [75, 1, 3, 134, 137])
def test_one_machine_starts_again(machine, code):
  machine.replies("python", ends=code)
  assert machine.run("one_machine.sh", *ARGUMENTS, PAUSE="7")[0] == 0
  start = ["python", *PROGRAM, *ARGUMENTS]
  assert machine.calls == [start, ["sleep", "7"], start]


@pytest.mark.parametrize("code", [2, 4, 130])
def test_one_machine_ends(machine, code):
  machine.replies("python", ends=code)
  assert machine.run("one_machine.sh")[0] == code
  assert starts(machine, "python") == 1


@pytest.mark.parametrize("code", [75, 1])
def test_one_machine_gives_up(machine, code):
  for _ in range(4):
    machine.replies("python", ends=code)
  ended, _, complained = machine.run("one_machine.sh", RESTARTS="2")
  assert (ended, starts(machine, "python")) == (code, 3)
  assert "after 2 restarts; giving up" in complained


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_machine_stopped_lets_the_program_save(machine, number):
  machine.replies("python", until=signal.SIGTERM, ends=75)
  assert machine.run_until(number, "one_machine.sh")[0] == 75
  assert starts(machine, "python") == 1


STEP = [
  *("srun", "--ntasks-per-node=1", "--cpu-bind=none", "--label"),
  *("--kill-on-bad-exit=0", "--wait=600", "env"),
  *("XLA_PYTHON_CLIENT_MEM_FRACTION=0.9", "python", *PROGRAM),
]


def test_slurm_prints_its_commands(machine):
  code, said, _ = machine.run("slurm.sh", "--dry-run", *ARGUMENTS)
  assert (code, said.splitlines()) == (
    0,
    [
      f"sbatch --nodes=2 {LAUNCH}/slurm.sh {TYPED}",
      f"{' '.join(STEP)} {TYPED}",
      "# after exit code 75",
      "scontrol requeue JOB",
    ],
  )
  assert not machine.calls


def test_slurm_submits_itself(machine):
  assert machine.run("slurm.sh", *ARGUMENTS, NODES="4")[0] == 0
  script = str(LAUNCH / "slurm.sh")
  assert machine.calls == [["sbatch", "--nodes=4", script, *ARGUMENTS]]


def test_slurm_reads_its_directives():
  # SLURM stops reading them at the first command.
  head = (LAUNCH / "slurm.sh").read_text().partition("set -euo pipefail")[0]
  directives = re.findall(r"^#SBATCH (.*)$", head, re.M)
  assert {
    *("--ntasks-per-node=1", "--gpus-per-node=8", "--signal=TERM@120"),
    *("--requeue", "--open-mode=append"),
  } <= set(directives)
  assert "#SBATCH" not in (LAUNCH / "slurm.sh").read_text()[len(head) :]


@pytest.mark.parametrize("gpus", ["", "0", "4"])
def test_slurm_trains_with_the_gpus_of_the_job(machine, gpus):
  # A process that is alone on its node takes all that it sees.
  job = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": gpus}
  assert machine.run("slurm.sh", *ARGUMENTS, **job)[0] == 0
  assert machine.calls == [[*STEP, *ARGUMENTS]]


def test_slurm_requeues_when_the_time_is_up(machine):
  machine.replies("srun", ends=75)
  code, _, _ = machine.run(
    "slurm.sh", *ARGUMENTS, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="9"
  )
  assert code == 75
  requeue = ["scontrol", "requeue", "7"]
  assert machine.calls == [[*STEP, *ARGUMENTS], requeue]


def test_slurm_requeues_a_bounded_number_of_times(machine):
  machine.replies("srun", ends=75)
  job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3", "REQUEUES": "3"}
  assert machine.run("slurm.sh", **job)[0] == 75
  assert starts(machine, "scontrol") == 0


def test_slurm_says_what_cannot_be_requeued(machine):
  machine.replies("srun", ends=75)
  machine.replies("scontrol", ends=1)
  code, _, complained = machine.run("slurm.sh", SLURM_JOB_ID="7")
  assert code == 75
  assert "cannot be requeued" in complained


@pytest.mark.parametrize("code", [0, 2, 4])
def test_slurm_ends(machine, code):
  machine.replies("srun", ends=code)
  assert machine.run("slurm.sh", SLURM_JOB_ID="7")[0] == code
  assert machine.calls == [STEP]


def test_slurm_starts_again_after_a_crash(machine):
  machine.replies("srun", ends=134)
  assert machine.run("slurm.sh", SLURM_JOB_ID="7", PAUSE="5")[0] == 0
  assert machine.calls == [STEP, ["sleep", "5"], STEP]


def test_slurm_gives_up(machine):
  for _ in range(4):
    machine.replies("srun", ends=137)
  assert machine.run("slurm.sh", SLURM_JOB_ID="7", RESTARTS="1")[0] == 137
  assert starts(machine, "srun") == 2
  assert starts(machine, "scontrol") == 0


CLOUD = {"ZONE": "us-x1-a", "STORAGE": "gs://bucket"}
TPU = ["gcloud", "compute", "tpus", "tpu-vm"]
ZONE = "--zone=us-x1-a"


def on_workers(command: str) -> list[str]:
  return [*TPU, "ssh", "reft", ZONE, "--worker=all", f"--command={command}"]


DESCRIBE = [*TPU, "describe", "reft", ZONE, "--format=value(state)"]
DELETE = [*TPU, "delete", "reft", ZONE, "--quiet"]
CREATE = [
  *(*TPU, "create", "reft", ZONE, "--accelerator-type=v5litepod-16"),
  *("--version=v2-alpha-tpuv5-lite", "--spot"),
]
WORKER = "source/launch/tpu_worker.sh"
INSTALL = [
  on_workers(
    f"if test -x {WORKER}; then {WORKER} stop; fi && rm -rf source"
    " && mkdir source"
  ),
  [
    *(*TPU, "scp", "--recurse"),
    *(
      str(LAUNCH.parent / name)
      for name in (
        *("pyproject.toml", "requirements.txt", "README.md", "LICENSE"),
        *("reft_jax", "models", "launch"),
      )
    ),
    *("reft:source", ZONE, "--worker=all"),
  ],
  on_workers(f"{WORKER} install gs://bucket"),
]
TRAIN = on_workers(f"{WORKER} train {TYPED}")


def test_tpu_prints_its_commands(machine):
  code, said, _ = machine.run("tpu_vm.sh", "--dry-run", *ARGUMENTS, **CLOUD)
  assert code == 0
  printed = [shlex.split(line) for line in said.splitlines()]
  assert printed == [CREATE, *INSTALL, TRAIN, DELETE]
  assert not machine.calls


def test_tpu_sends_existing_files(machine):
  sent = [part for part in INSTALL[1] if part.startswith(str(LAUNCH.parent))]
  assert len(sent) == 7
  assert all(map(os.path.exists, sent))


def test_tpu_worker_gets_the_arguments():
  (command,) = [part for part in TRAIN if part.startswith("--command=")]
  _, _, typed = command.partition("=")
  assert shlex.split(typed) == [WORKER, "train", *ARGUMENTS]


def test_tpu_creates_trains_and_deletes(machine):
  machine.replies("describe", ends=1)  # There is no such slice.
  machine.replies("describe", says="READY\n")
  assert machine.run("tpu_vm.sh", *ARGUMENTS, **CLOUD)[0] == 0
  assert machine.calls == [
    *(DESCRIBE, CREATE, *INSTALL, TRAIN, DESCRIBE, DELETE)
  ]


def test_tpu_goes_on_in_a_new_slice(machine):
  for state in ("", "PREEMPTED", "READY"):
    machine.replies("describe", says=state)
  machine.replies("train", ends=255)
  code, _, complained = machine.run("tpu_vm.sh", *ARGUMENTS, PAUSE="9", **CLOUD)
  assert code == 0
  assert "PREEMPTED" in complained
  assert machine.calls == [
    *(DESCRIBE, CREATE, *INSTALL, TRAIN, ["sleep", "9"]),
    *(DESCRIBE, DELETE, CREATE, *INSTALL, TRAIN, DESCRIBE, DELETE),
  ]


def test_tpu_takes_the_slice_that_is_there(machine):
  for _ in range(3):
    machine.replies("describe", says="READY\n")
  machine.replies("train", ends=1)
  assert machine.run("tpu_vm.sh", *ARGUMENTS, PAUSE="1", **CLOUD)[0] == 0
  once = [DESCRIBE, *INSTALL, TRAIN]
  assert machine.calls == [*once, ["sleep", "1"], *once, DESCRIBE, DELETE]


@pytest.mark.parametrize("code", [2, 4])
def test_tpu_ends(machine, code):
  machine.replies("train", ends=code)
  machine.replies("describe")
  machine.replies("describe", says="READY\n")
  assert machine.run("tpu_vm.sh", *ARGUMENTS, **CLOUD)[0] == code
  assert machine.calls.count(TRAIN) == 1
  assert machine.calls[-1] == DELETE


def test_tpu_gives_up(machine):
  for _ in range(3):
    machine.replies("train", ends=75)
  for _ in range(4):
    machine.replies("describe", says="READY\n")
  assert machine.run("tpu_vm.sh", *ARGUMENTS, RESTARTS="2", **CLOUD)[0] == 75
  assert machine.calls.count(TRAIN) == 3
  assert machine.calls[-1] == DELETE


@pytest.mark.parametrize("broken", ["create", "scp", "install"])
def test_tpu_that_cannot_be_prepared_is_tried_again(machine, broken):
  machine.replies(broken, ends=1)
  assert machine.run("tpu_vm.sh", *ARGUMENTS, **CLOUD)[0] == 0
  assert machine.calls.count(CREATE) == 2
  assert machine.calls.count(TRAIN) == 1


@pytest.mark.parametrize("broken", ["create", "install"])
def test_tpu_that_can_never_be_prepared_is_given_up(machine, broken):
  machine.replies("describe")
  machine.replies("describe", says="READY\n")
  machine.replies(broken, ends=2)
  assert machine.run("tpu_vm.sh", *ARGUMENTS, **CLOUD)[0] == 2
  assert machine.calls.count(CREATE) == 1
  assert TRAIN not in machine.calls
  assert machine.calls[-1] == DELETE


def test_tpu_on_demand_that_is_kept(machine):
  for _ in range(2):
    machine.replies("describe", says="CREATING\n")
  settings = {"SPOT": "0", "KEEP": "1", "SLICE": "mine", "TYPE": "v6e-8"}
  assert machine.run("tpu_vm.sh", **CLOUD, **settings)[0] == 0
  (create,) = [call for call in machine.calls if "create" in call]
  assert "mine" in create
  assert "--accelerator-type=v6e-8" in create
  assert "--spot" not in create
  assert "delete" not in machine.calls[-1]


@pytest.mark.parametrize(
  ("settings", "arguments", "said"),
  [
    ({"ZONE": ""}, [], "set ZONE"),
    ({"STORAGE": ""}, [], "set STORAGE"),
    ({"STORAGE": "/mnt/disk"}, [], "set STORAGE"),
    ({"STORAGE": "gs://bucket/folder"}, [], "the bucket alone"),
    ({"STORAGE": "gs://"}, [], "set STORAGE"),
    ({"STORAGE": "s3://bucket"}, [], "set STORAGE"),
    ({"STORAGE": ":/share"}, [], "set STORAGE"),
    ({}, ["output=/tmp/run"], "output=/tmp/run"),
    ({}, ["--config", "smoke", "output=gs://bucket/run"], "output=gs://"),
    ({}, ["output=~/run"], "output=~/run"),
    ({}, ["output=../run"], "output=../run"),
    ({}, ["output=runs/../../run"], "output=runs/../../run"),
    ({}, ["output=runs/.."], "output=runs/.."),
  ],
)
def test_tpu_refuses_what_would_be_lost(machine, settings, arguments, said):
  code, _, complained = machine.run(
    "tpu_vm.sh", *arguments, **(CLOUD | settings)
  )
  assert code == 2
  assert said in complained
  assert not machine.calls


@pytest.mark.parametrize("storage", ["10.0.0.2:/share", "filer-1:/"])
def test_tpu_takes_what_can_be_mounted(machine, storage):
  settings = CLOUD | {"STORAGE": storage}
  output = "output=runs/..a/b..c"
  code, said, _ = machine.run("tpu_vm.sh", "--dry-run", output, **settings)
  assert code == 0
  assert f"install {storage}" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tpu_stopped_saves_and_deletes(machine, number):
  machine.replies("describe")
  machine.replies("describe", says="READY\n")
  stop = f"{WORKER} stop"
  machine.replies("train", until=stop, ends=75)
  assert machine.run_until(number, "tpu_vm.sh", *ARGUMENTS, **CLOUD)[0] == 75
  assert machine.calls.count(TRAIN) == 1
  assert machine.calls[-3:] == [on_workers(stop), DESCRIBE, DELETE]


@pytest.fixture
def worker(machine):
  """A worker of a slice, new but for the programs that it plays."""
  machine.play(machine.home / ".local" / "bin" / "uv")
  machine.play(machine.home / "reft" / "bin" / "python")
  return machine


def installs(worker) -> list[list[str]]:
  python = str(worker.home / "reft" / "bin" / "python")
  return [
    ["uv", "venv", "--quiet", "--clear", "--python", "3.12", python[:-11]],
    [
      *("uv", "pip", "install", "--quiet", "--python", python),
      f"{LAUNCH.parent}[tpu]",
    ],
  ]


def test_worker_mounts_a_bucket_and_installs(worker):
  worker.replies("mountpoint", ends=1)
  storage = str(worker.home / "storage")
  assert worker.run("tpu_worker.sh", "install", "gs://bucket")[0] == 0
  assert worker.calls == [
    ["mountpoint", "--quiet", storage],
    [
      *("gcsfuse", "--implicit-dirs", "--rename-dir-limit=100000"),
      *("--metadata-cache-ttl-secs=0", "bucket", storage),
    ],
    *installs(worker),
  ]
  assert pathlib.Path(storage).is_dir()


def test_worker_mounts_a_share(worker):
  worker.replies("mountpoint", ends=1)
  assert worker.run("tpu_worker.sh", "install", "10.0.0.2:/share")[0] == 0
  storage = str(worker.home / "storage")
  mount = ["sudo", "mount", "-t", "nfs", "-o", "lookupcache=positive"]
  assert [*mount, "10.0.0.2:/share", storage] in worker.calls


def test_worker_mounts_once(worker):
  assert worker.run("tpu_worker.sh", "install", "gs://bucket")[0] == 0
  assert worker.calls[1:] == installs(worker)


@pytest.mark.parametrize("broken", ["mount", "venv"])
def test_worker_that_fails_may_try_again(worker, broken):
  worker.replies("mountpoint", ends=1)
  worker.replies(broken, ends=2)  # Which says nothing of the arguments.
  assert worker.run("tpu_worker.sh", "install", "10.0.0.2:/share")[0] == 1


def test_worker_prints_what_a_new_one_would_do(machine):
  machine.replies("lsb_release", says="jammy\n")
  code, said, _ = machine.run(
    "tpu_worker.sh", "--dry-run", "install", "gs://bucket"
  )
  assert code == 0
  printed = [shlex.split(line) for line in said.splitlines()]
  assert [call[0] for call in printed] == [
    *("mkdir", "sudo", "sudo", "sudo", "sudo", "gcsfuse", "sh"),
    *(str(machine.home / ".local/bin/uv"),) * 2,
  ]
  assert "gcsfuse-jammy main" in said
  assert "https://astral.sh/uv/install.sh" in said
  assert machine.calls == [["lsb_release", "--short", "--codename"]]


def test_worker_trains_on_storage(worker):
  (worker.home / "storage").mkdir()
  worker.replies("python", ends=75)
  assert worker.run("tpu_worker.sh", "train", *ARGUMENTS)[0] == 75
  assert worker.calls == [["python", *PROGRAM, *ARGUMENTS]]
  code, said, _ = worker.run("tpu_worker.sh", "--dry-run", "train", *ARGUMENTS)
  assert (code, said.splitlines()) == (
    0,
    [
      f"cd {worker.home}/storage",
      f"exec {worker.home}/reft/bin/python -m reft_jax.train {TYPED}",
    ],
  )


PATTERN = "[-]m reft_jax[.]train"


def test_worker_waits_for_what_it_stops(worker):
  worker.replies("pgrep")
  worker.replies("pgrep", ends=1)  # It is gone.
  worker.replies("KILL", ends=1)
  assert worker.run("tpu_worker.sh", "stop")[0] == 0
  assert worker.calls == [
    ["pkill", "--signal", "TERM", "--full", PATTERN],
    ["pgrep", "--full", PATTERN],
    ["sleep", "2"],
    ["pgrep", "--full", PATTERN],
    ["pkill", "--signal", "KILL", "--full", PATTERN],
  ]


def test_worker_has_nothing_to_stop(worker):
  worker.replies("pkill", ends=1)
  assert worker.run("tpu_worker.sh", "stop")[0] == 0
  assert starts(worker, "pkill") == 1


def test_worker_stops_training_and_not_itself():
  program = "/home/me/reft/bin/python -m reft_jax.train --config smoke"
  assert re.search(PATTERN, program)
  assert not re.search(PATTERN, f"pkill --signal TERM --full {PATTERN}")


@pytest.mark.parametrize("arguments", [[], ["rest"], ["install", "/disk"]])
def test_worker_refuses_the_rest(worker, arguments):
  worker.replies("mountpoint", ends=1)
  assert worker.run("tpu_worker.sh", *arguments)[0] == 2


MANIFEST = LAUNCH / "kubernetes.yaml"


def manifests() -> dict[str, dict]:
  sets = list(yaml.safe_load_all(MANIFEST.read_text()))
  return {each["metadata"]["labels"]["accelerator"]: each for each in sets}


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_jobset(accelerator):
  jobset = manifests()[accelerator]
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  # All start again when one ends, but not after bad input or divergence.
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
  (rule,) = jobset["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert job["replicas"] == 1
  assert spec["parallelism"] == spec["completions"] > 1
  assert spec["backoffLimit"] == 0
  (policy,) = spec["podFailurePolicy"]["rules"]
  assert policy["action"] == "FailJob"
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  assert policy["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": [2, 4],
  }
  assert pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 120
  # The image's entry point is the program.
  assert "command" not in container
  command = configs.parse(container["args"])
  configs.validate(command.config)
  mounts = {
    each["mountPath"]: each["name"] for each in container["volumeMounts"]
  }
  volumes = {each["name"]: each for each in pod["volumes"]}
  assert set(mounts.values()) == set(volumes)
  assert "persistentVolumeClaim" in volumes[mounts["/storage"]]
  data = command.config.data
  for path in (command.config.output, data.train, data.test):
    assert path.startswith("/storage/")
  assert f"--selector accelerator={accelerator}" in MANIFEST.read_text()


def test_jobset_of_gpus_tells_its_processes_of_each_other():
  jobset = manifests()["gpu"]
  name = jobset["metadata"]["name"]
  (job,) = jobset["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  variables = {each["name"]: each for each in container["env"]}
  first = f"{name}-{job['name']}-0-0.{name}:"
  assert variables[processes.COORDINATOR]["value"].startswith(first)
  pods = job["template"]["spec"]["completions"]
  assert variables[processes.COUNT]["value"] == str(pods)
  field = variables[processes.INDEX]["valueFrom"]["fieldRef"]["fieldPath"]
  index = "batch.kubernetes.io/job-completion-index"
  assert field == f"metadata.annotations['{index}']"
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert pod["securityContext"]["runAsNonRoot"] is True
  (memory,) = [each for each in pod["volumes"] if "emptyDir" in each]
  assert memory["emptyDir"] == {"medium": "Memory"}


def test_jobset_of_tpus_is_a_slice():
  jobset = manifests()["tpu"]
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
  assert math.prod(map(int, topology.split("x"))) == chips * spec["completions"]


def test_all_take_the_same_share_of_a_gpu():
  name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
  shares = {}
  for path in [*SCRIPTS, MANIFEST, LAUNCH / "Dockerfile"]:
    found = re.findall(
      rf"{name}(?::?=|\n +value: \")(0\.\d+)", path.read_text()
    )
    shares[path.name] = set(found)
  for where in ("one_machine.sh", "slurm.sh", MANIFEST.name, "Dockerfile"):
    assert shares.pop(where) == {"0.9"}
  assert not any(shares.values())


def copied() -> list[str]:
  """What the Dockerfile takes from the repository."""
  lines = re.findall(r"^COPY (?!--from)(.+)$", dockerfile(), re.M)
  return [source for line in lines for source in line.split()[:-1]]


def dockerfile() -> str:
  return (LAUNCH / "Dockerfile").read_text()


def sent(path: str) -> bool:
  """Whether .dockerignore lets a path through; the last pattern decides."""
  through = True
  text = (LAUNCH.parent / ".dockerignore").read_text()
  for line in text.splitlines():
    pattern = line.removeprefix("!").removeprefix("**/")
    parts = (
      path.split("/") if line.startswith("**/") else [path.partition("/")[0]]
    )
    if (
      line
      and line[0] != "#"
      and any(fnmatch.fnmatch(part, pattern) for part in parts)
    ):
      through = line.startswith("!")
  return through


def test_image_runs_the_program_as_nobody_special(root):
  text = dockerfile()
  entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
  assert entry == ["python", *PROGRAM]
  assert re.search(r"^USER 1000:1000$", text, re.M)
  project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
  default = re.search(r"^ARG JAX=(\w+)$", text, re.M)[1]
  extras = project["optional-dependencies"]
  assert extras["cuda"] == [f"jax[{default}]"]
  assert "--build-arg JAX=tpu" in text
  assert extras["tpu"] == ["jax[tpu]"]
  version = re.search(r"^FROM python:([\d.]+)-slim", text, re.M)[1]
  assert tuple(map(int, version.split("."))) >= (3, 11)


def test_image_gets_what_it_installs_and_no_more(root, tmp_path):
  assert copied()
  for name in copied():
    assert (root / name).exists()
    assert sent(name)
  for name in (".git/config", ".venv/bin/python", "runs/a", "tests/tiny.py"):
    assert not sent(name)
  assert not sent("reft_jax/__pycache__/train.pyc")
  # As the image does it, but for what it depends on.
  source = tmp_path / "source"
  source.mkdir()
  for name in copied():
    if (root / name).is_dir():
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.copytree(root / name, source / name, ignore=ignored)
    else:
      shutil.copy(root / name, source)
  options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
  subprocess.run(
    [
      *(sys.executable, "-m", "pip", "install", *options),
      *("--target", tmp_path / "image", source),
    ],
    check=True,
  )
  image = tmp_path / "image" / "reft_jax"
  assert (image / "train.py").is_file()
  assert (image / "models" / "networks.py").is_file()
  assert (image / "experiments" / "embedded.yaml").is_file()


BOOK = LAUNCH / "colab.ipynb"


@pytest.fixture
def book():
  notebook = nbformat.read(BOOK, as_version=4)
  nbformat.validate(notebook)
  return notebook


def test_notebook_holds_no_outputs(book):
  for cell in book.cells:
    if cell.cell_type == "code":
      assert not cell.outputs
      assert cell.execution_count is None
  settings = [
    c for c in book.cells if "parameters" in c.metadata.get("tags", [])
  ]
  (form,) = settings
  assert form.metadata.cellView == "form"
  assert 'EXPERIMENT = "embedded"' in form.source
  (start,) = [cell for cell in book.cells if cell.id == "train"]
  assert '"distributed=off"' in start.source
  assert configs.parse(["distributed=off"]).config.distributed == "off"


@pytest.mark.parametrize(
  ("driver", "inside", "installed"),
  [
    (None, True, ["--editable", "."]),
    (None, False, ["git+https://example.org/reft_jax.git"]),
    ("580.65.06", True, ["--editable", ".", "jax[cuda13]"]),
    ("550.54.15", True, ["--editable", ".", "jax[cuda12]"]),
  ],
)
def test_notebook_installs(book, tmp_path, driver, inside, installed):
  """From the checkout around it, else from git; with JAX for the device."""
  if not driver and glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"):
    pytest.skip("a TPU is found here, which is not played")
  machine = Machine(tmp_path, ["nvidia-smi"])
  if driver:
    machine.replies("nvidia-smi", says=f"{driver}\n")
  else:
    machine.replies("nvidia-smi", ends=9)
  machine.prepare()
  # The program is not importable; pip is played.
  stubs = tmp_path / "stubs"
  machine.play(stubs / "pip" / "__main__.py")
  (stubs / "pip" / "__init__.py").touch()
  (stubs / "reft_jax").mkdir()
  (stubs / "reft_jax" / "__init__.py").write_text("raise ImportError")
  checkout = tmp_path / "checkout"
  (checkout / "launch").mkdir(parents=True)
  if inside:
    (checkout / "reft_jax").mkdir()
    (checkout / "reft_jax" / "train.py").write_text("raise ImportError")
  sources = {cell.id: cell.source for cell in book.cells}
  url = 'REPOSITORY = "https://example.org/reft_jax.git"'
  code = "\n".join([sources["settings"], url, sources["install"]])
  ran = subprocess.run(
    [sys.executable, "-c", code + "\nprint(python)"],
    cwd=checkout / "launch",
    env=machine.environment | {"PYTHONPATH": str(stubs)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ran.returncode == 0, ran.stdout + ran.stderr
  top = checkout if inside else checkout / "launch"
  python = str(top / "runs" / "environment" / "bin" / "python")
  assert ran.stdout.splitlines()[-1] == python
  assert os.access(python, os.X_OK)
  assert machine.calls[-1] == [
    *("__main__.py", f"--python={python}", "install", "--quiet", *installed)
  ]


# As little as goes through all cells.
TINY = (
  "base.steps=2 base.optimizer.kind=adamw base.width=16 base.ffn=16"
  " base.layers=1 embedded.documents=128 embedded.questions=16 embedded.test=4"
  " data.dev_size=4 warmup.epochs=1 sft.epochs=1 sft.learning_rates=[1e-3]"
  " reft.steps=1 reft.batch_size=8 reft.minibatch_size=8"
  " evaluation.batch_size=4 evaluation.majority_samples=2"
  " evaluation.resamples=10 logging.tensorboard=false logging.every=1"
)


def test_notebook_runs(book, root, tmp_path):
  settings = {
    "EXPERIMENT": "smoke",
    "OVERRIDES": f"{TINY} base.cache={tmp_path / 'cache'}",
    "OUTPUT": str(tmp_path / "run"),
    "SAMPLES": 2,
  }
  (place,) = [
    number
    for number, cell in enumerate(book.cells)
    if "parameters" in cell.metadata.get("tags", [])
  ]
  lines = [f"{name} = {value!r}" for name, value in settings.items()]
  book.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
  environment = os.environ | {
    "PYTHONPATH": str(root),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  environment.pop("MPLBACKEND", None)  # As in a notebook: pictures in it.
  client = nbclient.NotebookClient(
    book,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(tmp_path)}},
  )
  client.execute(env=environment)

  outputs = {cell.id: cell.get("outputs", []) for cell in book.cells}

  def shown(name: str, kind: str) -> str:
    return "".join(
      output.get("data", {}).get(kind, "") for output in outputs[name]
    )

  def said(name: str) -> str:
    return "".join(output.get("text", "") for output in outputs[name])

  assert said("install") == ""  # It was there.
  assert "Accuracy on 4 test problems" in said("train")
  assert shown("curves", "image/png")
  solutions = shown("solutions", "text/html")
  assert ">sft<" in solutions
  assert ">reft<" in solutions
  assert solutions.count("<tr>") == 1 + 4
  assert "majority@2" in said("evaluation")
  assert shown("samples", "text/html").count("<tr>") == 1 + 3 * 2
  assert (tmp_path / "run" / "models" / "reft" / "config.json").is_file()
  assert not (tmp_path / "runs").exists()


def test_readme_names_every_way_to_start():
  text = (LAUNCH / "README.md").read_text()
  files = {path.name for path in LAUNCH.iterdir() if path.is_file()}
  for name in files - {"README.md"}:
    assert f"]({name})" in text
  for target in re.findall(r"\]\(([^)]+)\)", text):
    assert (LAUNCH / target).exists()
