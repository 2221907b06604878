"""Whether a suite can run: every check that needs no finished run."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from reft_jax import errors
from reft_jax.config import checks, schema
from reft_jax.evaluation import settings as settings_lib
from reft_jax.huggingface import hub
from reft_jax.run import files_check
from reft_jax.studies import suites

# The accuracies that evaluations compute, by run and stage.
_Known = Mapping[tuple[str, str], set[str]]


def check(suite: suites.Suite) -> None:
  """Checks that a suite can run, and that its report has what it refers to.

  Raises:
    UserError: a setting, file, run, stage or metric does not exist, or two
      parts of the suite contradict each other.
  """
  for override in suite.overrides:
    if override.startswith(("name=", "seed=", "stages=")):
      raise errors.UserError(
        f"{override} would be the same for every run; leave it to the suite"
        " and to --seeds"
      )
  with _at(suite.file):
    if len(set(suite.seeds)) < len(suite.seeds):
      raise errors.UserError("seeds: each can be run once")
    for name in suite.runs:
      with _at(f"run {name}"):
        _check_run(suite, name)
    _check_outcomes(suite, _check_evaluations(suite))


@contextlib.contextmanager
def _at(place: str) -> Iterator[None]:
  """Puts a place in a suite in front of errors raised inside."""
  try:
    yield
  except errors.UserError as error:
    # Settings are checked as if they were those of a command line.
    text = str(error).removeprefix("command line: ")
    raise errors.UserError(f"{place}: {text}") from error


def _check_run(suite: suites.Suite, name: str) -> None:
  """Checks a run's settings, and the files and folders that it reads."""
  config = suite.config(name, suite.seeds[0])
  for seed in suite.seeds:
    checks.validate(dataclasses.replace(config, seed=seed))
  # The models of the suite's other runs need not exist yet.
  lent = [
    str(suite.model_folder(lender, suite.seeds[0], stage))
    for lender, stage in suite.lent(name).values()
  ]
  path, warmup = (
    None if model in lent else model
    for model in (config.model.path, config.model.warmup)
  )
  model = dataclasses.replace(config.model, path=path, warmup=warmup)
  files_check.check_files(dataclasses.replace(config, model=model))


def _check_evaluations(suite: suites.Suite) -> _Known:
  """Checks the evaluations; returns the accuracies that they compute."""
  known: dict[tuple[str, str], set[str]] = {}
  for number, evaluation in enumerate(suite.evaluations):
    run, accuracies = evaluation.run, set[str]()
    with _at(f"evaluations[{number}]"):
      for stage in evaluation.stages:
        _check_stage(suite, run, stage)
        if stage == suites.REWARD_MODEL:
          raise errors.UserError(
            f"{stage} answers no questions; name its run as reward_model to"
            " rerank other stages' answers"
          )
        if (run, stage) in known:
          raise errors.UserError(
            f"{run}/{stage} is evaluated before, and its answers have one"
            " folder; leave one of the two out"
          )
        known[run, stage] = accuracies
      if evaluation.reward_model:
        _check_stage(suite, evaluation.reward_model, suites.REWARD_MODEL)
    with _at(f"evaluation of {run}"):
      config = suite.evaluation_config(evaluation, suite.seeds[0])
    with _at(f"evaluations[{number}]"):
      _check_evaluation(suite, evaluation, config)
    accuracies |= settings_lib.known(config.evaluation)
  return known


def _check_evaluation(
  suite: suites.Suite, evaluation: suites.Evaluation, config: schema.Config
) -> None:
  """Checks an evaluation's settings, and the files that it reads."""
  checks.validate(config)
  settings = config.evaluation
  settings_lib.check(settings)
  model = dataclasses.replace(config.model, path=None)
  files_check.check_files(dataclasses.replace(config, model=model))
  if settings.split != "test":
    raise errors.UserError(
      f"evaluation.split={settings.split}: a suite compares answers to the"
      " test problems; leave it out"
    )
  judge, run = settings.reward_model, evaluation.reward_model
  own = suite.model_folder(run, suite.seeds[0], suites.REWARD_MODEL)
  if not judge or (run and judge == str(own)):
    return
  if not hub.is_id(judge) and hub.find(judge) is None:
    raise errors.UserError(
      f"evaluation.reward_model={judge}: no reward model there; give its"
      " folder, or name a run of this suite as reward_model"
    )


def _check_outcomes(suite: suites.Suite, known: _Known) -> None:
  """Checks that runs and evaluations yield what the suite tables and claims."""
  for table in suite.tables:
    for row in table.rows:
      with _at(f"table {table.title!r}, row {row.label!r}"):
        for column in table.columns:
          result = dataclasses.replace(row.result, metric=column)
          _check_result(suite, result, known)
  titles: dict[str, str] = {}
  for figure in suite.figures:
    with _at(f"figure {figure.title!r}"):
      name = suites.picture(figure.title)
      if name in titles:
        raise errors.UserError(
          f"its picture would be {name}, as that of {titles[name]!r} is; give"
          " it another title"
        )
      titles[name] = figure.title
      if isinstance(figure, suites.Curves):
        for line in figure.curves.values():  # Whatever metric the run logged.
          _check_stage(suite, line.run, line.stage)
      else:
        for points in figure.points.values():
          for result in points.values():
            _check_result(suite, result, known)
  for claim in suite.claims:
    with _at(f"claim {claim.text!r}"):
      one, other = claim.sides
      if isinstance(one, float) and isinstance(other, float):
        raise errors.UserError(
          f"compares {one:g} and {other:g}, which no run decides; one of them"
          " should be RUN/STAGE"
        )
      for side in claim.sides:
        if isinstance(side, suites.Reference):
          _check_result(suite, side, known)


def _check_result(
  suite: suites.Suite, result: suites.Reference, known: _Known
) -> None:
  """Checks that a run or an evaluation will yield a result."""
  run, stage, name = result.run, result.stage, result.metric
  _check_stage(suite, run, stage)
  try:
    metric = suites.metric(name)
  except KeyError:
    raise errors.UserError(
      f"unknown metric {name!r}; there are {', '.join(suites.METRICS)} and"
      f" {', '.join(f'{method}@k' for method in suites.AT_K)}"
    ) from None
  if metric.source == "evaluation" and name not in known.get((run, stage), ()):
    raise errors.UserError(
      f"no evaluation of {run}/{stage} computes {name}; add one, its k to"
      " evaluation.at, or a reward_model to rerank"
    )


def _check_stage(suite: suites.Suite, run: str, stage: str) -> None:
  """Checks that the suite has the run, and the run the stage."""
  if run not in suite.runs:
    raise errors.UserError(f"no run {run!r}; there are {', '.join(suite.runs)}")
  stages = suite.runs[run].stages
  if stage not in stages:
    raise errors.UserError(
      f"run {run} has no stage {stage!r}; it has {', '.join(stages)}"
    )
