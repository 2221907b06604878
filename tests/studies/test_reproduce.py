"""Suites: jobs in their order, stops and restarts, and a whole small one."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import threading
import time

import fake_runs
import jax
import pytest

from reft_jax import errors, reproduce, train
from reft_jax.config import loading
from reft_jax.runtime import console as console_lib
from reft_jax.studies import reading

SUITE = """
name: small
about: Made up.
experiment: smoke
seeds: [1, 2, 3]
runs:
  main: {stages: [base, warmup, sft]}
tables:
  - {title: All, columns: [test], rows: [{label: SFT, result: main/sft}]}
figures:
  - {title: "Dev, over steps", curves: {SFT: main/sft}}
  - {title: Nothing, curves: {warm-up: main/warmup}}
  - {title: By epochs, x: epochs, points: {SFT: {1: main/sft, 2: main/base}}}
claims:
  - {text: SFT is above a half, above: main/sft, below: 0.5}
"""


def job(name, script="", needs=(), finished=True, **others) -> reproduce.Job:
  return reproduce.Job(
    name, ("-c", script), frozenset(needs), lambda: finished, script, **others
  )


class Folder:
  """Where jobs are performed, and what they left in `trace`."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.trace = path / "trace"

  def perform(self, *jobs: reproduce.Job, at_once: int = 1) -> None:
    with reproduce.alone(self.path) as lock:
      self.ledger = reproduce.Ledger(self.path / "jobs.json")
      screen = console_lib.Console()
      reproduce.perform(jobs, at_once, self.ledger, screen, lock)

  def says(self, text: str, then: str = "") -> str:
    """A script that appends a line to the trace."""
    return f"open({str(self.trace)!r}, 'a').write({text + chr(10)!r})\n{then}"

  def said(self) -> list[str]:
    return self.trace.read_text().split() if self.trace.exists() else []


@pytest.fixture
def folder(tmp_path) -> Folder:
  return Folder(tmp_path / "suite")


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_jobs_wait_for_what_they_need(folder, at_once):
  nap = "import time; time.sleep(0.3)\n"
  folder.perform(
    job("main", nap + folder.says("main")),
    job("one", nap + folder.says("one"), {"main"}),
    job("two", folder.says("two"), {"main", "one"}),
    job("other", folder.says("other")),
    at_once=at_once,
  )
  said = folder.said()
  assert sorted(said) == ["main", "one", "other", "two"]
  assert said.index("main") < said.index("one") < said.index("two")
  if at_once == 3:
    assert said[0] == "other"


def test_what_ended_is_not_done_again(folder):
  first = job("first", folder.says("first"))
  folder.perform(first)
  folder.perform(first, job("second", folder.says("second")))
  assert folder.said() == ["first", "second"]
  # By another command, or if what it made is gone.
  folder.perform(job("first", folder.says("anew")))
  folder.perform(job("first", folder.says("anew"), finished=False))
  assert folder.said() == ["first", "second", "anew", "anew"]


def test_what_needs_a_job_that_is_to_be_done_again_waits(folder):
  folder.perform(job("main", folder.says("main")))
  nap = "import time; time.sleep(0.3)\n"
  folder.perform(
    job("main", nap + folder.says("again")),
    job("one", folder.says("one"), {"main"}),
    at_once=2,
  )
  assert folder.said() == ["main", "again", "one"]


def test_a_run_that_diverges_is_a_result(folder, capsys):
  jobs = (
    job("main", folder.says("main", "raise SystemExit(4)")),
    job("one", folder.says("one"), {"main"}),
    job("other", folder.says("other")),
  )
  for _ in range(2):
    folder.perform(*jobs)
    assert folder.said() == ["main", "other"]
    assert "diverged: one" in capsys.readouterr().out
  assert "diverged" in folder.ledger.why(jobs[0])
  assert folder.ledger.why(jobs[1]) == "not finished"
  assert folder.ledger.why(jobs[2]) is None
  assert "other settings" in folder.ledger.why(job("other", "pass"))


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_of_other_models_is_put_aside(folder, code):
  run = folder.path / "run"
  script = (
    f"import pathlib; run = pathlib.Path({str(run)!r}); run.mkdir("
    f"exist_ok=True); (run / str(len(list(run.iterdir())))).touch(); "
  )

  def perform(origin, code=0):
    end = f"raise SystemExit({code})"
    folder.perform(job("run", script + end, folder=run, origin=origin))

  with contextlib.suppress(reproduce.FailedError):
    perform("one", code)
  perform("one", 0)  # Goes on from what is there, finished or not.
  before = 1 + code
  assert len(list(run.iterdir())) == before
  assert len(list(folder.path.glob("run*"))) == 1
  perform("two")
  assert len(list(run.iterdir())) == 1
  (aside,) = folder.path.glob("run.until-*")
  assert len(list(aside.iterdir())) == before


def test_a_ledger_of_an_older_program_is_gone_over_again(folder):
  old = {"command": ["-c", ""], "code": 0, "seconds": 1.0}
  folder.path.mkdir()
  (folder.path / "run").mkdir()
  (folder.path / "jobs.json").write_text(json.dumps({"jobs": {"run": old}}))
  again = job("run", folder.says("again"), folder=folder.path / "run")
  folder.perform(again)
  folder.perform(again)
  assert folder.said() == ["again"]
  assert not list(folder.path.glob("run.until-*"))


def test_a_torn_ledger_is_one_clear_error(tmp_path, capsys):
  (tmp_path / "jobs.json").write_text('{"jobs": {')
  command = ["tiny", "--dry-run", f"output={tmp_path}"]
  assert reproduce.main(command) == 2
  error = capsys.readouterr().err
  assert "jobs.json is damaged" in error
  assert "delete it" in error
  assert error.count("\n") == 1


def trapping(folder, then="time.sleep(60)") -> str:
  """A script that notes SIGTERM before it ends."""
  stop = folder.says("saved", "raise SystemExit(75)").replace("\n", ";")
  return (
    "import signal, time\n"
    f"def stop(*_): {stop}\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    f"{folder.says('started')}{then}"
  )


def test_a_job_that_fails_says_why_and_stops_the_others(folder):
  wait = (
    "import pathlib, time\n"
    f"while not pathlib.Path({str(folder.trace)!r}).exists(): time.sleep(0.1)\n"
    "raise SystemExit('error: no such file')"
  )
  with pytest.raises(reproduce.FailedError) as caught:
    folder.perform(job("long", trapping(folder)), job("bad", wait), at_once=2)
  assert "bad failed (1)" in str(caught.value)
  assert "error: no such file" in str(caught.value)
  assert "bad.log" in str(caught.value)
  assert folder.said() == ["started", "saved"]


def test_the_time_of_a_job_that_fails_counts(folder):
  script = "import time; time.sleep(1.2); raise SystemExit(1)"
  with pytest.raises(reproduce.FailedError):
    folder.perform(job("bad", script))
  assert reproduce.Ledger(folder.ledger.file).seconds >= 1.2


def test_the_time_before_a_kill_counts(folder, monkeypatch):
  monkeypatch.setattr(reproduce, "_SAVE_SECONDS", 0.1)
  during = []
  monkeypatch.setattr(
    reproduce.Ledger,
    "save",
    lambda self, every=0.0, save=reproduce.Ledger.save: (
      save(self, every),
      during.append(self.seconds),
    ),
  )
  folder.perform(job("long", "import time; time.sleep(1.5)"))
  assert 0 < during[1] < 0.5
  assert during[-1] >= 1.5


def test_how_many_at_once_is_said_of_the_jobs_not_of_the_last_command(folder):
  first = job("first", folder.says("first"))
  folder.perform(first, at_once=2)
  before = folder.ledger.file.read_text()
  folder.perform(first)
  assert folder.ledger.at_once == 2
  assert folder.ledger.file.read_text() == before


def test_sigterm_stops_the_jobs_and_the_same_command_goes_on(folder):
  def strike():
    while "started" not in folder.said():
      time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=strike).start()
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(reproduce.StoppedError):
    folder.perform(
      job("first", folder.says("first")), job("long", trapping(folder))
    )
  assert signal.getsignal(signal.SIGTERM) == before
  assert folder.said() == ["first", "started", "saved"]
  folder.perform(
    job("first", folder.says("first")), job("long", folder.says("end"))
  )
  assert folder.said()[3:] == ["end"]


def test_a_folder_is_for_one_suite_at_a_time(tmp_path):
  with (
    reproduce.alone(tmp_path),
    pytest.raises(errors.UserError, match="in use"),
    reproduce.alone(tmp_path),
  ):
    pass
  with reproduce.alone(tmp_path):
    pass


def test_a_command_line_is_understood():
  command = reproduce.parse(
    [
      "small",
      "--seeds",
      "1",
      "2",
      "reft.steps=3",
      "--jobs",
      "2",
      "output=here",
      "a=b",
    ]
  )
  assert command == reproduce.Command(
    suite="small",
    seeds=(1, 2),
    jobs=2,
    output="here",
    overrides=("reft.steps=3", "a=b"),
  )
  assert reproduce.spelled(command) == (
    "python -m reft_jax.reproduce small --seeds 1 2 reft.steps=3 a=b --jobs 2"
  )
  elsewhere = reproduce.Command(suite="/home/somebody/small.yaml")
  assert "somebody" not in reproduce.spelled(elsewhere)


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    ("", "which suite? A file, or one of embedded"),
    ("tiny --seeds", "--seeds needs"),
    ("tiny --seeds 1 2 1", "--seeds: each can be run once"),
    ("tiny --seeds 1 99999999999", "seed=99999999999 must be between 0 and"),
    ("tiny --jobs 0", "--jobs needs"),
    ("tiny seed=3", "--seeds"),
    ("tiny --fast", "unknown argument '--fast'"),
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
  suite = reading.load("small.yaml")
  jobs = reproduce.plan(suite, suite.seeds, output, ())
  for seed, test in ((1, 0.6), (2, 0.7)):
    run = fake_runs.make(output / "runs", seed, test=test)
    wanted = suite.config("main", seed, output / "runs")
    (run / "config.yaml").write_text(loading.to_yaml(wanted))
  enter(output, jobs[:2])
  return output


def enter(output: pathlib.Path, jobs) -> None:
  """Enters jobs as finished."""
  ledger = reproduce.Ledger(output / "jobs.json")
  for job in jobs:
    ledger.started(job, 1)
    ledger.ended(job, 0, 1.0)


def test_a_report_of_what_is_there(made_up, capsys):
  code = reproduce.main(["small.yaml", "--report", "output=out"])
  assert code == 0
  assert "unclear: SFT is above a half" in capsys.readouterr().out
  report = (made_up / "report.md").read_text()
  assert "| SFT | 65.0 ± 7.1 | 2 |" in report
  assert "holds on 2 of 3 seeds, 1 not measured" in report
  assert "![Dev, over steps](dev-over-steps.png)" in report
  assert "(nothing.png)" not in report
  assert "Missing: main-seed3 (not finished)." in report
  assert sorted(each.name for each in made_up.glob("*.png")) == [
    "by-epochs.png",
    "dev-over-steps.png",
  ]
  content = json.loads((made_up / "results.json").read_text())
  assert content["runs"]["main"]["1"]["sft"]["test"] == 0.6
  assert content["claims"][0]["held"] == 2


def test_numbers_of_other_settings_are_not_reported(made_up):
  """What another command made is not said to be this one's."""
  command = ["small.yaml", "--report", "output=out", "--seeds", "1", "7"]
  assert reproduce.main([*command, "sft.batch_size=8"]) == 0
  report = (made_up / "report.md").read_text()
  assert "--seeds 1 7 sft.batch_size=8\n" in report
  assert "for every run: `sft.batch_size=8`" in report
  assert "main-seed1 (finished with other settings" in report
  assert "main-seed7 (not finished)" in report
  assert "| SFT | - | 0 |" in report
  assert "no run is finished" in report


def test_a_run_whose_settings_were_changed_by_hand_is_missing(made_up):
  file = made_up / "runs" / "main-seed1" / "config.yaml"
  file.write_text(file.read_text().replace("batch_size: 48", "batch_size: 47"))
  assert reproduce.main(["small.yaml", "--report", "output=out"]) == 0
  report = (made_up / "report.md").read_text()
  assert "main-seed1 (finished with other settings" in report


LENDING = """
name: lending
about: Made up.
experiment: smoke
seeds: [1]
settings: {evaluation: {samples: 9}}
runs:
  main: {stages: [base, warmup, sft]}
  long: {stages: [warmup], warmup: {epochs: 9}}
  after_long: {from: long, stages: [reft]}
  judge: {stages: [reward_model]}
  own: {stages: [sft], model: {path: owner/name}}
evaluations:
  - {run: main, stages: [sft], reward_model: judge}
"""


@pytest.mark.parametrize(
  ("old", "new", "redone", "outdated"),
  [
    (
      *("main: {", "main: {base: {steps: 7}, "),
      {"main", "long", "after_long", "judge", "main-sft"},
      {"long", "after_long", "judge", "main-sft"},
    ),
    ("epochs: 9", "epochs: 8", {"long", "after_long"}, {"after_long"}),
    (
      *("judge: {", "judge: {reward_model: {epochs: 2}, "),
      {"judge", "main-sft"},
      {"main-sft"},
    ),
    # Nothing is learnt from these: runs are taken up, and keep their models.
    (
      *("samples: 9", "samples: 8"),
      {"main", "long", "after_long", "judge", "own", "main-sft"},
      set(),
    ),
    ("base, warmup, sft]", "base, warmup, sft, reft]", {"main"}, set()),
  ],
)
def test_what_was_made_of_other_models_is_stale(
  tmp_path, old, new, redone, outdated
):
  def plan(text):
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    suite = reading.load(str(file))
    # Whatever is made is there, of whatever it was made.
    return [
      dataclasses.replace(job, finished=lambda: True)
      for job in reproduce.plan(suite, suite.seeds, tmp_path, ())
    ]

  enter(tmp_path, plan(LENDING))
  ledger = reproduce.Ledger(tmp_path / "jobs.json")
  assert all(map(ledger.done, plan(LENDING)))
  jobs = {
    job.name.replace("-seed1", ""): job
    for job in plan(LENDING.replace(old, new))
  }
  assert {name for name in jobs if not ledger.done(jobs[name])} == redone
  assert {name for name in jobs if ledger.outdated(jobs[name])} == outdated
  for name in redone - outdated:
    assert "finished with other settings" in ledger.why(jobs[name])


def test_what_is_not_learnt_is_what_a_run_is_taken_up_with():
  assert reproduce._NOT_LEARNT == train._MAY_CHANGE


TINY = ("tiny", "--seeds", "1", "--jobs", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> pathlib.Path:
  """The folder of a packaged suite that came to its end with one seed."""
  home = tmp_path_factory.mktemp("home")
  cache = jax.config.jax_compilation_cache_dir
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HOME", str(home))  # Where base models are kept.
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert reproduce.main([*TINY, f"output={home / 'out'}"]) == 0
  return home / "out"


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


def test_one_warm_up_serves_all_runs_of_a_seed(tiny):
  main, other = (
    tiny / "runs" / f"{name}-seed1" for name in ("main", "warmup_16")
  )
  assert not (other / "models" / "base").exists()
  assert (
    f"model.path={main / 'models' / 'base'}"
    in (tiny / "logs" / "warmup_16-seed1.log").read_text()
  )


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


def test_a_dry_run_says_what_is_left(tiny, capsys):
  shutil.rmtree(tiny / "runs" / "main-seed1" / "evaluations" / "sft-test")
  assert reproduce.main([*TINY, "--dry-run", f"output={tiny}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  left = [line for line in lines if line.startswith("to do: ")]
  assert len(lines) == 3
  assert len(left) == 1
  assert "main-seed1-sft-reft: python -m reft_jax.evaluate" in left[0]
