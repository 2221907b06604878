"""What a run tells a person: at its start, and when its stages are done."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reft_jax import files
from reft_jax.config import stages as table
from reft_jax.data import encode
from reft_jax.run import context, dry_run, preflight, setup
from reft_jax.run.stages import Result
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import metrics, multihost, plots
from reft_jax.sampling import grading
from reft_jax.tasks.answers import choices

_SOLUTIONS_SHOWN = 3
_FAILURES_SHOWN = 5

# The closing table, a row a stage: what a column is called, and which field of
# the stage's result, or which of its shares, it holds.
_COLUMNS = {
  "test": "test_accuracy",
  "wrong": "verdict/wrong",
  "none": "verdict/none",
  "partial": "reward/partial",
  "unreached": grading.UNREACHED,
  "vote": "majority_accuracy",
  "dev": "dev_accuracy",
  "best": "best_step",
  "seconds": "seconds",
}
_NOTES = {
  "test": "share of greedy answers that are right, beside wrong and none",
  "partial": "share of their reward that would be partial credit",
  "unreached": "share of right letters that come with another value",
  "best": "the step that is kept",
}


def introduce(run: context.Run, ready: setup.Prepared) -> None:
  """Says what is about to be run, on what and with what."""
  config, line, engine = run.config, run.console.line, run.engine
  line(f"{config.name}, seed {config.seed}: {run.directory}", style="bold")
  line(dry_run.describe_problems(ready.splits))
  line(dry_run.describe_devices(ready.layout))
  meshes = engine.mesh, engine.sampling_mesh
  for padding in dry_run.describe_padding(config, *meshes):
    line(padding)
  executor = engine.grader.executor
  if executor is not None:
    line(f"programs: run by {', then '.join(executor.tiers)}")
    for note in executor.notes:
      line(note)
  if multihost.is_lead():
    _list_failures(run, ready.failures)


def _list_failures(
  run: context.Run, failures: Sequence[preflight.Failure]
) -> None:
  """Says how many reference answers earn 1, and lists those that do not."""
  total = sum(map(len, (run.train, run.dev, run.test)))
  text = f"reference answers: {total - len(failures)} of {total} earn 1"
  file = run.directory / "reference_failures.jsonl"
  file.unlink(missing_ok=True)
  if failures:
    rows = [json.dumps(failure.row()) + "\n" for failure in failures]
    file.write_text("".join(rows), encoding="utf-8")
    shown = "; ".join(map(str, failures[:_FAILURES_SHOWN]))
    text += f"; not: {shown} (all in {file})"
  run.console.line(text)


def conclude(
  run: context.Run,
  results: Mapping[str, Result],
  splits: Mapping[str, encode.Encoded],
) -> None:
  """Writes summary.json and the picture; shows solutions and the table."""
  _write_summary(run, results, splits)
  rows = _chosen_rows(metrics.read(run.directory), results)
  plots.learning_curves(rows, run.directory / "learning_curves.png")
  # Solutions of the first and the last whose model is a result, and not where
  # others start from, are shown side by side.
  compared = [
    name
    for name in results
    if table.TABLE[name].keeps == "best" and not table.TABLE[name].classifier
  ]
  _show_solutions(run, compared[:1] + compared[1:][-1:])
  _show_table(run, results)
  outputs = {
    "summary": "summary.json",
    "learning curves": "learning_curves.png",
    "metrics": metrics.FILE,
    "completions": "samples",
    "models (Hugging Face folders)": "models",
  }
  for what, where in outputs.items():
    if (run.directory / where).exists():
      run.console.line(f"{what}: {run.directory / where}")


def _write_summary(
  run: context.Run,
  results: Mapping[str, Result],
  splits: Mapping[str, encode.Encoded],
) -> None:
  summary = {
    "name": run.config.name,
    "seed": run.config.seed,
    "problems": {
      name: {
        "used": len(split.examples),
        "left_out": split.left_out,
        "long_prompts": split.long_prompts,
        "long_annotations": split.long_targets,
        "unusable_annotations": len(split.unusable_targets),
      }
      for name, split in splits.items()
    },
    "stages": {name: vars(result) for name, result in results.items()},
  }
  text = json.dumps(summary, indent=2) + "\n"
  files.replace(run.directory / "summary.json", text)


def _show_table(run: context.Run, results: Mapping[str, Result]) -> None:
  console = run.console
  votes = run.config.evaluation.majority_samples
  columns: dict[str, list[Any]] = {"stage": list(results)}
  known = [result.shares | vars(result) for result in results.values()]
  for title, name in _COLUMNS.items():
    column = [values.get(name) for values in known]
    # What no stage has, such as letters where there is no choice, is left out.
    if any(cell is not None for cell in column):
      columns[title] = column
  console.table(
    f"Accuracy on {len(run.test)} test problems"
    + (f" (vote: of {votes} samples)" if votes else ""),
    list(columns),
    list(zip(*columns.values(), strict=True)),
  )
  for title in columns:
    if title in _NOTES:
      console.line(f"{title}: {_NOTES[title]}")
  for name in results:
    if table.TABLE[name].classifier:
      console.line(
        f"dev of {name}: of the solution it prefers among"
        f" {run.config.collect.per_question} samples"
      )
  if "unreached" in columns:
    letter, share = choices.constant_letter([e.problem for e in run.test])
    console.line(f"always answering {letter!r} would be right on {share:.1%}")


def _chosen_rows(
  rows: Sequence[Mapping[str, Any]], results: Mapping[str, Result]
) -> list[dict[str, Any]]:
  """Metrics with a sweep's chosen learning rate under its stage's own name."""
  chosen = {
    f"{name}-lr{result.learning_rate:g}": name
    for name, result in results.items()
  }
  return [
    {**row, "stage": chosen.get(row["stage"], row["stage"])}
    for row in rows
    if row["stage"] in results or row["stage"] in chosen
  ]


def _show_solutions(run: context.Run, stages: Sequence[str]) -> None:
  """What stages sampled for the same test problems, side by side."""
  folder = run.directory / "samples"
  paths = [folder / f"test-{name}-sampled.jsonl" for name in stages]
  if not all(path.exists() for path in paths):
    return
  lines = [path.read_text().splitlines() for path in paths]
  for group in list(zip(*lines, strict=True))[:_SOLUTIONS_SHOWN]:
    rows = [json.loads(line) for line in group]
    solutions = {
      name: [
        console_lib.Solution(row["completion"], row["verdict"], row["value"])
      ]
      for name, row in zip(stages, rows, strict=True)
    }
    run.console.side_by_side(rows[0]["question"], rows[0]["answer"], solutions)
