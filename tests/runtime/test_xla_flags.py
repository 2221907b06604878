"""Compiler flags: known to the compilers here, and harmless where unknown."""

import os
import pathlib
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
  """An empty cache of trials, and an environment without flags."""
  monkeypatch.setattr(xla_flags, "CACHE", str(tmp_path / "tried"))
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  return tmp_path / "tried"


@pytest.fixture
def gpus(monkeypatch):
  """A machine with GPUs whose compiler knows all flags."""
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
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
  flags = tuple(xla_flags.FLAGS[kind])
  assert xla_flags.unknown(kind, flags) == []
  assert xla_flags.unknown(kind, (*flags, INVENTED)) == ["xla_invented_flag"]


def test_a_trial_is_cached(cache, monkeypatch):
  tried = []

  def answer(kind, flags):
    tried.append(flags)
    return ["xla_old"]

  monkeypatch.setattr(xla_flags, "_tried", answer)
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


def test_a_folder_that_cannot_be_written_is_no_fault(cache, monkeypatch):
  cache.write_text("a file where the folder should be")
  monkeypatch.setattr(xla_flags, "_tried", lambda kind, flags: [])
  assert xla_flags.unknown("cuda", ["--xla_new=1"]) == []


def test_nothing_is_set_unless_asked(gpus):
  xla_flags.use("none", pytest.fail)
  assert "XLA_FLAGS" not in os.environ
  assert schema.Config().xla_flags == "none"


def test_nothing_is_set_on_a_cpu(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert used() == "xla_flags=fast: there are none for what this runs on"
  assert not {"XLA_FLAGS", "LIBTPU_INIT_ARGS"} & set(os.environ)


def test_all_are_set_on_gpus(gpus):
  assert used() == f"xla_flags=fast: {len(CUDA)} flags added to XLA_FLAGS"
  assert os.environ["XLA_FLAGS"].split() == list(CUDA)
  assert "LIBTPU_INIT_ARGS" not in os.environ


def test_all_are_set_on_tpus(gpus, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
  monkeypatch.setattr(metadata, "version", lambda name: "1.0")
  # What jax puts there when it is imported stays.
  monkeypatch.setenv("LIBTPU_INIT_ARGS", " --xla_tpu_of_jax=true")
  assert str(len(TPU)) in used()
  found = os.environ["LIBTPU_INIT_ARGS"].split()
  assert found == [*TPU, "--xla_tpu_of_jax=true"]
  assert "XLA_FLAGS" not in os.environ


def test_flags_of_the_user_stay_and_win(gpus, monkeypatch):
  first, *others = CUDA
  theirs = f"--xla_theirs=1 {first.replace('true', 'false')}"
  monkeypatch.setenv("XLA_FLAGS", theirs)
  assert f"{len(others)} flags" in used()
  assert os.environ["XLA_FLAGS"] == " ".join([*others, theirs])


def test_a_file_of_flags_is_left_alone(gpus, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "flags.txt")
  assert "XLA_FLAGS names a file" in used()
  assert os.environ["XLA_FLAGS"] == "flags.txt"


def test_unknown_flags_are_left_out_and_named(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "gpu")
  known = list(CUDA)[:2]
  monkeypatch.setitem(
    xla_flags.FLAGS, "cuda", dict.fromkeys([known[0], INVENTED, known[1]], "")
  )
  assert used() == (
    "xla_flags=fast: 2 flags added to XLA_FLAGS; left out, unknown to this"
    " jaxlib: --xla_invented_flag"
  )
  assert os.environ["XLA_FLAGS"].split() == known


def test_a_trial_that_fails_otherwise_sets_nothing(cache, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setitem(xla_flags._TRIALS, "cuda", "raise SystemExit('broken')")
  assert used().endswith("could not be tried (exit code 1: broken)")
  assert "XLA_FLAGS" not in os.environ
  assert not cache.exists()


def test_a_trial_that_takes_too_long_sets_nothing(cache, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setattr(xla_flags, "_TRIAL_SECONDS", 0.01)
  assert "none are set" in (said := used())
  assert said.endswith("timed out after 0.01 seconds)")
  assert "XLA_FLAGS" not in os.environ
  assert not cache.exists()


@pytest.mark.parametrize(
  ("asked", "devices", "installed", "found"),
  [
    ("cpu", ["/dev/nvidia0"], True, None),
    ("cuda,cpu", [], False, "cuda"),
    ("gpu", [], False, "cuda"),
    ("tpu", [], False, "tpu"),
    ("", ["/dev/nvidiactl"], True, "cuda"),
    ("", ["/dev/nvidiactl"], False, None),
    ("", ["/dev/accel0"], True, "tpu"),
    ("", ["/dev/vfio/0"], True, "tpu"),
    ("", ["/dev/vfio/0"], False, None),
    ("", [], True, None),
  ],
)
def test_the_platform_without_jax(
  asked, devices, installed, found, monkeypatch
):
  monkeypatch.setenv("JAX_PLATFORMS", asked)
  monkeypatch.setattr(
    xla_flags.glob,
    "glob",
    lambda pattern: [
      path for path in devices if pathlib.PurePath(path).match(pattern)
    ],
  )
  monkeypatch.setattr(os.path, "exists", lambda path: path in devices)
  monkeypatch.setattr(
    xla_flags.importlib.util, "find_spec", lambda name: installed or None
  )
  monkeypatch.setattr(xla_flags, "_installed", lambda name: installed)
  assert xla_flags.platform() == found


@pytest.mark.slow
def test_flags_that_are_set_after_the_imports_are_read():
  """Importing a command does not start jax."""
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

  class CalledError(Exception):
    pass

  def use(wanted, say):
    raise CalledError(wanted)

  monkeypatch.setattr(xla_flags, "use", use)
  arguments = ["--config", "smoke", "xla_flags=fast"]
  with pytest.raises(CalledError, match="fast"):
    train.main(arguments)
  command = cli.parse(arguments)
  monkeypatch.setattr(evaluate.model_paths, "find", lambda path: [path])
  monkeypatch.setattr(
    evaluate.prepare, "read_settings", lambda model, _: command.config
  )
  with pytest.raises(CalledError, match="fast"):
    evaluate.main(["a/model"])


def test_table(root):
  """The documentation has each flag with what it does."""
  text = (root / "launch" / "README.md").read_text()
  rows = [
    f"| `{flag}` | {meaning} |"
    for flags in xla_flags.FLAGS.values()
    for flag, meaning in flags.items()
  ]
  assert [line for line in text.splitlines() if line[:5] == "| `--"] == rows
