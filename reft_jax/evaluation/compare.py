"""Several models evaluated and compared in one table."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from reft_jax.config import schema
from reft_jax.evaluation import evaluation as evaluation_lib
from reft_jax.evaluation import prepare
from reft_jax.huggingface import hub
from reft_jax.run import dry_run, model_paths
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import multihost, preemption


def compare(
  models: Sequence[model_paths.Model],
  configs: Sequence[schema.Config],
  console: console_lib.Console,
  *,
  dry: bool = False,
) -> None:
  """Evaluates models, each with its settings, and shows them in a table.

  All are checked before the first one samples. With `dry` they are only
  checked, and nothing is downloaded.
  """
  with multihost.raise_on_all_processes():
    prepare.check(configs)
    directories = prepare.directories(models, configs)
  if dry and (absent := list(prepare.missing(models, configs))):
    for name in dict.fromkeys(absent):
      console.line(f"missing: {name}, to be downloaded from {hub.page(name)}")
    console.line("dry run: what is missing was not checked")
    return
  with contextlib.ExitStack() as exits:
    with multihost.raise_on_all_processes():
      graders = prepare.open_graders(configs, exits)
      evaluations = [
        prepare.prepare(*each, console)
        for each in zip(models, configs, directories, graders, strict=True)
      ]
      if not dry and multihost.is_lead():
        for directory in directories:
          prepare.claim(directory)
    prepare.check_equal_on_all(evaluations)
    exits.enter_context(preemption.stopping_on_sigterm())
    summaries = {}
    for evaluation in evaluations:
      _introduce(evaluation, console)
      if not dry:
        with jax.set_mesh(evaluation.engine.mesh):
          evaluation.sample()
          summary = evaluation.write(evaluation.answers())
        summaries[_label(evaluation.model, models)] = summary
  if dry:
    console.line("dry run: all is well, and nothing was sampled")
    return
  _show(summaries, console)
  for directory in directories:
    console.line(f"every completion: {directory / 'report.html'}")


def _introduce(
  evaluation: evaluation_lib.Evaluation, console: console_lib.Console
) -> None:
  """Says which model answers which problems."""
  name, directory = evaluation.model.name, evaluation.directory
  console.line(f"{name}: {directory}", style="bold")
  split = evaluation.engine.config.evaluation.split
  splits = {str(split): evaluation.problems}
  console.line(dry_run.describe_problems(splits))


def _label(
  model: model_paths.Model, models: Sequence[model_paths.Model]
) -> str:
  """A model's name, with its folder's if several models have that name."""
  if [each.name for each in models].count(model.name) == 1:
    return model.name
  return f"{(model.run or model.folder.parent).name}/{model.name}"


def _show(
  summaries: Mapping[str, Mapping[str, Any]], console: console_lib.Console
) -> None:
  """A table with a column for each model, by its label."""
  columns = [
    {"problems": f"{summary['questions']} {summary['split']}"}
    | {name: _cell(**figure) for name, figure in summary["accuracy"].items()}
    | {
      f"{name}: {verdict}": f"{count:,}"
      for name, counts in summary["verdicts"].items()
      for verdict, count in counts.items()
    }
    for summary in summaries.values()
  ]
  # A vote of one is that one sample.
  names = [
    name
    for name in dict.fromkeys(itertools.chain(*columns))
    if not name.endswith("@1")
  ]
  console.table(
    "Accuracy, and half the width of its 95 % interval over questions",
    ["", *summaries],
    [[name, *(column.get(name) for column in columns)] for name in names],
  )


def _cell(value: float, low: float, high: float) -> str:
  return f"{value:.3f} ± {(high - low) / 2:.3f}"
