"""The jobs of a suite: a process for every run and every evaluation.

A ledger enters which of them were started, and how they ended.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping

from reft_jax import files, manifest
from reft_jax.config import loading, schema
from reft_jax.errors import UserError
from reft_jax.studies import results, suites

# The exit code of reft_jax.train when updates are no longer finite.
DIVERGED = 4


@dataclasses.dataclass(frozen=True)
class Job:
  """One process of a suite.

  Attributes:
    name: the name of the job and of its log.
    command: the arguments of Python.
    needs: the jobs whose models this one starts from.
    finished: whether its results are there, made with its settings.
    settings: a fingerprint of all its settings.
    origin: a fingerprint of what decides the models it starts from.
    models: a fingerprint of what decides its own models.
    folder: the run's folder; None for an evaluation, which checks by itself
      which models its answers are from.
  """

  name: str
  command: tuple[str, ...]
  needs: frozenset[str]
  finished: Callable[[], bool]
  settings: str
  origin: str = ""
  models: str = ""
  folder: pathlib.Path | None = None


def plan(suite: suites.Suite) -> list[Job]:
  """Every run and evaluation of a suite; a job comes after those it needs."""
  jobs: dict[str, Job] = {}
  for seed in suite.seeds:
    for run in suite.runs:
      job = _train(suite, run, seed, jobs)
      jobs[job.name] = job
    for evaluation in suite.evaluations:
      job = _evaluate(suite, evaluation, seed, jobs)
      jobs[job.name] = job
  return list(jobs.values())


def _train(
  suite: suites.Suite, run: str, seed: int, above: Mapping[str, Job]
) -> Job:
  """The job of a run."""
  config = suite.config(run, seed)
  folder = suite.run_folder(run, seed)
  lenders = {lender for lender, _ in suite.lent(run).values()}
  needs = frozenset(suites.run_name(lender, seed) for lender in lenders)
  origin = _origin(above, needs)
  identity = loading.identity(config) | {"origin": origin}

  def finished() -> bool:
    if not (folder / "summary.json").exists():
      return False
    return loading.load([str(folder / "config.yaml")]) == config

  return Job(
    name=suites.run_name(run, seed),
    command=(
      *("-m", "reft_jax.train", "--config", suite.experiment),
      *suite.run_settings(run, seed),
    ),
    needs=needs,
    finished=finished,
    settings=_settings(config),
    origin=origin,
    models=manifest.Manifest("models", identity).fingerprint,
    folder=folder,
  )


def _evaluate(
  suite: suites.Suite,
  evaluation: suites.Evaluation,
  seed: int,
  above: Mapping[str, Job],
) -> Job:
  """The job of an evaluation."""
  run, stages = evaluation.run, evaluation.stages
  folder = suite.run_folder(run, seed)
  runs = {run, evaluation.reward_model} - {""}
  needs = frozenset(suites.run_name(each, seed) for each in runs)
  made = [results.evaluation_file(folder, stage) for stage in stages]
  return Job(
    name=suites.evaluation_name(evaluation, seed),
    command=(
      *("-m", "reft_jax.evaluate"),
      *(str(suite.model_folder(run, seed, stage)) for stage in stages),
      *suite.evaluation_settings(evaluation, seed),
    ),
    needs=needs,
    finished=lambda: all(file.exists() for file in made),
    settings=_settings(suite.evaluation_config(evaluation, seed)),
    origin=_origin(above, needs),
  )


def _settings(config: schema.Config) -> str:
  """A fingerprint of all settings."""
  values = {key: value for key, _, value in loading.settings(config)}
  return manifest.Manifest("settings", values).fingerprint


def _origin(jobs: Mapping[str, Job], needs: Iterable[str]) -> str:
  """A fingerprint of what decides the models of the jobs in `needs`."""
  models = {name: jobs[name].models for name in sorted(needs)}
  return manifest.Manifest("origin", models).fingerprint


class Ledger:
  """The file jobs.json in the folder of a suite's results.

  Attributes:
    file: the file.
    at_once: how many jobs could run at once when the last one started.
    seconds: how long jobs ran by the clock, in all commands that worked on the
      suite, up to the last `save`.
  """

  def __init__(self, folder: pathlib.Path):
    self.file = file = folder / "jobs.json"
    try:
      content = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
      raise UserError(
        f"{file} is damaged: not JSON; delete it and re-run the command, which"
        " resumes the runs that are there."
      ) from error
    self._jobs = content.get("jobs", {})
    self.at_once = content.get("at_once", 1)
    self.seconds = content.get("seconds", 0.0)
    self._saved: float | None = None  # None until a job is started.

  def started(self, job: Job, at_once: int) -> None:
    """Enters a job that has started."""
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
    """Enters how a started job ended."""
    self._jobs[job.name] |= {"code": code, "seconds": round(seconds, 1)}
    self.save()

  def save(self, every: float = 0.0) -> None:
    """Writes the file, if the last save is `every` seconds ago or more.

    A command that starts no job leaves the file as it is.
    """
    now = time.monotonic()
    if self._saved is None or now - self._saved < every:
      return
    self.seconds = round(self.seconds + now - self._saved, 1)
    self._saved = now
    content = {"at_once": self.at_once, "seconds": self.seconds}
    content |= {"jobs": self._jobs}
    files.replace(self.file, json.dumps(content, indent=2) + "\n")

  def done(self, job: Job) -> bool:
    """Whether a job need not run: it ended as wanted, or diverged.

    An entry of an older version has no fingerprints: the job runs again, and
    resumes from what is there.
    """
    entry = self._jobs.get(job.name, {})
    if entry.get("settings") != job.settings or entry["origin"] != job.origin:
      return False
    code = entry["code"]
    return code == DIVERGED or (code == 0 and job.finished())

  def outdated(self, job: Job) -> bool:
    """Whether a job was started from models of other settings."""
    entry = self._jobs.get(job.name, {})
    return entry.get("origin", job.origin) != job.origin

  def why(self, job: Job) -> str | None:
    """Why a job has no results; None if it has."""
    entry = self._jobs.get(job.name)
    if entry is None or entry["code"] is None:
      return "not finished"
    if not self.done(job):
      return (
        "finished with other settings or from other models, or its results are"
        " gone"
      )
    if entry["code"] == DIVERGED:
      return "diverged: its updates were no longer finite"
    return None

  def succeeded(self) -> set[str]:
    """The names of the jobs whose models others can start from."""
    return {name for name, entry in self._jobs.items() if entry["code"] == 0}
