"""The command: what it refuses, its report, and a whole small suite."""

import dataclasses
import json
import pathlib
import shutil
import time

import fake_runs
import jax
import pytest

from reft_jax import reproduce
from reft_jax.config import cli, loading
from reft_jax.studies import jobs as jobs_lib
from reft_jax.studies import reading

SUITE = """
name: small
about: Made up.
experiment: smoke
seeds: [1, 2, 3]
settings: {sft: {epochs: 3}}
runs:
  main: {stages: [base, warmup, sft]}
tables:
  - title: All
    columns: [test]
    rows: [{label: SFT, result: main/sft, paper: {GSM8K: 41.0}}]
    note: A note.
figures:
  - {title: "Dev, over steps", curves: {SFT: main/sft}}
  - {title: Nothing, curves: {warm-up: main/warmup}}
  - {title: By epochs, x: epochs, points: {SFT: {1: main/sft, 2: main/base}}}
claims:
  - {text: SFT is above a half, above: main/sft, below: 0.5}
"""


@pytest.mark.parametrize(
  "argv",
  [
    "tiny --seeds 1 2 reft.steps=3 --jobs 2 output=here a=b",
    "reft.steps=3 a=b --jobs=2 output=here --seeds 1 2 tiny",
  ],
)
def test_a_command_line_is_read(argv):
  command = cli.parse(argv.split(), reproduce.PROGRAM)
  suite = reproduce.read_suite(command)
  assert (suite.name, suite.seeds) == ("tiny", (1, 2))
  assert suite.output == pathlib.Path("here")
  assert suite.overrides == ("reft.steps=3", "a=b")
  assert reproduce.command_line(command, suite.overrides) == (
    "python -m reft_jax.reproduce tiny --seeds 1 2 reft.steps=3 a=b --jobs 2"
  )


def test_a_report_does_not_say_where_a_suite_lies():
  command = cli.parse(["/home/somebody/small.yaml"], reproduce.PROGRAM)
  line = reproduce.command_line(command, ())
  assert line == "python -m reft_jax.reproduce small.yaml"


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    ("", "which suite? Usage: python -m reft_jax.reproduce SUITE"),
    ("tiny --seeds", "--seeds needs whole numbers after it"),
    ("tiny --seeds 1 2 1", "seeds: each can be run once"),
    ("tiny --jobs 0", "--jobs needs a whole number above 0"),
    ("tiny seed=3", "seed=3 would be the same for every run; leave it to"),
    ("tiny embedded", "unknown argument 'embedded'"),
    ("nowhere.yaml", "nowhere.yaml: no such file"),
    ("tiny reft.stps=3", "unknown setting reft.stps"),
  ],
)
def test_bad_input_is_one_line_before_anything_starts(
  argv, words, capsys, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  assert reproduce.main(argv.split()) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.fixture
def made_up(tmp_path, monkeypatch) -> pathlib.Path:
  """The folder of a small suite of which two seeds of three are finished."""
  monkeypatch.chdir(tmp_path)
  pathlib.Path("small.yaml").write_text(SUITE)
  output = pathlib.Path("out")
  suite = dataclasses.replace(reading.load("small.yaml"), output=output)
  for seed, test in ((1, 0.6), (2, 0.7)):
    run = fake_runs.make(output, seed, test=test)
    wanted = loading.to_yaml(suite.config("main", seed))
    (run / "config.yaml").write_text(wanted)
  fake_runs.enter(output, jobs_lib.plan(suite)[:2])
  return output


def test_a_report_of_the_finished_runs(made_up, capsys):
  code = reproduce.main(["small.yaml", "--report", "output=out"])
  assert code == 0
  assert "unclear: SFT is above a half" in capsys.readouterr().out
  report = (made_up / "report.md").read_text()
  for part in (
    "# Reproduction: small\n\nMade up.",
    "```bash\npython -m reft_jax.reproduce small.yaml\n```\n\n2 CPU cores,",
    "0s in all, 1 at a time",
    "seeds 1, 2 and 3",
    "Figures of the paper are",
    "Missing: main-seed3 (not finished).",
    "**Unclear**\n\n* SFT is above a half: holds on 2 of 3 seeds, 1 not meas",
    "## All\n\n|  | test |",
    "| SFT | 65.0 ± 7.1 | 2 | 41.0 |\n\nA note.",
    "## Pictures\n\nLines are means over seeds;",
    "\n\n![Dev, over steps](dev-over-steps.png)\n",
    "| main/sft | 60.0 | 70.0 | - |",
    "`--config smoke sft.epochs=3`\n* main: `stages=[base,warmup,sft]`",
  ):
    assert part in report
  assert "**Reproduced**" not in report
  assert "(nothing.png)" not in report
  assert sorted(each.name for each in made_up.glob("*.png")) == [
    "by-epochs.png",
    "dev-over-steps.png",
  ]
  content = json.loads((made_up / "results.json").read_text())
  assert content["runs"]["main"]["1"]["sft"]["test"] == 0.6
  assert content["claims"][0]["held"] == 2


def test_numbers_of_other_settings_are_not_reported(made_up):
  command = ["small.yaml", "--report", "output=out", "--seeds", "1", "7"]
  assert reproduce.main([*command, "sft.batch_size=8"]) == 0
  report = (made_up / "report.md").read_text()
  assert "--seeds 1 7 sft.batch_size=8\n" in report
  for part in (
    "for every run: `sft.batch_size=8`",
    "main-seed1 (finished with other settings",
    "main-seed7 (not finished)",
    "| SFT | - | 0 |",
    "no run is finished",
  ):
    assert part in report


def test_a_run_whose_settings_were_changed_by_hand_is_missing(made_up):
  file = made_up / "runs" / "main-seed1" / "config.yaml"
  file.write_text(file.read_text().replace("batch_size: 48", "batch_size: 47"))
  assert reproduce.main(["small.yaml", "--report", "output=out"]) == 0
  report = (made_up / "report.md").read_text()
  assert "main-seed1 (finished with other settings" in report


TINY = ("tiny", "--seeds", "1", "--jobs", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> pathlib.Path:
  """The folder of a packaged suite that finished with one seed."""
  home = tmp_path_factory.mktemp("home")
  cache = jax.config.jax_compilation_cache_dir
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HOME", str(home))  # Where base models are kept.
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert reproduce.main([*TINY, f"output={home / 'out'}"]) == 0
  return home / "out"


@pytest.mark.slow
def test_a_suite_ends_in_a_report(tiny):
  report = (tiny / "report.md").read_text()
  for part in (
    "python -m reft_jax.reproduce tiny --seeds 1 --jobs 2\n",
    "ReFT is above SFT: holds on",
    "| online self-training | ",
    "runs with seed 1;",
    "![Dev accuracy](dev-accuracy.png)",
  ):
    assert part in report
  assert str(tiny.parent) not in report
  assert " - |" not in report  # Everything was measured.
  assert "Missing" not in report
  assert len(list(tiny.glob("*.png"))) == 2
  content = json.loads((tiny / "results.json").read_text())
  assert len(content["claims"]) == 3
  sft = content["runs"]["main"]["1"]["sft"]
  assert sft["majority@4"] <= sft["upper_bound"] == sft["pass@4"]
  # One base model serves all runs of a seed.
  base = tiny / "runs" / "main-seed1" / "models" / "base"
  assert not (tiny / "runs" / "warmup_16-seed1" / "models" / "base").exists()
  log = (tiny / "logs" / "warmup_16-seed1.log").read_text()
  assert f"model.path={base}" in log


@pytest.mark.slow
def test_a_finished_suite_is_only_reported(tiny, capsys):
  before = (tiny / "report.md").read_text()
  jobs = (tiny / "jobs.json").read_text()
  begin = time.monotonic()
  code = reproduce.main([*TINY, f"output={tiny}"])
  assert code == 0
  assert "started" not in capsys.readouterr().out
  assert time.monotonic() - begin < 20
  assert (tiny / "report.md").read_text() == before
  assert (tiny / "jobs.json").read_text() == jobs


@pytest.mark.slow
def test_a_dry_run_lists_the_jobs_that_are_left(tiny, capsys):
  shutil.rmtree(tiny / "runs" / "main-seed1" / "evaluations" / "sft-test")
  assert reproduce.main([*TINY, "--dry-run", f"output={tiny}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  left = [line for line in lines if line.startswith("to do: ")]
  assert len(lines) == 3
  assert len(left) == 1
  assert "main-seed1-sft-reft: python -m reft_jax.evaluate" in left[0]
