"""The jobs of a suite: a process for every run and every evaluation."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from reft_jax import manifest
from reft_jax.config import loading, schema
from reft_jax.studies import results, suites


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


def plan(
  suite: suites.Suite, output: pathlib.Path, overrides: Sequence[str]
) -> list[Job]:
  """Every run and evaluation of a suite; a job comes after those it needs."""
  folder = output / "runs"
  jobs: dict[str, Job] = {}
  for seed in suite.seeds:
    for run in suite.runs.values():
      job = _train(suite, run, seed, folder, overrides, jobs)
      jobs[job.name] = job
    for evaluation in suite.evaluations:
      job = _evaluate(suite, evaluation, seed, folder, overrides, jobs)
      jobs[job.name] = job
  return list(jobs.values())


def _models(config: schema.Config, origin: str) -> str:
  """A fingerprint of what decides a run's models."""
  settings = loading.identity(config)
  return manifest.Manifest("models", settings | {"origin": origin}).fingerprint


def _settings(config: schema.Config) -> str:
  """A fingerprint of all settings."""
  settings = {key: value for key, _, value in loading.settings(config)}
  return manifest.Manifest("settings", settings).fingerprint


def _train(
  suite: suites.Suite,
  run: suites.Run,
  seed: int,
  folder: pathlib.Path,
  overrides: Sequence[str],
  above: Mapping[str, Job],
) -> Job:
  """The job of a run."""
  wanted = suite.config(run.name, seed, folder, overrides)
  directory = suites.run_folder(folder, run.name, seed)
  needs = {suites.run_name(each, seed) for each in suite.lenders(run.name)}
  origin = _origin(above, needs)

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
    settings=_settings(wanted),
    origin=origin,
    models=_models(wanted, origin),
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
  """The job of an evaluation."""
  wanted = suite.evaluation_config(evaluation, seed, folder, overrides)
  directory = suites.run_folder(folder, evaluation.run, seed)
  runs = {evaluation.run, evaluation.reward_model} - {""}
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
    settings=_settings(wanted),
    origin=_origin(above, needs),
  )


def _origin(jobs: Mapping[str, Job], needs: Iterable[str]) -> str:
  """What decides the models of the jobs in `needs`."""
  models = {name: jobs[name].models for name in sorted(needs)}
  return manifest.Manifest("origin", models).fingerprint
