"""`python -m reft_jax.reproduce SUITE`: many runs, one report.

    python -m reft_jax.reproduce embedded --seeds 1 2 3 --jobs 2

A SUITE is a YAML file or the name of a packaged one: what to run, what to
evaluate, and what to table, draw and claim (reft_jax.studies.reading says how
it is written). Each run is a process of reft_jax.train, each evaluation one of
reft_jax.evaluate; what they print lies in OUTPUT/logs. It ends in
OUTPUT/report.md, pictures beside it, and results.json. What is finished is not
done again: the same command goes on where it was stopped. A run that started
from a model that other settings made is put aside and trained anew.

  --seeds N...   instead of the suite's
  --jobs N       so many processes at once, each on its share of the CPU cores
  --dry-run      only check the suite, and say what would be run
  --report       only write the report anew, of what this command finished
  output=FOLDER  where everything is kept; runs/suite-NAME if not given
  key=value      a setting for every run and evaluation

Exit codes: 0 done, 2 bad input, 3 a run or evaluation failed, 75 stopped by
SIGTERM, 130 interrupted.
"""

import collections
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from reft_jax import files
from reft_jax.config import loading, schema
from reft_jax.errors import UserError
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import plots
from reft_jax.studies import checking, reading, report, results, suites

# What reft_jax.train exits with when updates are no longer finite.
_DIVERGED = 4
# Settings that change nothing in a run's models: with others of these
# reft_jax.train takes it up again.
_NOT_LEARNT = (
  *("resume", "output", "logging.", "checkpoint.", "mesh.", "stages"),
  *("distributed", "xla_flags", "programs.workers"),
  *("evaluation.split", "evaluation.samples", "evaluation.at"),
  *("evaluation.reward_model", "evaluation.resamples"),
)
_POLL_SECONDS = 0.2
# A kill that nobody can answer loses no more of the account than this.
_SAVE_SECONDS = 60.0


class FailedError(Exception):
  """A run or an evaluation came to no result."""


class StoppedError(Exception):
  """The suite was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line, understood; `overrides` are for every run."""

  suite: str
  seeds: tuple[int, ...] | None = None
  jobs: int = 1
  action: str = "run"
  output: str | None = None
  overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
  """One process of a suite.

  Attributes:
    name: also its log's.
    command: the arguments of Python.
    needs: jobs whose models it starts from.
    finished: whether what it makes is there, made by the same settings.
    settings: a fingerprint of all its settings.
    origin: a fingerprint of what made the models it starts from.
    models: a fingerprint of what makes its own.
    folder: the run's; None of an evaluation, which knows its models.
  """

  name: str
  command: tuple[str, ...]
  needs: frozenset[str]
  finished: Callable[[], bool]
  settings: str
  origin: str = ""
  models: str = ""
  folder: pathlib.Path | None = None


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  screen = console_lib.Console()
  if {"-h", "--help"} & set(argv):
    print(f"{__doc__}\nPackaged suites: {', '.join(reading.packaged())}")
    return 0
  try:
    reproduce(parse(argv), screen)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except FailedError as error:
    print(f"error: {error}", file=sys.stderr)
    return 3
  except StoppedError:
    screen.line("stopped; the same command goes on from there.")
    return 75
  except KeyboardInterrupt:
    screen.line("interrupted; the same command goes on from there.")
    return 130
  return 0


def parse(argv: Sequence[str]) -> Command:
  """Reads a command line.

  Raises:
    UserError: an argument that is not understood.
  """
  values: dict[str, Any] = {}
  overrides = []
  arguments = collections.deque(argv)
  while arguments:
    argument = arguments.popleft()
    match argument:
      case "--seeds":
        values["seeds"] = tuple(_numbers(arguments))
        if not values["seeds"]:
          raise UserError("--seeds needs whole numbers after it")
        if len(set(values["seeds"])) < len(values["seeds"]):
          raise UserError("--seeds: each can be run once")
      case "--jobs":
        jobs = next(_numbers(arguments), 0)
        if jobs < 1:
          raise UserError("--jobs needs a number above 0 after it")
        values["jobs"] = jobs
      case "--dry-run" | "--report":
        values["action"] = argument.removeprefix("--")
      case _ if argument.startswith("output="):
        values["output"] = argument.removeprefix("output=")
      case _ if argument.startswith(("name=", "seed=", "stages=")):
        raise UserError(
          f"{argument} would be the same for every run; leave it to the suite"
          " and to --seeds"
        )
      case _ if "=" in argument and not argument.startswith("-"):
        overrides.append(argument)
      case _ if "suite" not in values and not argument.startswith("-"):
        values["suite"] = argument
      case _:
        raise UserError(f"unknown argument {argument!r}; see --help")
  if "suite" not in values:
    raise UserError(
      f"which suite? A file, or one of {', '.join(reading.packaged())}"
    )
  return Command(**values, overrides=tuple(overrides))


def _numbers(arguments: collections.deque[str]) -> Iterator[int]:
  """Takes whole numbers from the front."""
  while arguments and arguments[0].isdecimal():
    yield int(arguments.popleft())


def reproduce(command: Command, screen: console_lib.Console) -> None:
  """Runs what is not yet finished of a suite, and reports."""
  suite = reading.load(command.suite)
  if command.seeds:
    suite = dataclasses.replace(suite, seeds=command.seeds)
  checking.check(suite, command.overrides)
  output = files.expand_user(command.output or f"runs/suite-{suite.name}")
  jobs = plan(suite, suite.seeds, output, command.overrides)
  if command.action == "dry-run":
    ledger = Ledger(output / "jobs.json")
    for job in jobs:
      state = "finished" if ledger.done(job) else "to do"
      screen.line(f"{state}: {job.name}: python {shlex.join(job.command)}")
    return
  with alone(output) as lock:
    ledger = Ledger(output / "jobs.json")
    if command.action == "run":
      perform(jobs, command.jobs, ledger, screen, lock)
    write_report(suite, suite.seeds, command, jobs, ledger, output, screen)


def plan(
  suite: suites.Suite,
  seeds: Sequence[int],
  output: pathlib.Path,
  overrides: Sequence[str],
) -> list[Job]:
  """Every run and evaluation; those that others need come before them."""
  folder = output / "runs"
  jobs: dict[str, Job] = {}
  for seed in seeds:
    for run in suite.runs.values():
      job = _train(suite, run, seed, folder, overrides, jobs)
      jobs[job.name] = job
    for evaluation in suite.evaluations:
      job = _evaluate(suite, evaluation, seed, folder, overrides, jobs)
      jobs[job.name] = job
  return list(jobs.values())


def _train(
  suite: suites.Suite,
  run: suites.Run,
  seed: int,
  folder: pathlib.Path,
  overrides: Sequence[str],
  above: Mapping[str, Job],
) -> Job:
  wanted = suite.config(run.name, seed, folder, overrides)
  directory = suites.run_folder(folder, run.name, seed)
  needs = {suites.run_name(each, seed) for each in suite.lenders(run.name)}
  origin = _origin(above, needs)
  settings = loading.differences(schema.Config(), wanted)
  learnt = [each for each in settings if not each.startswith(_NOT_LEARNT)]

  def finished() -> bool:
    if not (directory / "summary.json").exists():
      return False
    return loading.load([str(directory / "config.yaml")]) == wanted

  return Job(
    name=suites.run_name(run.name, seed),
    command=(
      *("-m", "reft_jax.train", "--config", suite.experiment),
      *suite.overrides(run.name, seed, folder),
      *overrides,
    ),
    needs=frozenset(needs),
    finished=finished,
    settings=_fingerprint(settings),
    origin=origin,
    models=_fingerprint([origin, *learnt]),
    folder=directory,
  )


def _evaluate(
  suite: suites.Suite,
  evaluation: suites.Evaluation,
  seed: int,
  folder: pathlib.Path,
  overrides: Sequence[str],
  above: Mapping[str, Job],
) -> Job:
  wanted = suite.evaluation_config(evaluation, seed, folder, overrides)
  directory = suites.run_folder(folder, evaluation.run, seed)
  runs = {evaluation.run, evaluation.reward_model} - {None}
  needs = {suites.run_name(run, seed) for run in runs}
  made = [
    results.evaluation_file(directory, stage) for stage in evaluation.stages
  ]
  return Job(
    name=suites.evaluation_name(evaluation, seed),
    command=(
      *("-m", "reft_jax.evaluate"),
      *(str(directory / "models" / stage) for stage in evaluation.stages),
      *suite.evaluation_overrides(evaluation, seed, folder),
      *overrides,
    ),
    needs=frozenset(needs),
    finished=lambda: all(file.exists() for file in made),
    settings=_fingerprint(loading.differences(schema.Config(), wanted)),
    origin=_origin(above, needs),
  )


def _origin(jobs: Mapping[str, Job], needs: Iterable[str]) -> str:
  """What made the models of the jobs that another needs."""
  return _fingerprint([f"{name} {jobs[name].models}" for name in sorted(needs)])


def _fingerprint(lines: Iterable[str]) -> str:
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class Ledger:
  """A file of the jobs that were started: what they are, and how they ended.

  Attributes:
    file: where it lies.
    at_once: how many jobs went on at the same time when the last one started.
    seconds: how long jobs were under way by the clock, in all commands that
      worked on the suite together, up to the last `save`.
  """

  def __init__(self, file: pathlib.Path):
    self.file = file
    try:
      content = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
      raise UserError(
        f"{file} is damaged: not JSON; delete it, and the same command takes up"
        " again the runs that are there."
      ) from error
    self._jobs = content.get("jobs", {})
    self.at_once = content.get("at_once", 1)
    self.seconds = content.get("seconds", 0.0)
    self._saved: float | None = None  # When, once a job was started.

  def started(self, job: Job, at_once: int) -> None:
    """Enters a job that is under way, one of so many."""
    self.at_once = at_once
    if self._saved is None:
      self._saved = time.monotonic()
    self._jobs[job.name] = {
      "command": list(job.command),
      "settings": job.settings,
      "origin": job.origin,
      "code": None,
    }
    self.save()

  def ended(self, job: Job, code: int, seconds: float) -> None:
    """Enters how a job that was started came to its end."""
    self._jobs[job.name] |= {"code": code, "seconds": round(seconds, 1)}
    self.save()

  def save(self, every: float = 0.0) -> None:
    """Writes the file, if the time since the last save is `every` or more.

    Where this command started no job, there is nothing to be written.
    """
    now = time.monotonic()
    if self._saved is None or now - self._saved < every:
      return
    self.seconds = round(self.seconds + now - self._saved, 1)
    self._saved = now
    content = {
      "at_once": self.at_once,
      "seconds": self.seconds,
      "jobs": self._jobs,
    }
    files.replace(self.file, json.dumps(content, indent=2) + "\n")

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Saves at the end, whatever ends it."""
    try:
      yield
    finally:
      self.save()

  def done(self, job: Job) -> bool:
    """Whether a job need not be run: it ended and is as wanted, or diverged.

    Of a job that an older program entered this is not known: run again, it
    goes on from what is there.
    """
    entry = self._jobs.get(job.name, {})
    if entry.get("settings") != job.settings or entry["origin"] != job.origin:
      return False
    code = entry["code"]
    return code == _DIVERGED or (code == 0 and job.finished())

  def outdated(self, job: Job) -> bool:
    """Whether a job was started from models that other settings made."""
    entry = self._jobs.get(job.name, {})
    return entry.get("origin", job.origin) != job.origin

  def why(self, job: Job) -> str | None:
    """What became of a job that has no results; None if it has."""
    entry = self._jobs.get(job.name)
    if entry is None or entry["code"] is None:
      return "not finished"
    if not self.done(job):
      return (
        "finished with other settings or from other models, or its results are"
        " gone"
      )
    if entry["code"] == _DIVERGED:
      return "diverged: its updates were no longer finite"
    return None

  def succeeded(self) -> set[str]:
    """The jobs that left what others need."""
    return {name for name, entry in self._jobs.items() if entry["code"] == 0}


@dataclasses.dataclass(frozen=True)
class Live:
  """A job that is under way."""

  job: Job
  process: subprocess.Popen
  began: float
  log: pathlib.Path


def perform(
  jobs: Sequence[Job],
  at_once: int,
  ledger: Ledger,
  screen: console_lib.Console,
  lock: int,
) -> None:
  """Brings every job to its end, so many at once, each after what it needs.

  Of the jobs that can start, the one goes first that most others wait for. A
  run that diverges is a result; jobs that need it are left out.

  Args:
    jobs: all jobs; those the ledger knows are not done again.
    at_once: how many processes there are at most.
    ledger: where jobs that end are entered.
    screen: where that is told.
    lock: a file descriptor that the processes keep open.

  Raises:
    FailedError: a job failed. Others that were under way have saved.
  """
  logs = ledger.file.parent / "logs"
  logs.mkdir(exist_ok=True)
  todo = [job for job in jobs if not ledger.done(job)]
  waiting = collections.Counter(need for job in jobs for need in job.needs)
  with (
    screen.stage("jobs", len(jobs), len(jobs) - len(todo)) as progress,
    ledger.saving(),
    _stopping() as live,
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
        progress.note(f"left out, for the models that diverged: {left}")
        return
      time.sleep(_POLL_SECONDS)
      ledger.save(every=_SAVE_SECONDS)
      for slot, one in list(live.items()):
        code = one.process.poll()
        if code is not None:
          del live[slot]
          _end(one, code, ledger, progress)


def _put_aside(job: Job) -> pathlib.Path | None:
  """Gives a run's folder another name, and returns that, if it is there."""
  if job.folder is None or not job.folder.exists():
    return None
  now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  return job.folder.rename(f"{job.folder}.until-{now}")


def _start(
  job: Job, slot: int, at_once: int, logs: pathlib.Path, lock: int
) -> Live:
  """Starts a job's process, which shares the CPU cores with the others.

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
      start_new_session=True,  # Ctrl-C reaches this process alone.
    )
  if at_once > 1 and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, cores[slot::at_once] or cores)
  return Live(job, process, time.monotonic(), path)


def _end(
  one: Live, code: int, ledger: Ledger, progress: console_lib.Progress
) -> None:
  """Enters a job that came to its end; raises if it failed."""
  seconds = time.monotonic() - one.began
  name, took = one.job.name, console_lib.duration(seconds)
  if code not in (0, _DIVERGED):
    lines = one.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    raise FailedError(
      f"{name} failed ({code}) after {took}: {last} ({one.log})"
    )
  ledger.ended(one.job, code, seconds)
  progress.step(progress.done + 1)
  progress.note(f"{name} {'diverged' if code else 'ended'} after {took}")


@contextlib.contextmanager
def _stopping() -> Iterator[dict[int, Live]]:
  """Inside, SIGTERM stops the suite; whatever happens, no job is left behind.

  Jobs under way are asked to save and end, and waited for.
  """

  def stop(*_) -> None:
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


@contextlib.contextmanager
def alone(output: pathlib.Path) -> Iterator[int]:
  """Keeps a second suite, or jobs that outlive a first, out of a folder.

  Yields:
    A file descriptor that locks the folder as long as any process has it open.

  Raises:
    UserError: another has it open, or the folder cannot be written.
  """
  try:
    output.mkdir(parents=True, exist_ok=True)
    file = (output / "lock").open("w")
  except OSError as error:
    raise UserError(
      f"{output} cannot be written ({error.strerror}); set output to another"
      " place."
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"{output} is in use by another suite, or by jobs that one left when it"
        " was killed; wait until they end, or set output to another folder."
      ) from error
    yield file.fileno()


def write_report(
  suite: suites.Suite,
  seeds: Sequence[int],
  command: Command,
  jobs: Sequence[Job],
  ledger: Ledger,
  output: pathlib.Path,
  screen: console_lib.Console,
) -> None:
  """Writes report.md, its pictures and results.json; says what came out.

  What other settings left in the folder counts as missing.
  """
  why = {job.name: ledger.why(job) for job in jobs}
  done = {name for name, reason in why.items() if reason is None}
  found = results.Results(suite, seeds, output / "runs", done)
  judged = [
    report.judge(
      claim, *(_side(found, side) for side in claim.sides), seeds=len(seeds)
    )
    for claim in suite.claims
  ]
  account = report.Account(
    command=spelled(command),
    overrides=command.overrides,
    machine=found.machine() or "no run is finished",
    at_once=ledger.at_once,
    seconds=ledger.seconds,
    seeds=tuple(seeds),
    missing=[f"{name} ({why[name]})" for name in why if name not in done],
    pictures=draw(suite, found, output),
  )
  text = report.report(suite, found.of, judged, account)
  files.replace(output / "report.md", text)
  content = {
    "suite": suite.name,
    **{
      field: getattr(account, field)
      for field in ("command", "machine", "at_once", "seconds", "seeds")
    },
    "missing": account.missing,
    "claims": [report.plain(each) for each in judged],
    "runs": found.plain(),
  }
  text = json.dumps(content, indent=2, allow_nan=False) + "\n"
  files.replace(output / "results.json", text)
  for each in judged:
    screen.line(f"{each.verdict}: {report.sentence(each)}")
  screen.line(f"report: {output / 'report.md'}", style="bold")


def _side(
  found: results.Results, side: suites.Reference | float
) -> report.BySeed | float:
  return found.of(side) if isinstance(side, suites.Reference) else side


def draw(
  suite: suites.Suite, found: results.Results, output: pathlib.Path
) -> dict[str, str]:
  """Draws the suite's figures; returns their titles by file name."""
  pictures = {}
  for figure in suite.figures:
    name = suites.picture(figure.title)
    curve = isinstance(figure, suites.Curves)
    if curve:
      some = {
        label: found.curve(line, figure.over)
        for label, line in figure.lines.items()
      }
    else:
      some = {
        label: {
          place: list(found.of(result).values())
          for place, result in line.items()
          if found.of(result)
        }
        for label, line in figure.lines.items()
      }
    if any(some.values()):
      plots.lines(
        [plots.Line(label, values) for label, values in some.items()],
        output / name,
        title=figure.title,
        x=suites.OVER[figure.over] if curve else figure.x,
        share=figure.share,
        dense=curve,
      )
      pictures[name] = figure.title
  return pictures


def spelled(command: Command) -> str:
  """The command line without what says only where and how fast."""
  seeds = ("--seeds", *map(str, command.seeds)) if command.seeds else ()
  # Where the suite lies on this machine is nobody else's business.
  path = pathlib.Path(command.suite)
  suite = path.name if path.is_absolute() else command.suite
  words = (suite, *seeds, *command.overrides)
  jobs = ("--jobs", str(command.jobs)) if command.jobs > 1 else ()
  return f"python -m reft_jax.reproduce {shlex.join((*words, *jobs))}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
