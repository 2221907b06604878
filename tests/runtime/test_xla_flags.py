"""Compiler flags: known to the compilers here, and harmless where unknown."""

import os
import pathlib
import re
import subprocess
import sys
from importlib import metadata, util

import pytest

from reft_jax import evaluate, train
from reft_jax.config import cli, schema
from reft_jax.runtime import xla_flags

CUDA, TPU = xla_flags.FLAGS["cuda"], xla_flags.FLAGS["tpu"]
INVENTED = "--xla_invented_flag=true"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """GPUs, an empty cache of trials, and an environment without flags."""
  monkeypatch.setattr(xla_flags, "CACHE", str(tmp_path / "tried"))
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  return tmp_path / "tried"


@pytest.fixture
def all_known(monkeypatch):
  """The compiler knows all flags."""
  monkeypatch.setattr(xla_flags, "_tried", lambda kind, flags: [])


def used(wanted: str = "fast") -> str:
  """Sets flags; returns the line that says which."""
  said = []
  xla_flags.use(wanted, said.append)
  (line,) = said
  return line


# The compiler for CPUs reads the flags of the one for GPUs, too.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "tpu"])
def test_flags_are_known_and_an_invented_one_is_not(kind):
  if kind == "tpu" and not util.find_spec("libtpu"):
    pytest.skip("needs libtpu")
  flags = xla_flags.FLAGS[kind]
  assert xla_flags.unknown(kind, flags) == []
  assert xla_flags.unknown(kind, (*flags, INVENTED)) == ["xla_invented_flag"]


def test_a_trial_is_cached(cache, monkeypatch):
  tried = []
  monkeypatch.setattr(
    xla_flags, "_tried", lambda kind, flags: tried.append(flags) or ["xla_old"]
  )
  for _ in range(2):
    assert xla_flags.unknown("cuda", ["--xla_old=1"]) == ["xla_old"]
  assert len(tried) == 1
  xla_flags.unknown("cuda", ["--xla_old=1", "--xla_new=1"])
  assert len(tried) == 2
  # Another version knows other flags.
  monkeypatch.setattr(metadata, "version", lambda name: "9.9")
  xla_flags.unknown("cuda", ["--xla_old=1"])
  assert len(tried) == 3
  # A file that was half written says nothing.
  for file in cache.iterdir():
    file.write_text("{")
  xla_flags.unknown("cuda", ["--xla_old=1"])
  assert len(tried) == 4


def test_a_folder_that_cannot_be_written_is_no_fault(cache, all_known):
  cache.write_text("a file where the folder should be")
  assert xla_flags.unknown("cuda", ["--xla_new=1"]) == []


def test_nothing_is_set_unless_asked(all_known):
  xla_flags.use("none", pytest.fail)
  assert "XLA_FLAGS" not in os.environ
  assert schema.Config().xla_flags == "none"


THEIRS = f"--xla_theirs=1 {CUDA[0].replace('true', 'false')}"
OF_JAX = "--xla_tpu_of_jax=true"


@pytest.mark.parametrize(
  ("platform", "before", "after", "said"),
  [
    ("cpu", "", "", "there are none for what this runs on"),
    ("cuda", "", " ".join(CUDA), f"{len(CUDA)} flags added to XLA_FLAGS"),
    # What jax puts there when it is imported stays.
    (
      *("tpu,cpu", f" {OF_JAX}", " ".join([*TPU, OF_JAX])),
      f"{len(TPU)} flags added to LIBTPU_INIT_ARGS",
    ),
    # The user's flags win.
    (
      *("cuda", THEIRS, " ".join([*CUDA[1:], THEIRS])),
      f"{len(CUDA) - 1} flags added to XLA_FLAGS",
    ),
    ("cuda", "@flags", "@flags", "none are set, since XLA_FLAGS names a file"),
  ],
)
def test_what_is_set(all_known, monkeypatch, platform, before, after, said):
  variables = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"]
  ours, other = variables[:: -1 if platform.startswith("tpu") else 1]
  monkeypatch.setenv("JAX_PLATFORMS", platform)
  monkeypatch.setattr(metadata, "version", lambda name: "1.0")
  if before:
    monkeypatch.setenv(ours, before)
  assert used() == f"xla_flags=fast: {said}"
  assert os.environ.get(ours, "") == after
  assert other not in os.environ


def test_unknown_flags_are_left_out_and_named(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "gpu")
  flags = (CUDA[0], INVENTED, CUDA[1])
  monkeypatch.setitem(xla_flags.FLAGS, "cuda", flags)
  assert used() == (
    "xla_flags=fast: 2 flags added to XLA_FLAGS; left out, unknown to this"
    " jaxlib: --xla_invented_flag"
  )
  assert os.environ["XLA_FLAGS"].split() == [CUDA[0], CUDA[1]]


@pytest.mark.parametrize(
  ("seconds", "reason"),
  [(300, "exit code 1: broken"), (0.01, "timed out after 0.01 seconds")],
)
def test_a_trial_that_fails_otherwise(cache, monkeypatch, seconds, reason):
  monkeypatch.setitem(xla_flags._TRIALS, "cuda", "raise SystemExit('broken')")
  monkeypatch.setattr(xla_flags, "_TRIAL_SECONDS", seconds)
  said = used()
  assert "none are set, they could not be tried (" in said
  assert said.endswith(f"{reason})")
  assert "XLA_FLAGS" not in os.environ
  assert not cache.exists()


@pytest.mark.parametrize(
  ("asked", "device", "installed", "found"),
  [
    ("cpu", "/dev/nvidia0", True, None),
    ("cuda,cpu", "", False, "cuda"),
    ("gpu", "", False, "cuda"),
    ("tpu", "", False, "tpu"),
    ("", "/dev/nvidiactl", True, "cuda"),
    ("", "/dev/nvidiactl", False, None),
    ("", "/dev/accel0", True, "tpu"),
    ("", "/dev/vfio/0", True, "tpu"),
    ("", "/dev/vfio/0", False, None),
    ("", "", True, None),
  ],
)
def test_the_platform_without_jax(asked, device, installed, found, monkeypatch):
  def glob(pattern):
    return [device] * pathlib.PurePath(device).match(pattern)

  monkeypatch.setenv("JAX_PLATFORMS", asked)
  monkeypatch.setattr(xla_flags.glob, "glob", glob)
  monkeypatch.setattr(os.path, "exists", lambda path: path == device)
  monkeypatch.setattr(
    xla_flags.importlib.util, "find_spec", lambda name: installed or None
  )
  monkeypatch.setattr(
    metadata, "distributions", lambda name: [name] * installed
  )
  assert xla_flags.platform() == found


@pytest.mark.slow
def test_flags_that_are_set_after_the_imports_are_read(monkeypatch):
  """Importing a command does not start jax."""
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  program = (
    "import os\n"
    "import jax\n"
    "import reft_jax.evaluate, reft_jax.train\n"
    f"os.environ['XLA_FLAGS'] = {INVENTED!r}\n"
    "jax.numpy.zeros(1)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  assert done.returncode
  assert f"Unknown flag in XLA_FLAGS: {INVENTED}" in done.stderr


def test_train_and_evaluate_set_them_first(monkeypatch):
  """Before processes join, and before anything is opened."""
  monkeypatch.setattr(xla_flags, "use", lambda wanted, say: {}[wanted])
  arguments = ["--config", "smoke", "xla_flags=fast"]
  with pytest.raises(KeyError, match="fast"):
    train.main(arguments)
  command = cli.parse(arguments)
  monkeypatch.setattr(evaluate.model_paths, "find", lambda path: [path])
  monkeypatch.setattr(
    evaluate.prepare, "read_settings", lambda model, _: command.config
  )
  with pytest.raises(KeyError, match="fast"):
    evaluate.main(["a/model"])


def test_the_documentation_has_each_flag(root):
  text = (root / "launch" / "README.md").read_text()
  flags = re.findall(r"^\| `(--.*?)` \| \w.* \|$", text, re.M)
  assert flags == [*CUDA, *TPU]
