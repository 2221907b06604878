"""`python -m reft_jax.train`: from questions to a learning curve.

Without arguments it runs the embedded experiment, which needs no download.
Exit codes: 0 done, 2 bad input, 3 programs can no longer be run, 4 diverged,
75 stopped by SIGTERM with everything saved (the same command goes on), 130
interrupted. Several processes of one run (distributed=...) end with the same
one, unless one of them fails alone.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import logging
import operator
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import jax

from reft_jax import files as files_lib
from reft_jax.config import checks, cli, loading, schema
from reft_jax.data import encode
from reft_jax.errors import UserError
from reft_jax.evaluation import evaluation as evaluation_lib
from reft_jax.huggingface import hub
from reft_jax.models.hf import pretrained
from reft_jax.run import context, dry_run, reference_check, setup
from reft_jax.run import loop as loop_lib
from reft_jax.run import stages as stages_lib
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import layout, metrics, multihost, plots, xla_flags
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import grading
from reft_jax.tasks.answers import choices
from reft_jax.tasks.sandbox import executor as executor_lib


def _share(metric: str) -> Callable[[stages_lib.Result], float | None]:
  return lambda result: result.shares.get(metric)


# The closing table, a row a stage: what a column is called and holds.
_COLUMNS = {
  "test": operator.attrgetter("test_accuracy"),
  "wrong": _share("verdict/wrong"),
  "none": _share("verdict/none"),
  "partial": _share("reward/partial"),
  "unreached": _share(grading.UNREACHED),
  "vote": operator.attrgetter("majority_accuracy"),
  "dev": operator.attrgetter("dev_accuracy"),
  "best": operator.attrgetter("best_step"),
  "seconds": operator.attrgetter("seconds"),
}
_NOTES = {
  "test": "share of greedy answers that are right, beside wrong and none",
  "partial": "share of their reward that would be partial credit",
  "unreached": "share of right letters that come with another value",
  "best": "the step that is kept",
}
# Of these, the solutions of the first and the last are shown side by side.
_COMPARED = ("sft", "offline_st", "online_st", "reft")
_SOLUTIONS_SHOWN = 3
_FAILURES_SHOWN = 5
# What may differ when a run is taken up again: not what is learnt.
_MAY_CHANGE = (
  *("resume", "output", "logging.", "checkpoint.", "mesh.", "stages"),
  *("distributed", "xla_flags", "programs.workers"),
  # What reft_jax.evaluate alone reads.
  *("evaluation.split", "evaluation.samples", "evaluation.at"),
  *("evaluation.reward_model", "evaluation.resamples"),
)


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  return multihost.run(functools.partial(_main, argv))


def _main(argv: Sequence[str]) -> int:
  screen = console_lib.Console()
  try:
    command = cli.parse(argv)
    match command.action:
      case "help":
        cli.print_help("reft_jax.train")
      case "print-config":
        print(loading.to_yaml(command.config), end="")
      case "dry-run":
        checks.validate(command.config)
        dry_run.show(command.config, screen)
      case "run":
        checks.validate(command.config)
        xla_flags.use(command.config.xla_flags, screen.line)
        multihost.initialize(command.config.distributed)
        screen = console_lib.Console(quiet=not multihost.is_lead())
        train(command.config, screen)
  except (UserError, pretrained.UnsupportedModelError) as error:
    return multihost.refuse(error)
  except executor_lib.LostWorkerError as error:
    print(
      f"error: {error}; the same command goes on from the last save.",
      file=sys.stderr,
    )
    return 3
  except loop_lib.DivergedError as error:
    if multihost.is_lead():
      print(f"error: {error}", file=sys.stderr)
    return 4
  except loop_lib.PreemptedError as reason:
    screen.line(f"{reason}; the same command goes on from there.")
    return 75
  except KeyboardInterrupt:
    screen.line("interrupted; the same command goes on from the last save.")
    return 130
  return 0


def train(config: schema.Config, screen: console_lib.Console) -> None:
  """Runs all stages of a config and shows what came out."""
  logging.getLogger("absl").setLevel(logging.WARNING)
  setup.use_compilation_cache()
  with contextlib.ExitStack() as exits:
    with multihost.raise_on_all_processes():
      checks.check_files(config)
      grader = setup.open_grader(config, exits)
      tokenizer, network = setup.open_model(config)
      laid_out = setup.lay_out(config, network)
      mesh, sampling_mesh = mesh_lib.meshes(laid_out)
      network = dataclasses.replace(network, gather=laid_out.gather)
      setup.check_lengths(config, network)
      setup.check_lora(config, network)
      setup.check_warmup(config, tokenizer, network)
      splits = context.encoded(config, tokenizer)
      dry_run.check_rationales(config, splits["train"])
      failures = reference_check.check_reference_answers(
        grader, tokenizer, splits, config.reft
      )
      policies = setup.open_policies(config, mesh, network.config.vocab_size)
    inputs = {
      "tokenizer": tokenizer.fingerprint,
      "problems": encode.fingerprint(splits),
      **weights(config),
    }
    settings = {
      f"setting {key}": repr(value)
      for key, _, value in loading.settings(config)
    }
    multihost.check_equal_on_all(settings | inputs | {"layout": repr(laid_out)})
    directory = schema.run_directory(config)
    with multihost.raise_on_all_processes():
      if multihost.is_lead():
        claim(directory, config, inputs)
    recorder = exits.enter_context(
      contextlib.closing(
        metrics.Recorder(directory, tensorboard=config.logging.tensorboard)
        if multihost.is_lead()
        else metrics.Silent()
      )
    )
    run = context.Run(
      config=config,
      directory=directory,
      mesh=mesh,
      sampling_mesh=sampling_mesh,
      networks=network,
      tokenizer=tokenizer,
      **{name: split.examples for name, split in splits.items()},
      grader=grader,
      recorder=recorder,
      console=screen,
    )
    introduce(run, splits, laid_out)
    if multihost.is_lead():
      list_failures(run, failures)
    exits.enter_context(loop_lib.stopping_on_sigterm())
    exits.enter_context(jax.set_mesh(mesh))
    results = stages_lib.Pipeline(run)(policies)
    if multihost.is_lead():
      report(run, results, splits)


def weights(config: schema.Config) -> dict[str, str]:
  """Fingerprints of the models that a run starts from."""
  return {
    f"weights in {name}": evaluation_lib.fingerprint(hub.folder(path, name))
    for name, path in (
      ("model.path", config.model.path),
      ("model.warmup", config.model.warmup),
    )
    if path
  }


def introduce(
  run: context.Run,
  splits: Mapping[str, encode.Encoded],
  laid_out: layout.Layout,
) -> None:
  """Says what is about to be run, on what and with what."""
  config, line = run.config, run.console.line
  line(f"{config.name}, seed {config.seed}: {run.directory}", style="bold")
  line(dry_run.describe_problems(splits))
  line(dry_run.describe_devices(laid_out))
  for filling in dry_run.describe_filling(config, run.mesh, run.sampling_mesh):
    line(filling)
  executor = run.grader.executor
  if executor is not None:
    line(f"programs: run by {', then '.join(executor.tiers)}")
    for note in executor.notes:
      line(note)


def list_failures(
  run: context.Run, failures: Sequence[reference_check.Failure]
) -> None:
  """Says how many known answers earn 1, and lists those that do not."""
  total = sum(map(len, (run.train, run.dev, run.test)))
  text = f"known answers: {total - len(failures)} of {total} earn 1"
  file = run.directory / "gold_failures.jsonl"
  file.unlink(missing_ok=True)
  if failures:
    rows = [json.dumps(failure.row()) + "\n" for failure in failures]
    file.write_text("".join(rows), encoding="utf-8")
    shown = "; ".join(map(reference_check.describe, failures[:_FAILURES_SHOWN]))
    text += f"; not: {shown} (all in {file})"
  run.console.line(text)


def claim(
  directory: pathlib.Path,
  config: schema.Config,
  inputs: Mapping[str, str],
) -> None:
  """Makes the run's folder, or takes up the run that lies there.

  `inputs` are fingerprints of what the settings only point to.

  Raises:
    UserError: if the folder holds a run with other settings or inputs, or
      cannot be written.
  """
  settled = directory / "config.yaml"
  if settled.exists() and config.resume == "never":
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    directory.rename(directory.with_name(f"{directory.name}.until-{now}"))
  if not settled.exists() and (directory / "stages").exists():
    raise UserError(
      f"{directory} holds stages of a run but not its config.yaml, so whose "
      "they are is not known; set output to another folder."
    )
  if settled.exists():
    changed = [
      change
      for change in loading.differences(loading.load([str(settled)]), config)
      if not change.startswith(_MAY_CHANGE)
    ]
    before = files_lib.read_json(directory / "inputs.json")
    changed += [
      f"other {name}"
      for name in inputs
      if name in before and inputs[name] != before[name]
    ]
    if changed:
      raise UserError(
        f"{directory} holds a run with other settings ({'; '.join(changed)}); "
        "set output to another folder, or resume=never to put that one aside."
      )
  try:
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(inputs, indent=2) + "\n"
    files_lib.replace(directory / "inputs.json", text)
    # Last: where it lies, all that says whose the run is lies there.
    files_lib.replace(settled, loading.to_yaml(config))
  except OSError as error:
    raise UserError(
      f"the run's folder {directory} cannot be written ({error.strerror}); "
      "set output to another place."
    ) from error
  environment = json.dumps(describe_environment(), indent=2)
  (directory / "environment.json").write_text(environment + "\n")


def describe_environment() -> dict[str, object]:
  """Versions, hardware and command line, for who reads the run later."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
  return {
    "command": sys.argv,
    "started": datetime.datetime.now(datetime.UTC).isoformat(),
    "python": platform.python_version(),
    "platform": platform.platform(),
    "cpus": os.cpu_count(),
    "devices": [str(device) for device in jax.devices()],
    "packages": {name: metadata.version(name) for name in packages},
  }


def report(
  run: context.Run,
  results: Mapping[str, stages_lib.Result],
  splits: Mapping[str, encode.Encoded],
) -> None:
  """The closing table, the picture, solutions side by side, summary.json."""
  screen, directory = run.console, run.directory
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
  files_lib.replace(directory / "summary.json", text)
  rows = chosen_rows(metrics.read(directory), results)
  plots.learning_curves(rows, directory / "learning_curves.png")
  compared = [name for name in _COMPARED if name in results]
  show_solutions(run, compared[:1] + compared[1:][-1:])
  votes = run.config.evaluation.majority_samples
  columns = {"stage": list(results)} | {
    title: [read(result) for result in results.values()]
    for title, read in _COLUMNS.items()
  }
  # What no stage has, such as letters where there is no choice, has no column.
  columns = {
    title: column
    for title, column in columns.items()
    if any(cell is not None for cell in column)
  }
  screen.table(
    f"Accuracy on {len(run.test)} test problems"
    + (f" (vote: of {votes} samples)" if votes else ""),
    list(columns),
    list(zip(*columns.values(), strict=True)),
  )
  for title in columns:
    if title in _NOTES:
      screen.line(f"{title}: {_NOTES[title]}")
  if "reward_model" in results:
    screen.line(
      "dev of reward_model: of the solution it prefers among"
      f" {run.config.collect.per_question} draws"
    )
  if "unreached" in columns:
    letter, share = choices.constant_letter([e.problem for e in run.test])
    screen.line(f"always answering {letter!r} would be right on {share:.1%}")
  for what, where in (
    ("summary", "summary.json"),
    ("learning curves", "learning_curves.png"),
    ("metrics", metrics.FILE),
    ("completions", "samples"),
    ("models (Hugging Face folders)", "models"),
  ):
    if (directory / where).exists():
      screen.line(f"{what}: {directory / where}")


def chosen_rows(rows, results: Mapping[str, stages_lib.Result]):
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


def show_solutions(run: context.Run, stages: Sequence[str]) -> None:
  """What stages sampled for the same test problems, side by side."""
  files = {
    name: run.directory / "samples" / f"test-{name}-sampled.jsonl"
    for name in stages
  }
  if not files or not all(file.exists() for file in files.values()):
    return
  rows = {
    name: [json.loads(line) for line in file.read_text().splitlines()]
    for name, file in files.items()
  }
  for group in list(zip(*rows.values(), strict=True))[:_SOLUTIONS_SHOWN]:
    screen_rows = {
      name: [
        console_lib.Solution(row["completion"], row["verdict"], row["value"])
      ]
      for name, row in zip(rows, group, strict=True)
    }
    run.console.side_by_side(
      group[0]["question"], group[0]["answer"], screen_rows
    )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
