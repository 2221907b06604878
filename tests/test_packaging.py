"""What a user installs."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile

import pytest

from reft_jax.config import checks, loading
from reft_jax.studies import reading

EXPERIMENTS = sorted(loading.EXPERIMENTS.glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> list[str]:
  """The names of the files in a wheel built from a copy of the repository."""
  for tool in ("setuptools", "pip"):
    if importlib.util.find_spec(tool) is None:
      pytest.skip(f"building a wheel needs {tool}")
  source = tmp_path_factory.mktemp("source")
  for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(root / name, source)
  for name in ("reft_jax", "models", "launch"):
    shutil.copytree(
      root / name,
      source / name,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  out = tmp_path_factory.mktemp("wheel")
  options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", *options, "-w", out, source],
    check=True,
  )
  (built,) = out.glob("*.whl")
  return zipfile.ZipFile(built).namelist()


def test_reft_jax_alone_at_the_top(wheel):
  tops = {name.split("/")[0] for name in wheel}
  assert {top for top in tops if not top.endswith(".dist-info")} == {"reft_jax"}


def test_wheel_holds_every_module(wheel, root):
  expected = {
    path.relative_to(root).as_posix()
    for path in (root / "reft_jax").rglob("*.py")
  } | {
    f"reft_jax/{path.relative_to(root).as_posix()}"
    for path in (root / "models").rglob("*.py")
  }
  assert expected <= set(wheel)


def test_wheel_holds_the_experiments(wheel):
  held = {name for name in wheel if name.startswith("reft_jax/experiments/")}
  files = loading.EXPERIMENTS.rglob("*.yaml")
  names = {file.relative_to(loading.EXPERIMENTS).as_posix() for file in files}
  assert held == {f"reft_jax/experiments/{name}" for name in names}


def test_wheel_holds_the_templates(wheel, root):
  held = {name for name in wheel if name.startswith("reft_jax/templates/")}
  names = {file.name for file in (root / "reft_jax/templates").iterdir()}
  assert held == {f"reft_jax/templates/{name}" for name in names}


def test_wheel_holds_the_suites(wheel):
  held = {name for name in wheel if name.startswith("reft_jax/suites/")}
  names = {file.name for file in reading.SUITES.glob("*.yaml")}
  assert held == {f"reft_jax/suites/{name}" for name in names}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_valid_and_named_like_its_file(path):
  run = loading.load([str(path)])
  checks.validate(run)
  assert run.name == path.stem
  assert run == loading.load([path.stem])
