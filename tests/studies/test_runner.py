"""Jobs of a suite: their order, stops, restarts, and what outdates them."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import threading
import time

import fake_runs
import pytest

from reft_jax import errors, reproduce
from reft_jax.runtime import console as console_lib
from reft_jax.studies import jobs as jobs_lib
from reft_jax.studies import reading, runner

NAP = "import time; time.sleep(0.3)\n"


def job(name, script="", needs=(), finished=True, **others) -> jobs_lib.Job:
  return jobs_lib.Job(
    name, ("-c", script), frozenset(needs), lambda: finished, script, **others
  )


class Folder:
  """Where jobs run, and the `trace` that they write."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.trace = path / "trace"

  def perform(self, *jobs: jobs_lib.Job, at_once: int = 1) -> None:
    with runner.alone(self.path) as lock:
      self.ledger = jobs_lib.Ledger(self.path)
      screen = console_lib.Console()
      runner.perform(jobs, at_once, self.ledger, screen, lock)

  def says(self, text: str, then: str = "") -> str:
    """A script that appends a line to the trace."""
    return f"open({str(self.trace)!r}, 'a').write({text + chr(10)!r})\n{then}"

  def said(self) -> list[str]:
    return self.trace.read_text().split() if self.trace.exists() else []


@pytest.fixture
def folder(tmp_path) -> Folder:
  return Folder(tmp_path / "suite")


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_jobs_wait_for_the_jobs_they_need(folder, at_once):
  folder.perform(
    job("main", NAP + folder.says("main")),
    job("one", NAP + folder.says("one"), {"main"}),
    job("two", folder.says("two"), {"main", "one"}),
    job("other", folder.says("other")),
    at_once=at_once,
  )
  said = folder.said()
  assert sorted(said) == ["main", "one", "other", "two"]
  assert said.index("main") < said.index("one") < said.index("two")
  if at_once == 3:
    assert said[0] == "other"


def test_a_finished_job_does_not_run_again(folder):
  first = job("first", folder.says("first"))
  folder.perform(first, at_once=2)
  before = folder.ledger.file.read_text()
  folder.perform(first)
  assert folder.ledger.file.read_text() == before
  assert folder.ledger.at_once == 2
  folder.perform(first, job("second", folder.says("second")))
  assert folder.said() == ["first", "second"]
  # With another command, or if its results are gone.
  folder.perform(job("first", folder.says("anew")))
  folder.perform(job("first", folder.says("anew"), finished=False))
  assert folder.said() == ["first", "second", "anew", "anew"]


def test_a_job_waits_for_one_that_runs_again(folder):
  folder.perform(job("main", folder.says("main")))
  folder.perform(
    job("main", NAP + folder.says("again")),
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
def test_a_run_from_outdated_models_is_put_aside(folder, code):
  run = folder.path / "run"
  script = (
    f"import pathlib; run = pathlib.Path({str(run)!r}); run.mkdir("
    f"exist_ok=True); (run / str(len(list(run.iterdir())))).touch(); "
  )

  def perform(origin, code=0):
    end = f"raise SystemExit({code})"
    folder.perform(job("run", script + end, folder=run, origin=origin))

  with contextlib.suppress(runner.FailedError):
    perform("one", code)
  perform("one", 0)  # Resumes from what is there, finished or not.
  before = 1 + code
  assert len(list(run.iterdir())) == before
  assert len(list(folder.path.glob("run*"))) == 1
  perform("two")
  assert len(list(run.iterdir())) == 1
  (aside,) = folder.path.glob("run.until-*")
  assert len(list(aside.iterdir())) == before


def test_jobs_of_an_older_ledger_run_again(folder):
  old = {"command": ["-c", ""], "code": 0, "seconds": 1.0}
  folder.path.mkdir()
  (folder.path / "run").mkdir()
  (folder.path / "jobs.json").write_text(json.dumps({"jobs": {"run": old}}))
  again = job("run", folder.says("again"), folder=folder.path / "run")
  folder.perform(again)
  folder.perform(again)
  assert folder.said() == ["again"]
  assert not list(folder.path.glob("run.until-*"))


def test_a_damaged_ledger_is_one_clear_error(tmp_path, capsys):
  (tmp_path / "jobs.json").write_text('{"jobs": {')
  command = ["tiny", "--dry-run", f"output={tmp_path}"]
  assert reproduce.main(command) == 2
  error = capsys.readouterr().err
  assert "jobs.json is damaged" in error
  assert "delete it" in error
  assert error.count("\n") == 1


def trapping(folder) -> str:
  """A script that traces SIGTERM and then ends."""
  stop = folder.says("saved", "raise SystemExit(75)").replace("\n", ";")
  return (
    "import signal, time\n"
    f"def stop(*_): {stop}\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    f"{folder.says('started')}time.sleep(60)"
  )


def test_a_job_that_fails_says_why_and_stops_the_others(folder):
  wait = (
    "import pathlib, time\n"
    f"while not pathlib.Path({str(folder.trace)!r}).exists(): time.sleep(0.1)\n"
    "time.sleep(0.5)\n"
    "raise SystemExit('error: no such file')"
  )
  with pytest.raises(runner.FailedError) as caught:
    folder.perform(job("long", trapping(folder)), job("bad", wait), at_once=2)
  assert "bad failed (1)" in str(caught.value)
  assert "error: no such file" in str(caught.value)
  assert "bad.log" in str(caught.value)
  assert folder.said() == ["started", "saved"]
  assert jobs_lib.Ledger(folder.path).seconds >= 0.5  # The time counts.


def test_the_time_before_a_kill_counts(folder, monkeypatch):
  monkeypatch.setattr(runner, "_SAVE_SECONDS", 0.1)
  ledger, copy = str(folder.path / "jobs.json"), str(folder.trace)
  wait = "import shutil, time; time.sleep(1.5); "
  folder.perform(job("long", f"{wait}shutil.copy({ledger!r}, {copy!r})"))
  assert json.loads(folder.trace.read_text())["seconds"] > 0.5


def test_sigterm_stops_the_jobs_and_the_command_resumes(folder):
  def strike():
    while "started" not in folder.said():
      time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=strike).start()
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(runner.StoppedError):
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
    runner.alone(tmp_path),
    pytest.raises(errors.UserError, match="in use"),
    runner.alone(tmp_path),
  ):
    pass
  with runner.alone(tmp_path):
    pass


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


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
  """Plans the jobs of a suite, whose results are all there."""
  file = tmp_path_factory.mktemp("suites") / "suite.yaml"

  @functools.cache
  def cached(text: str) -> list[jobs_lib.Job]:
    file.write_text(text)
    jobs = jobs_lib.plan(reading.load(str(file)))
    return [dataclasses.replace(job, finished=lambda: True) for job in jobs]

  return cached


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
    # Settings that decide no model: the runs resume, and keep their models.
    (
      *("samples: 9", "samples: 8"),
      {"main", "long", "after_long", "judge", "own", "main-sft"},
      set(),
    ),
    ("base, warmup, sft]", "base, warmup, sft, reft]", {"main"}, set()),
  ],
)
def test_jobs_whose_models_changed_are_stale(
  tmp_path, plan, old, new, redone, outdated
):
  fake_runs.enter(tmp_path, plan(LENDING))
  ledger = jobs_lib.Ledger(tmp_path)
  assert all(map(ledger.done, plan(LENDING)))
  jobs = {
    job.name.replace("-seed1", ""): job
    for job in plan(LENDING.replace(old, new))
  }
  assert {name for name in jobs if not ledger.done(jobs[name])} == redone
  assert {name for name in jobs if ledger.outdated(jobs[name])} == outdated
  for name in redone - outdated:
    assert "finished with other settings" in ledger.why(jobs[name])
