"""Whether a suite can run: every check that needs no finished run."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reft_jax import errors
from reft_jax.config import checks, schema
from reft_jax.evaluation import settings as settings_lib
from reft_jax.huggingface import hub
from reft_jax.run import files_check
from reft_jax.studies import suites

# Where runs would lie. The checks do not look at what lies there.
_FOLDER = pathlib.Path()
# The accuracies that an evaluation computes, by run and stage.
_Known = Mapping[tuple[str, str], set[str]]


def check(suite: suites.Suite, overrides: Sequence[str] = ()) -> None:
  """Checks that a suite can run, and that its report has what it refers to.

  Args:
    suite: the suite.
    overrides: settings for every run and evaluation; they win.

  Raises:
    UserError: a setting, file, run, stage or metric does not exist, or two
      parts of the suite contradict each other.
  """
  for override in overrides:
    if override.startswith(("name=", "seed=", "stages=")):
      raise errors.UserError(
        f"{override} would be the same for every run; leave it to the suite"
        " and to --seeds"
      )
  if len(set(suite.seeds)) < len(suite.seeds):
    raise errors.UserError(f"{suite.file}: seeds: each can be run once")
  for run in suite.runs.values():
    _check_run(suite, run, overrides)
  known: dict[tuple[str, str], set[str]] = {}
  for number, evaluation in enumerate(suite.evaluations):
    where = f"evaluations[{number}]"
    found = _check_evaluation(suite, where, evaluation, overrides)
    for stage in evaluation.stages:
      place = evaluation.run, stage
      if place in known:
        raise errors.UserError(
          f"{suite.file}: {where}: {'/'.join(place)} is evaluated before, and"
          " its answers have one folder; leave one of the two out"
        )
      known[place] = found
  _check_pictures(suite)
  for claim in suite.claims:
    _check_sides(suite, claim)
  for where, line in _curves(suite):
    _check_stage(suite, where, line.run, line.stage)
  for where, reference in _references(suite):
    _check_reference(suite, where, reference, known)


def _check_run(
  suite: suites.Suite, run: suites.Run, overrides: Sequence[str]
) -> None:
  """Checks a run's settings, and the files and folders that it reads."""
  seed = suite.seeds[0]
  config = suite.config(run.name, seed, _FOLDER, overrides)
  lent = suite.lent_models(run.name, seed, _FOLDER)
  with _saying_where(suite, f"run {run.name}"):
    for each in suite.seeds:
      checks.validate(dataclasses.replace(config, seed=each))
    # The models of the suite's other runs need not exist yet.
    _check_files(
      config,
      {
        key: None if lent.get(f"model.{key}") == path else path
        for key, path in vars(config.model).items()
      },
    )


def _check_evaluation(
  suite: suites.Suite,
  where: str,
  evaluation: suites.Evaluation,
  overrides: Sequence[str],
) -> set[str]:
  """Checks an evaluation; returns the names of the accuracies it computes."""
  for stage in evaluation.stages:
    _check_stage(suite, where, evaluation.run, stage)
    if stage == suites.REWARD_MODEL:
      raise errors.UserError(
        f"{suite.file}: {where}: {stage} answers no questions; name its run as"
        " reward_model to rerank other stages' answers"
      )
  if evaluation.reward_model:
    judge = evaluation.reward_model
    _check_stage(suite, where, judge, suites.REWARD_MODEL)
  seed = suite.seeds[0]
  config = suite.evaluation_config(evaluation, seed, _FOLDER, overrides)
  settings = config.evaluation
  with _saying_where(suite, where):
    checks.validate(config)
    settings_lib.check(settings)
    _check_files(config, {"path": None})
    if settings.split != "test":
      raise errors.UserError(
        f"evaluation.split={settings.split}: a suite compares answers to the"
        " test problems; leave it out"
      )
    given, run = settings.reward_model, evaluation.reward_model
    made = suites.model_folder(_FOLDER, run, seed, suites.REWARD_MODEL)
    if (
      given
      and not (run and given == str(made))
      and not hub.is_id(given)
      and hub.find(given) is None
    ):
      raise errors.UserError(
        f"evaluation.reward_model={given}: no reward model there; give its"
        " folder, or name a run of this suite as reward_model"
      )
  return settings_lib.known(settings)


def _check_files(config: schema.Config, model: Mapping[str, Any]) -> None:
  """Checks that the files of a config exist, with these models instead."""
  files_check.check_files(
    dataclasses.replace(
      config, model=dataclasses.replace(config.model, **model)
    )
  )


@contextlib.contextmanager
def _saying_where(suite: suites.Suite, where: str) -> Iterator[None]:
  """Puts the suite and the place in it in front of errors raised inside."""
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f"{suite.file}: {where}: {error}") from error


def _check_pictures(suite: suites.Suite) -> None:
  """Checks that no two figures are drawn to one file."""
  titles: dict[str, str] = {}
  for figure in suite.figures:
    name = suites.picture(figure.title)
    if name in titles:
      raise errors.UserError(
        f"{suite.file}: figure {figure.title!r}: its picture would be {name},"
        f" as that of {titles[name]!r} is; give it another title"
      )
    titles[name] = figure.title


def _check_sides(suite: suites.Suite, claim: suites.Claim) -> None:
  """Checks that a claim is about a run."""
  one, other = claim.sides
  if isinstance(one, float) and isinstance(other, float):
    raise errors.UserError(
      f"{suite.file}: claim {claim.text!r}: compares {one:g} and {other:g},"
      " which no run decides; one of them should be RUN/STAGE"
    )


def _curves(suite: suites.Suite) -> Iterator[tuple[str, suites.Reference]]:
  """Every curve and its place in the suite; its metric may be any."""
  for figure in suite.figures:
    if isinstance(figure, suites.Curves):
      for line in figure.curves.values():
        yield f"figure {figure.title!r}", line


def _references(suite: suites.Suite) -> Iterator[tuple[str, suites.Reference]]:
  """Every result in a table, figure or claim, and its place in the suite."""
  for table in suite.tables:
    for row in table.rows:
      for column in table.columns:
        where = f"table {table.title!r}, row {row.label!r}"
        yield where, dataclasses.replace(row.result, metric=column)
  for figure in suite.figures:
    if isinstance(figure, suites.Points):
      for line in figure.points.values():
        for reference in line.values():
          yield f"figure {figure.title!r}", reference
  for claim in suite.claims:
    for side in claim.sides:
      if isinstance(side, suites.Reference):
        yield f"claim {claim.text!r}", side


def _check_reference(
  suite: suites.Suite, where: str, reference: suites.Reference, known: _Known
) -> None:
  """Checks that a run or an evaluation will yield a result."""
  _check_stage(suite, where, reference.run, reference.stage)
  name = reference.metric
  try:
    metric = suites.metric(name)
  except KeyError:
    raise errors.UserError(
      f"{suite.file}: {where}: unknown metric {name!r}; there are"
      f" {', '.join(suites.METRICS)} and"
      f" {', '.join(f'{method}@k' for method in suites.AT_K)}"
    ) from None
  place = reference.run, reference.stage
  if metric.evaluated and name not in known.get(place, ()):
    raise errors.UserError(
      f"{suite.file}: {where}: no evaluation of {'/'.join(place)} computes"
      f" {name}; add one, its k to evaluation.at, or a reward_model to rerank"
    )


def _check_stage(suite: suites.Suite, where: str, run: str, stage: str) -> None:
  """Checks that the suite has the run, and the run the stage."""
  if run not in suite.runs:
    raise errors.UserError(
      f"{suite.file}: {where}: no run {run!r}; there are"
      f" {', '.join(suite.runs)}"
    )
  if stage not in suite.runs[run].stages:
    raise errors.UserError(
      f"{suite.file}: {where}: run {run} has no stage {stage!r}; it has"
      f" {', '.join(suite.runs[run].stages)}"
    )
