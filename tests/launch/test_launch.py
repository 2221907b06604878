"""The launch scripts, the image, the JobSets and the notebook.

Fake programs (gcloud, srun, python ...) record how they are called, and print
and exit as each test tells them to.
"""

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

from reft_jax.config import checks, cli
from reft_jax.runtime import cluster

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
LIBRARY = LAUNCH / "lib.sh"
SCRIPTS = sorted(set(LAUNCH.glob("*.sh")) - {LIBRARY})
PROGRAM = ["python", "-m", "reft_jax.train"]
# These need quoting in a shell.
ARGUMENTS = ["--config", "smoke", "data.train=my file.json", "name=it's $HOME"]
QUOTED = "--config smoke 'data.train=my file.json' 'name=it'\\''s $HOME'"
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"

# Records its call. Then it takes the first reply whose words `to` are all in
# the call: it prints `says` and exits with `ends`. With `until` it first waits
# for that signal, or for another call in which a word ends with `until`.
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
for _ in range(1500 if until else 0):
  time.sleep(0.02)
  made = map(json.loads, calls.read_text().splitlines())
  if any(part.endswith(str(until)) for parts in made for part in parts):
    break
else:
  sys.exit("nothing came" if until else reply["ends"])
sys.exit(reply["ends"])
"""
# The real ones would reach clusters, clouds and other processes.
FAKED = (
  *("python", "srun", "sbatch", "scontrol", "gcloud", "sleep", "sudo", "curl"),
  *("gcsfuse", "mountpoint", "pkill", "pgrep", "lsb_release"),
)


class Machine:
  """A machine on which some programs are fakes and the rest are real."""

  def __init__(self, folder: pathlib.Path, names):
    self.folder = folder
    self.home = folder / "home"
    self.home.mkdir()
    self._replies = folder / "replies.json"
    self._replies.write_text("[]")
    self._calls = folder / "calls.jsonl"
    self._calls.touch()
    for name in names:
      self.fake(folder / "bin" / name)
    self.environment = {
      "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
      "HOME": str(self.home),
    }

  def fake(self, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.format(python=sys.executable, folder=str(self.folder)))
    path.chmod(0o755)

  def reply(self, *to: str, says="", ends=0, until=None) -> None:
    """The next call with these words gets this reply."""
    replies = json.loads(self._replies.read_text())
    replies.append({"to": to, "says": says, "ends": ends, "until": until})
    self._replies.write_text(json.dumps(replies))

  def run(self, script, *arguments: str, kill=None, **variables: str):
    """Runs a script of launch/; returns its exit code, stdout and stderr.

    It gets the signal `kill` once a fake waits for one.
    """
    process = subprocess.Popen(
      # Tests that run in the background would pass on an ignored SIGINT.
      ["/usr/bin/env", "--default-signal=INT", LAUNCH / script, *arguments],
      cwd=self.folder,
      env=self.environment | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    if kill:
      deadline = time.monotonic() + 30
      while not (self.folder / "waiting").exists():
        assert time.monotonic() < deadline, "no fake waits for a signal"
        time.sleep(0.02)
      process.send_signal(kill)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err

  @property
  def calls(self) -> list[list[str]]:
    """How the fakes were called, in order."""
    return [json.loads(line) for line in self._calls.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path, FAKED)


@pytest.fixture
def spooled(tmp_path):
  """The copy of slurm.sh that SLURM runs in a job."""
  return shutil.copy(LAUNCH / "slurm.sh", tmp_path / "slurm_script")


def shellcheck(*paths) -> subprocess.CompletedProcess:
  binary = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
  options = ("--external-sources", "--source-path=SCRIPTDIR")
  return subprocess.run(
    [binary, *options, *paths], capture_output=True, text=True, check=False
  )


def test_shellcheck(tmp_path):
  checked = shellcheck(*SCRIPTS, LIBRARY)
  assert not checked.returncode, checked.stdout
  faulty = tmp_path / "faulty.sh"
  faulty.write_text("#!/usr/bin/env bash\nrm $1\n")
  assert "SC2086" in shellcheck(faulty).stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_strict_and_explains_its_settings(script, machine):
  text = script.read_text()
  assert os.access(script, os.X_OK)
  assert text.startswith("#!/usr/bin/env bash\n")
  first = next(ln for ln in text.splitlines() if not re.match(r"#|$", ln))
  assert first == "set -euo pipefail"
  code, out, err = machine.run(script.name, "--help")
  assert (code, err, machine.calls) == (0, "", [])
  for word in ("needs", "does", "gives", "--dry-run", "--help"):
    assert word in out
  for name, default in re.findall(r'"\$\{(\w+):=(.*?)\}"', text):
    setting = f"{name}={default} " if default else f"{name} "
    assert re.search(f"^ *{re.escape(setting)}", out, re.M)
  assert max(map(len, text.splitlines())) <= 80


COMMAND = [f"{MEMORY}=0.9", *PROGRAM]
STEP = [
  *("srun", "--ntasks-per-node=1", "--cpu-bind=none", "--label"),
  *("--kill-on-bad-exit=0", "--wait=600", "env", *COMMAND),
]
JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}
CLOUD = {"ZONE": "us-x1-a", "STORAGE": "gs://bucket"}
TPU = "gcloud compute tpus tpu-vm"
ZONE = "--zone=us-x1-a"
WORKER = "source/launch/tpu_worker.sh"
# What an installation needs.
SOURCES = (
  *("pyproject.toml", "requirements.txt", "README.md", "LICENSE"),
  *("reft_jax", "models", "launch"),
)


def on_workers(command: str) -> list[str]:
  ssh = f"{TPU} ssh reft {ZONE} --worker=all"
  return [*ssh.split(), f"--command={command}"]


DESCRIBE = f"{TPU} describe reft {ZONE} --format=value(state)".split()
DELETE = f"{TPU} delete reft {ZONE} --quiet".split()
CREATE = (
  f"{TPU} create reft {ZONE} --accelerator-type=v5litepod-16"
  " --version=v2-alpha-tpuv5-lite --spot"
).split()
SCP = [
  *f"{TPU} scp --recurse".split(),
  *(str(ROOT / name) for name in SOURCES),
  *f"reft:source {ZONE} --worker=all".split(),
]
EMPTY = (
  f"if test -x {WORKER}; then {WORKER} stop; fi && rm -rf source"
  " && mkdir source"
)
INSTALL = [on_workers(EMPTY), SCP, on_workers(f"{WORKER} install gs://bucket")]
TRAIN = on_workers(f"{WORKER} train {QUOTED}")
TRAIN_THERE = [DESCRIBE, *INSTALL, TRAIN]  # On the existing slice.
SUBMIT = ["sbatch", "--nodes=2", str(LAUNCH / "slurm.sh"), *ARGUMENTS]
ON_NODES = [[*STEP, *ARGUMENTS], ["#", "after", "exit", "code", "75"]]


@pytest.mark.parametrize(
  ("script", "settings", "printed"),
  [
    ("one_machine.sh", {}, [["env", *COMMAND, *ARGUMENTS]]),
    ("slurm.sh", {}, [SUBMIT, *ON_NODES, ["scontrol", "requeue", "JOB"]]),
    ("slurm.sh", JOB, [*ON_NODES, ["scontrol", "requeue", "7"]]),
    ("tpu_vm.sh", CLOUD, [CREATE, *INSTALL, TRAIN, DELETE]),
  ],
)
def test_dry_run_prints_the_commands(machine, script, settings, printed):
  code, out, _ = machine.run(script, "--dry-run", *ARGUMENTS, **settings)
  assert (code, machine.calls) == (0, [])
  assert [shlex.split(line) for line in out.splitlines()] == printed
  # QUOTED is part of TRAIN: the shell of a TPU worker splits it again.
  assert QUOTED in out or script == "tpu_vm.sh"
  assert shlex.split(QUOTED) == ARGUMENTS


def test_one_machine_passes_arguments_on(machine):
  python = machine.folder / "an environment" / "python3"
  machine.fake(python)
  # After the first of the program's arguments, --dry-run is the program's, too.
  arguments = [*ARGUMENTS, "--dry-run"]
  assert machine.run("one_machine.sh", *arguments, PYTHON=str(python))[0] == 0
  assert machine.calls == [["python3", *PROGRAM[1:], *arguments]]


@pytest.mark.parametrize(
  ("script", "codes"),
  [
    # Each start but the last leads to a restart; the last ends the script.
    *(("one_machine.sh", [code, 0]) for code in (75, 1, 3, 134, 137)),
    *(("one_machine.sh", [code]) for code in (2, 4, 130)),
    *(("one_machine.sh", [code] * 3) for code in (75, 1)),
    *(("slurm.sh", codes) for codes in ([0], [2], [4], [134, 0], [137] * 3)),
    *(("tpu_vm.sh", codes) for codes in ([2], [4], [1, 0], [255, 0], [75] * 3)),
  ],
)
def test_restarts_unless_the_end_is_final(machine, spooled, script, codes):
  path, program, start, end, settings = {
    "one_machine.sh": (script, "python", [[*PROGRAM, *ARGUMENTS]], [], {}),
    "slurm.sh": (spooled, "srun", [[*STEP, *ARGUMENTS]], [], JOB),
    "tpu_vm.sh": (script, "train", TRAIN_THERE, [DESCRIBE, DELETE], CLOUD),
  }[script]
  for code in codes:
    machine.reply(program, ends=code)
  for _ in range(len(codes) + 1):
    machine.reply("describe", says="READY\n")
  settings = settings | {"RESTARTS": "2", "PAUSE": "9"}
  code, _, err = machine.run(path, *ARGUMENTS, **settings)
  assert code == codes[-1]
  restart = [["sleep", "9"], *start]
  assert machine.calls == [*start, *restart * (len(codes) - 1), *end]
  assert ("after 2 restarts; giving up" in err) == (len(codes) == 3)
  assert all(line.startswith(f"{script}: ") for line in err.splitlines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("script", ["one_machine.sh", "tpu_vm.sh"])
def test_signal_lets_the_program_save(machine, script, number):
  stop = f"{WORKER} stop"
  machine.reply("python", until=signal.SIGTERM, ends=75)
  machine.reply("train", until=stop, ends=75)
  machine.reply("describe")
  machine.reply("describe", says="READY\n")
  assert machine.run(script, *ARGUMENTS, kill=number, **CLOUD)[0] == 75
  expected = [[*PROGRAM, *ARGUMENTS]]
  if script == "tpu_vm.sh":
    saved = [on_workers(stop), DESCRIBE, DELETE]
    expected = [DESCRIBE, CREATE, *INSTALL, TRAIN, *saved]
  assert machine.calls == expected


def test_slurm_submits_itself(machine):
  assert machine.run("slurm.sh", *ARGUMENTS, NODES="4")[0] == 0
  script = str(LAUNCH / "slurm.sh")
  assert machine.calls == [["sbatch", "--nodes=4", script, *ARGUMENTS]]


def test_slurm_reads_its_directives():
  # SLURM reads directives up to the first command.
  head, _, rest = (LAUNCH / "slurm.sh").read_text().partition("set -euo")
  assert {
    *("--ntasks-per-node=1", "--gpus-per-node=8", "--signal=TERM@120"),
    *("--requeue", "--open-mode=append"),
  } <= set(re.findall(r"^#SBATCH (.*)$", head, re.M))
  assert "#SBATCH" not in rest


@pytest.mark.parametrize(
  ("settings", "ends", "requeues", "message"),
  [
    ({"SLURM_RESTART_COUNT": "9"}, 0, 1, "preempted; requeued"),
    ({"SLURM_RESTART_COUNT": "3", "REQUEUES": "3"}, 0, 0, ""),
    ({}, 1, 1, "cannot be requeued"),
  ],
)
def test_slurm_requeues_a_limited_number_of_times(
  machine, spooled, settings, ends, requeues, message
):
  machine.reply("srun", ends=75)
  machine.reply("scontrol", ends=ends)
  code, _, err = machine.run(spooled, **JOB, **settings)
  assert code == 75
  assert machine.calls == [STEP, *[["scontrol", "requeue", "7"]] * requeues]
  assert message in err


def test_tpu_resumes_in_a_new_slice(machine):
  machine.reply("describe", ends=1)  # There is no slice.
  machine.reply("describe", says="PREEMPTED")
  machine.reply("describe", says="READY")
  machine.reply("train", ends=255)
  code, _, err = machine.run("tpu_vm.sh", *ARGUMENTS, PAUSE="9", **CLOUD)
  assert code == 0
  assert "PREEMPTED" in err
  assert machine.calls == [
    *(DESCRIBE, CREATE, *INSTALL, TRAIN, ["sleep", "9"]),
    *(DESCRIBE, DELETE, CREATE, *INSTALL, TRAIN, DESCRIBE, DELETE),
  ]


@pytest.mark.parametrize(
  ("broken", "code"),
  [("create", 1), ("scp", 1), ("install", 1), ("create", 2), ("install", 2)],
)
def test_tpu_prepares_again_unless_it_can_never_work(machine, broken, code):
  again = code != 2
  for state in ("", "", "READY") if again else ("", "READY"):
    machine.reply("describe", says=state)
  machine.reply(broken, ends=code)
  ended, _, _ = machine.run("tpu_vm.sh", *ARGUMENTS, **CLOUD)
  assert ended == (0 if again else 2)
  assert machine.calls.count(CREATE) == 1 + again
  assert machine.calls.count(TRAIN) == again
  assert machine.calls[-1] == DELETE


def test_tpu_on_demand_that_is_kept(machine):
  for _ in range(2):
    machine.reply("describe", says="CREATING\n")
  settings = {"SPOT": "0", "KEEP": "1", "SLICE": "mine", "TYPE": "v6e-8"}
  assert machine.run("tpu_vm.sh", **CLOUD, **settings)[0] == 0
  (create,) = [call for call in machine.calls if "create" in call]
  assert {"mine", "--accelerator-type=v6e-8"} <= set(create)
  assert "--spot" not in create
  assert "delete" not in machine.calls[-1]


@pytest.mark.parametrize(
  ("settings", "arguments", "message"),
  [
    ({"ZONE": ""}, [], "set ZONE"),
    ({"STORAGE": "gs://bucket/folder"}, [], "the bucket alone"),
    *(
      ({"STORAGE": storage}, [], "set STORAGE")
      for storage in ("", "/mnt/disk", "gs://", "s3://bucket", ":/share")
    ),
    ({}, ["--config", "smoke", "output=gs://bucket/run"], "output=gs://"),
    *(
      ({}, [f"output={path}"], f"output={path}")
      for path in ("/tmp/run", "~/run", "../run", "runs/../../run", "runs/..")
    ),
  ],
)
def test_tpu_refuses_what_would_be_lost(machine, settings, arguments, message):
  code, _, err = machine.run("tpu_vm.sh", *arguments, **(CLOUD | settings))
  assert code == 2
  assert message in err
  assert not machine.calls


@pytest.mark.parametrize("storage", ["10.0.0.2:/share", "filer-1:/"])
def test_tpu_takes_what_can_be_mounted(machine, storage):
  settings = CLOUD | {"STORAGE": storage}
  output = "output=runs/..a/b..c"
  code, out, _ = machine.run("tpu_vm.sh", "--dry-run", output, **settings)
  assert code == 0
  assert f"install {storage}" in out


@pytest.fixture
def worker(machine):
  """A new worker of a slice that already has uv and an environment."""
  machine.fake(machine.home / ".local" / "bin" / "uv")
  machine.fake(machine.home / "reft" / "bin" / "python")
  return machine


GCSFUSE = (
  "gcsfuse --implicit-dirs --rename-dir-limit=100000"
  " --metadata-cache-ttl-secs=0 bucket ~/storage"
)
NFS = [
  "sudo apt-get --quiet update",
  "sudo apt-get --quiet --yes install nfs-common",
  "sudo mount -t nfs -o lookupcache=positive host:/share ~/storage",
]


@pytest.mark.parametrize(
  ("storage", "is_mounted", "mounts"),
  [
    ("gs://bucket", False, [GCSFUSE]),
    ("host:/share", False, NFS),
    ("gs://bucket", True, []),
  ],
)
def test_worker_mounts_and_installs(worker, storage, is_mounted, mounts):
  worker.reply("mountpoint", ends=not is_mounted)
  assert worker.run("tpu_worker.sh", "install", storage)[0] == 0
  expected = [
    "mountpoint --quiet ~/storage",
    *mounts,
    "uv venv --quiet --clear --python 3.12 ~/reft",
    f"uv pip install --quiet --python ~/reft/bin/python {ROOT}[tpu]",
  ]
  made = [" ".join(call) for call in worker.calls]
  assert made == [call.replace("~", str(worker.home)) for call in expected]
  assert (worker.home / "storage").is_dir()


@pytest.mark.parametrize("broken", ["mount", "venv"])
def test_worker_failure_may_be_temporary(worker, broken):
  worker.reply("mountpoint", ends=1)
  worker.reply(broken, ends=2)  # This 2 is not about the arguments.
  assert worker.run("tpu_worker.sh", "install", "10.0.0.2:/share")[0] == 1


def test_worker_dry_run_prints_what_a_new_one_would_do(machine):
  machine.reply("lsb_release", says="jammy\n")
  code, out, _ = machine.run(
    "tpu_worker.sh", "--dry-run", "install", "gs://bucket"
  )
  assert code == 0
  programs = [line.split()[0] for line in out.splitlines()]
  uv = str(machine.home / ".local/bin/uv")
  assert programs == ["mkdir", *["sudo"] * 4, "gcsfuse", "sh", uv, uv]
  assert "gcsfuse-jammy main" in out
  assert "https://astral.sh/uv/install.sh" in out
  assert machine.calls == [["lsb_release", "--short", "--codename"]]


def test_worker_trains_on_storage(worker):
  (worker.home / "storage").mkdir()
  worker.reply("python", ends=75)
  assert worker.run("tpu_worker.sh", "train", *ARGUMENTS)[0] == 75
  assert worker.calls == [[*PROGRAM, *ARGUMENTS]]
  code, out, _ = worker.run("tpu_worker.sh", "--dry-run", "train", *ARGUMENTS)
  run = f"{worker.home}/reft/bin/python -m reft_jax.train {QUOTED}"
  assert (code, out) == (0, f"cd {worker.home}/storage\nexec {run}\n")


PATTERN = "[-]m reft_jax[.]train"
TERM = ["pkill", "--signal", "TERM", "--full", PATTERN]


def test_worker_waits_for_what_it_stops(worker):
  worker.reply("pgrep")
  worker.reply("pgrep", ends=1)  # The program has ended.
  worker.reply("KILL", ends=1)
  assert worker.run("tpu_worker.sh", "stop")[0] == 0
  look = ["pgrep", "--full", PATTERN]
  kill = ["pkill", "--signal", "KILL", "--full", PATTERN]
  assert worker.calls == [TERM, look, ["sleep", "2"], look, kill]
  # The pattern matches the program, but not pkill itself.
  assert re.search(PATTERN, "/home/me/reft/bin/python -m reft_jax.train --help")
  assert not re.search(PATTERN, " ".join(TERM))


def test_worker_has_nothing_to_stop(worker):
  worker.reply("pkill", ends=1)
  assert worker.run("tpu_worker.sh", "stop")[0] == 0
  assert worker.calls == [TERM]


@pytest.mark.parametrize("arguments", [[], ["rest"], ["install", "/disk"]])
def test_worker_refuses_bad_arguments(worker, arguments):
  worker.reply("mountpoint", ends=1)
  assert worker.run("tpu_worker.sh", *arguments)[0] == 2


MANIFEST = LAUNCH / "kubernetes.yaml"


def read_jobset(accelerator: str) -> tuple[dict, dict, dict, dict]:
  """The JobSet, its job, and the job's pod and container."""
  (jobset,) = [
    each
    for each in yaml.safe_load_all(MANIFEST.read_text())
    if each["metadata"]["labels"]["accelerator"] == accelerator
  ]
  (job,) = jobset["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  return jobset, job, pod, container


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_jobset(accelerator):
  jobset, job, pod, container = read_jobset(accelerator)
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  assert f"--selector accelerator={accelerator}" in MANIFEST.read_text()
  # All pods restart when one fails, but not after bad input or divergence.
  failures = jobset["spec"]["failurePolicy"]
  assert failures["maxRestarts"] > 0
  (rule,) = failures["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  spec = job["template"]["spec"]
  assert job["replicas"] == 1
  assert spec["parallelism"] == spec["completions"] > 1
  assert spec["backoffLimit"] == 0
  codes = {"containerName": container["name"], "operator": "In"}
  final = {"action": "FailJob", "onExitCodes": codes | {"values": [2, 4]}}
  assert spec["podFailurePolicy"]["rules"] == [final]
  assert pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 120
  # The entry point of the image is the program.
  assert "command" not in container
  config = cli.parse(container["args"]).config
  checks.validate(config)
  mounts = {it["mountPath"]: it["name"] for it in container["volumeMounts"]}
  volumes = {each["name"]: each for each in pod["volumes"]}
  assert set(mounts.values()) == set(volumes)
  assert "persistentVolumeClaim" in volumes[mounts["/storage"]]
  for path in (config.output, config.data.train, config.data.test):
    assert path.startswith("/storage/")


def test_jobset_of_gpus_sets_the_variables_of_its_processes():
  jobset, job, pod, container = read_jobset("gpu")
  name = jobset["metadata"]["name"]
  variables = {each["name"]: each for each in container["env"]}
  first = f"{name}-{job['name']}-0-0.{name}:"
  assert variables[cluster.COORDINATOR]["value"].startswith(first)
  pods = job["template"]["spec"]["completions"]
  assert variables[cluster.COUNT]["value"] == str(pods)
  field = variables[cluster.INDEX]["valueFrom"]["fieldRef"]["fieldPath"]
  index = "batch.kubernetes.io/job-completion-index"
  assert field == f"metadata.annotations['{index}']"
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert pod["securityContext"]["runAsNonRoot"] is True
  (memory,) = [each for each in pod["volumes"] if "emptyDir" in each]
  assert memory["emptyDir"] == {"medium": "Memory"}


def test_jobset_of_tpus_is_a_slice():
  _, job, pod, container = read_jobset("tpu")
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  pods = job["template"]["spec"]["completions"]
  assert math.prod(map(int, topology.split("x"))) == chips * pods


def test_all_take_the_same_share_of_a_gpu():
  setting = rf"{MEMORY}(?::?=|\n +value: \")(0\.\d+)"
  shares = {
    path.name: set(re.findall(setting, path.read_text()))
    for path in (*SCRIPTS, LIBRARY, MANIFEST, LAUNCH / "Dockerfile")
  }
  for where in ("one_machine.sh", "slurm.sh", MANIFEST.name, "Dockerfile"):
    assert shares.pop(where) == {"0.9"}
  assert not any(shares.values())


DOCKERFILE = (LAUNCH / "Dockerfile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_image_runs_the_program_without_root():
  entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[1])
  assert entry == PROGRAM
  assert re.search(r"^USER 1000:1000$", DOCKERFILE, re.M)
  default = re.search(r"^ARG JAX=(\w+)$", DOCKERFILE, re.M)[1]
  extras = PYPROJECT["project"]["optional-dependencies"]
  assert extras["cuda"] == [f"jax[{default}]"]
  assert "--build-arg JAX=tpu" in DOCKERFILE
  assert extras["tpu"] == ["jax[tpu]"]
  version = re.search(r"^FROM python:([\d.]+)-slim", DOCKERFILE, re.M)[1]
  assert tuple(map(int, version.split("."))) >= (3, 11)


def test_image_gets_what_it_installs_and_no_more():
  project, setuptools = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
  folders = setuptools["package-dir"].values()
  assert set(SOURCES) == {
    *("pyproject.toml", project["readme"], *project["license-files"]),
    *setuptools["dynamic"]["dependencies"]["file"],
    *(folder.partition("/")[0] for folder in folders),
  }
  copies = re.findall(r"^COPY (?!--from)(.+) /source/", DOCKERFILE, re.M)
  assert sorted(" ".join(copies).split()) == sorted(SOURCES)
  ignored = (ROOT / ".dockerignore").read_text()
  first, *patterns, last = re.findall(r"^[^#\n].*", ignored, re.M)
  assert (first, last) == ("*", "**/__pycache__")
  assert sorted(patterns) == sorted(f"!{name}" for name in SOURCES)


@pytest.fixture
def book():
  notebook = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
  nbformat.validate(notebook)
  return notebook


def find_settings(book) -> int:
  """The index of the cell with the settings."""
  (index,) = [
    number
    for number, cell in enumerate(book.cells)
    if "parameters" in cell.metadata.get("tags", [])
  ]
  return index


def test_notebook_holds_no_outputs(book):
  for cell in book.cells:
    if cell.cell_type == "code":
      assert not cell.outputs
      assert cell.execution_count is None
  form = book.cells[find_settings(book)]
  assert form.metadata.cellView == "form"
  assert 'EXPERIMENT = "embedded"' in form.source
  (start,) = [cell for cell in book.cells if cell.id == "train"]
  assert '"distributed=off"' in start.source
  assert cli.parse(["distributed=off"]).config.distributed == "off"


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
  """From its checkout if there is one, else from git; with JAX for the GPU."""
  if not driver and glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"):
    pytest.skip("this machine has a real TPU")
  machine = Machine(tmp_path, ["nvidia-smi"])
  machine.reply("nvidia-smi", says=driver or "", ends=0 if driver else 9)
  # The program cannot be imported, and pip is a fake.
  stubs = tmp_path / "stubs"
  machine.fake(stubs / "pip" / "__main__.py")
  (stubs / "pip" / "__init__.py").touch()
  (stubs / "reft_jax").mkdir()
  (stubs / "reft_jax" / "__init__.py").write_text("raise ImportError")
  checkout = tmp_path / "checkout"
  (checkout / "launch").mkdir(parents=True)
  if inside:
    shutil.copytree(stubs / "reft_jax", checkout / "reft_jax")
    (checkout / "reft_jax" / "train.py").touch()
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


# The smallest run that executes all cells.
TINY = (
  "base.steps=2 base.optimizer.kind=adamw base.width=16 base.ffn=16"
  " base.layers=1 embedded.documents=128 embedded.questions=16 embedded.test=4"
  " data.dev_size=4 warmup.epochs=1 sft.epochs=1 sft.learning_rates=[1e-3]"
  " reft.steps=1 reft.batch_size=8 reft.minibatch_size=8"
  " evaluation.batch_size=4 evaluation.majority_samples=2"
  " evaluation.resamples=10 logging.tensorboard=false logging.every=1"
)


def test_notebook_runs(book, tmp_path):
  settings = {
    "EXPERIMENT": "smoke",
    "OVERRIDES": f"{TINY} base.cache={tmp_path / 'cache'}",
    "OUTPUT": str(tmp_path / "run"),
    "SAMPLES": 2,
  }
  lines = [f"{name} = {value!r}" for name, value in settings.items()]
  cell = nbformat.v4.new_code_cell("\n".join(lines))
  book.cells.insert(find_settings(book) + 1, cell)
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  environment.pop("MPLBACKEND", None)  # So that plots appear in the notebook.
  where = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(
    book, timeout=600, kernel_name="python3", resources=where
  ).execute(env=environment)
  outputs = {c.id: json.dumps(c.get("outputs", [])) for c in book.cells}
  assert outputs["install"] == "[]"  # The program was importable.
  assert "Accuracy on 4 test problems" in outputs["train"]
  assert "image/png" in outputs["curves"]
  solutions = outputs["solutions"]
  assert ">sft<" in solutions
  assert ">reft<" in solutions
  assert solutions.count("<tr>") == 1 + 4
  assert "majority@2" in outputs["evaluation"]
  assert outputs["samples"].count("<tr>") == 1 + 3 * 2
  assert (tmp_path / "run" / "models" / "reft" / "config.json").is_file()
  assert not (tmp_path / "runs").exists()


def test_readme_links_every_file():
  text = (LAUNCH / "README.md").read_text()
  files = {path.name for path in LAUNCH.iterdir() if path.is_file()}
  targets = re.findall(r"\]\(([^)]+)\)", text)
  assert files - {"README.md"} <= set(targets)
  assert all((LAUNCH / target).exists() for target in targets)
