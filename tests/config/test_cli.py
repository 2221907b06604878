"""Command lines: what is a path, an option, a setting; help; errors."""

import re
import subprocess
import sys

import pytest

from reft_jax import errors
from reft_jax.config import checks, cli, loading, schema
from reft_jax.run import files_check

PROGRAM = cli.Program(
  "reft_jax.some",
  paths=("ONE", "MORE..."),
  options=(
    cli.Option("--jobs", "", cli.COUNT),
    cli.Option("--seeds", "", cli.Value("N", "numbers", int), (), listed=True),
    cli.Option("--kind", "", cli.Value("KIND", "a or b", choices="ab"), "a"),
    cli.Option("--keep-all", ""),
    *cli.RUN_OPTIONS,
  ),
)
CLOSED = cli.Program(
  "reft_jax.other", paths=("ONE",), options=(), overrides=False
)


@pytest.mark.parametrize(
  "line",
  [
    "a x=1/2 ./b=c/d --jobs 2 --seeds 1 2 --keep-all --config f",
    "--seeds 1 2 a --config=f --keep-all x=1/2 --jobs=2 ./b=c/d",
    "a --keep-all --seeds 1 --jobs 2 ./b=c/d --seeds 2 x=1/2 --config f",
  ],
)
def test_options_stand_anywhere(line):
  assert cli.parse(line.split(), PROGRAM) == cli.Command(
    paths=("a", "./b=c/d"),
    files=("f",),
    overrides=("x=1/2",),
    options={"jobs": 2, "seeds": (1, 2), "kind": "a", "keep_all": True},
  )


def test_options_that_are_not_given():
  command = cli.parse(["a", "b"], PROGRAM)
  assert command.files == ()
  assert command.options == {
    "jobs": None,
    "seeds": (),
    "kind": "a",
    "keep_all": False,
  }


def test_without_settings_everything_is_a_path():
  assert cli.parse(["lr=1"], CLOSED).paths == ("lr=1",)


@pytest.mark.parametrize(
  ("line", "action"),
  [
    ("a b", "run"),
    ("a --dry-run b", "dry-run"),
    ("--print-config a b", "print-config"),
    ("--dry-run a b --print-config", "print-config"),
    ("--seeds --fast -h", "help"),
    ("--config --help", "help"),
  ],
)
def test_actions(line, action):
  assert cli.parse(line.split(), PROGRAM).action == action


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("", "which one? Usage: python -m reft_jax.some ONE MORE... [--jobs N]"),
    ("a", "which more?"),
    ("a b --fast", "argument '--fast'; expected ONE MORE... [--jobs N]"),
    ("a b --seed=3", "unknown argument '--seed=3'"),  # Nothing is abbreviated.
    ("a b -x=3", "unknown argument '-x=3'"),
    ("a b --", "unknown argument '--'"),
    ("a b --config", "--config needs a file after it"),
    ("a b --jobs", "--jobs needs a whole number above 0 after it"),
    ("a b --jobs 0", "--jobs needs a whole number above 0 after it"),
    ("a b --jobs many", "--jobs needs a whole number above 0 after it"),
    ("a b --seeds", "--seeds needs numbers after it"),
    ("--seeds a b", "--seeds needs numbers after it"),
    ("a b --kind c", "--kind needs a or b after it"),
    ("a b --keep-all=1", "--keep-all takes no value"),
  ],
)
def test_bad_arguments_are_told_in_one_line(line, message):
  with pytest.raises(errors.UserError) as caught:
    cli.parse(line.split(), PROGRAM)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_arguments_of_no_path():
  for argv, program in ((["seed"], cli.TRAIN), (["a", "b"], CLOSED)):
    with pytest.raises(errors.UserError, match=f"argument '{argv[-1]}'"):
      cli.parse(argv, program)


def test_usage_has_every_argument():
  assert PROGRAM.usage == (
    "ONE MORE... [--jobs N] [--seeds N...] [--kind KIND] [--keep-all]"
    " [--config FILE]... [--print-config] [--dry-run] [key=value]... [--help]"
  )
  assert CLOSED.usage == "ONE [--help]"


def test_no_arguments_is_the_embedded_experiment():
  config = cli.parse([]).config
  assert config == loading.load(["embedded"])
  checks.validate(config)
  files_check.check_files(config)


def test_files_then_overrides(tmp_path):
  (tmp_path / "a.yaml").write_text("seed: 1\nname: a\nreft: {lam: 0.5}\n")
  (tmp_path / "b.yaml").write_text("name: b\n")
  argv = ["reft.lam=0.6"]
  for name in "ab":
    argv += ["--config", str(tmp_path / f"{name}.yaml")]
  config = cli.parse(argv).config
  assert (config.seed, config.name, config.reft.lam) == (1, "b", 0.6)


@pytest.mark.parametrize("width", [80, 120])
def test_help_names_every_setting(capsys, monkeypatch, width):
  monkeypatch.setenv("COLUMNS", str(width))
  assert cli.parse(["seed=oops", "--help"]).action == "help"
  cli.print_help()
  lines = capsys.readouterr().out.splitlines()
  words = {line.split()[0] for line in lines if line.strip()}
  for key, _, _ in loading.settings(schema.Config()):
    group, _, name = key.rpartition(".")
    assert name in words
    assert not group or f"{group}." in words
  assert all(len(line) <= width for line in lines if "Usage" not in line)


@pytest.mark.parametrize(
  "real",
  [["data.train=x.json"], ["model.path=m"], ["data.train=x", "model.path=m"]],
)
def test_real_runs_name_their_settings(real):
  with pytest.raises(errors.UserError) as caught:
    assert cli.parse(real).config
  said = str(caught.value)
  assert f"{' and '.join(real)} would be trained with" in said
  assert "\n" not in said
  for experiment in re.findall(r"--config (\w+)", said):
    assert cli.parse([f"--config={experiment}", *real]).config
  assert "--config embedded" in said


def test_generated_runs_need_no_name():
  same = cli.parse(["data.train=embedded", "model.path=null"])
  assert same.config == cli.parse([]).config


def test_reading_a_config_does_not_import_jax():
  code = "import sys, reft_jax.config.cli; print('jax' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "False"
