"""Runs a suite: its jobs as processes, then its report."""

import collections
import contextlib
import dataclasses
import datetime
import fcntl
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from reft_jax.errors import UserError
from reft_jax.runtime import console as console_lib
from reft_jax.studies import jobs as jobs_lib
from reft_jax.studies import report as report_lib
from reft_jax.studies import suites

_POLL_SECONDS = 0.2
# How much of the time a SIGKILL can take from the ledger.
_SAVE_SECONDS = 60.0


class FailedError(Exception):
  """A run or an evaluation failed."""


class StoppedError(Exception):
  """SIGTERM stopped the suite."""


@dataclasses.dataclass(frozen=True)
class Live:
  """A job that is running."""

  job: jobs_lib.Job
  process: subprocess.Popen
  began: float
  log: pathlib.Path


def run(
  suite: suites.Suite, command: str, screen: console_lib.Console, jobs: int
) -> None:
  """Runs the jobs of a suite that are not finished, and writes its report.

  At most `jobs` processes run at once; with 0, the report alone is written.
  `command` is the command line that it shows.

  Raises:
    FailedError: a job failed.
    StoppedError: SIGTERM stopped the suite.
    UserError: the folder is in use or not writable, or its ledger is damaged.
  """
  planned = jobs_lib.plan(suite)
  with alone(suite.output) as lock:
    ledger = jobs_lib.Ledger(suite.output)
    if jobs:
      perform(planned, jobs, ledger, screen, lock)
    for finding in report_lib.write(suite, command, planned, ledger):
      screen.line(f"{finding.verdict}: {report_lib.sentence(finding)}")
    screen.line(f"report: {suite.output / 'report.md'}", style="bold")


def dry_run(suite: suites.Suite, screen: console_lib.Console) -> None:
  """Shows the jobs of a suite, and which are finished.

  Raises:
    UserError: the ledger is damaged.
  """
  ledger = jobs_lib.Ledger(suite.output)
  for job in jobs_lib.plan(suite):
    state = "finished" if ledger.done(job) else "to do"
    screen.line(f"{state}: {job.name}: python {shlex.join(job.command)}")


def perform(
  jobs: Sequence[jobs_lib.Job],
  at_once: int,
  ledger: jobs_lib.Ledger,
  screen: console_lib.Console,
  lock: int,
) -> None:
  """Runs every job that is not done, each after the jobs it needs.

  Of the jobs that can start, the one that most others wait for goes first. A
  run that diverges is a result; the jobs that need it are left out.

  Up to `at_once` processes run, and keep the file descriptor `lock` open.

  Raises:
    FailedError: a job failed. The other running jobs have saved and ended.
  """
  logs = ledger.file.parent / "logs"
  logs.mkdir(exist_ok=True)
  todo = [job for job in jobs if not ledger.done(job)]
  waiting = collections.Counter(need for job in jobs for need in job.needs)
  with (
    screen.stage("jobs", len(jobs), len(jobs) - len(todo)) as progress,
    _stopping(ledger) as live,
  ):
    while todo or live:
      pending = [*todo, *(one.job for one in live.values())]
      succeeded = ledger.succeeded() - {job.name for job in pending}
      for slot in set(range(at_once)) - live.keys():
        ready = [job for job in todo if job.needs <= succeeded]
        if ready:
          job = max(ready, key=lambda job: waiting[job.name])
          todo.remove(job)
          if ledger.outdated(job) and (aside := _put_aside(job)):
            progress.note(f"{job.name} had other models; now in {aside.name}")
          ledger.started(job, at_once)
          live[slot] = _start(job, slot, at_once, logs, lock)
          progress.note(f"{job.name} started")
      if not live:
        left = ", ".join(job.name for job in todo)
        progress.note(f"left out, because what they need diverged: {left}")
        return
      time.sleep(_POLL_SECONDS)
      ledger.save(every=_SAVE_SECONDS)
      for slot, one in list(live.items()):
        code = one.process.poll()
        if code is not None:
          del live[slot]
          _end(one, code, ledger, progress)


def _put_aside(job: jobs_lib.Job) -> pathlib.Path | None:
  """Renames a run's folder, and returns the new name; None without a folder."""
  if job.folder is None or not job.folder.exists():
    return None
  now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  return job.folder.rename(f"{job.folder}.until-{now}")


def _start(
  job: jobs_lib.Job, slot: int, at_once: int, logs: pathlib.Path, lock: int
) -> Live:
  """Starts a job's process on its share of the CPU cores.

  With more threads than cores, runs would only wait for each other.
  """
  path = logs / f"{job.name}.log"
  with path.open("ab") as log:
    log.write(f"$ python {shlex.join(job.command)}\n".encode())
    log.flush()
    process = subprocess.Popen(
      [sys.executable, *job.command],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      pass_fds=(lock,),
      start_new_session=True,  # Ctrl-C reaches only this process.
    )
  if at_once > 1 and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, cores[slot::at_once] or cores)
  return Live(job, process, time.monotonic(), path)


def _end(
  one: Live, code: int, ledger: jobs_lib.Ledger, progress: console_lib.Progress
) -> None:
  """Enters a job that ended; raises if it failed."""
  seconds = time.monotonic() - one.began
  name, took = one.job.name, console_lib.duration(seconds)
  if code not in (0, jobs_lib.DIVERGED):
    lines = one.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    raise FailedError(
      f"{name} failed ({code}) after {took}: {last} ({one.log})"
    )
  ledger.ended(one.job, code, seconds)
  progress.step(progress.done + 1)
  progress.note(f"{name} {'diverged' if code else 'ended'} after {took}")


@contextlib.contextmanager
def _stopping(ledger: jobs_lib.Ledger) -> Iterator[dict[int, Live]]:
  """Collects running jobs, and ends them with the block, however it ends.

  SIGTERM ends the block with StoppedError. Running jobs then get SIGTERM, and
  have the time to save.
  """

  def stop(*_: object) -> None:
    raise StoppedError

  live: dict[int, Live] = {}
  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield live
  finally:
    signal.signal(signal.SIGTERM, before)
    for one in live.values():
      one.process.terminate()
    for one in live.values():
      one.process.wait()
    ledger.save()


@contextlib.contextmanager
def alone(output: pathlib.Path) -> Iterator[int]:
  """Locks a folder against other suites, and against jobs that one left.

  Yields:
    A file descriptor that locks the folder as long as any process has it open.

  Raises:
    UserError: the folder is locked, or cannot be written.
  """
  try:
    output.mkdir(parents=True, exist_ok=True)
    file = (output / "lock").open("w")
  except OSError as error:
    raise UserError(
      f"{output} cannot be written ({error.strerror}); set output to another"
      " folder."
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"{output} is in use by another suite, or by jobs that a killed suite"
        " left; wait until they end, or set output to another folder."
      ) from error
    yield file.fileno()
