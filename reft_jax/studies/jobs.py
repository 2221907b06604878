"""The jobs of a suite: a process for every run and every evaluation."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping

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
