"""`python -m reft_jax.evaluate MODEL...`: how good models are, and how surely.

A MODEL is a run's folder, which stands for all models in it, one of its
`models/STAGE`, a checkpoint (`stages/STAGE/best`, `stages/STAGE/checkpoints` or
one of the numbered folders in them), any Hugging Face folder, or a model's name
on the hub, owner/name or owner/name@revision. Settings are those of the run
that it lies in; --config files and key=value are laid over them. Of a model
elsewhere, --config must say how it is asked.

Each model answers the problems of evaluation.split, once greedily and
evaluation.samples times by sampling; a vote, and a reward model if there is
one, choose among evaluation.at of the samples. Samples are kept, in
RUN/evaluations/NAME-SPLIT or evaluations/NAME-SPLIT: the same command goes on
where it was stopped, and other settings of answers, votes or rewards need no
sampling. What has a slash before its first equals sign is a path, no setting.

Exit codes: 0 done, 2 bad input, 3 programs can no longer be run, 75 stopped by
SIGTERM with all samples kept, 130 interrupted.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from reft_jax import files
from reft_jax.config import checks, cli, loading, schema
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.evaluation import evaluation as evaluation_lib
from reft_jax.evaluation import settings
from reft_jax.huggingface import hub
from reft_jax.models.hf import pretrained
from reft_jax.run import context, dry_run, model_paths, setup
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost, xla_flags
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks.sandbox import executor as executor_lib

PROGRAM = "reft_jax.evaluate MODEL..."


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  return multihost.run(functools.partial(_main, argv))


def _main(argv: Sequence[str]) -> int:
  screen = console_lib.Console()
  try:
    paths, arguments = divide(argv)
    if {"-h", "--help"} & set(arguments):
      print(__doc__)
      cli.print_help(PROGRAM, "they are those of the model's run")
      return 0
    models = [model for path in paths for model in model_paths.find(path)]
    commands = [read(model, arguments) for model in models]
    if not models:
      raise UserError(f"which model? Usage: python -m {PROGRAM} {cli.USAGE}")
    if commands[0].action == "print-config":
      print("---\n".join(loading.to_yaml(c.config) for c in commands), end="")
      return 0
    dry = commands[0].action == "dry-run"
    if not dry:
      xla_flags.use(commands[0].config.xla_flags, screen.line)
      multihost.initialize(commands[0].config.distributed)
      screen = console_lib.Console(quiet=not multihost.is_lead())
    evaluate(models, [command.config for command in commands], screen, dry=dry)
  except (UserError, pretrained.UnsupportedModelError) as error:
    return multihost.refuse(error)
  except loop_lib.PreemptedError as reason:
    screen.line(f"{reason}; the same command goes on.")
    return 75
  except executor_lib.LostWorkerError as error:
    print(f"error: {error}; the same command goes on.", file=sys.stderr)
    return 3
  except KeyboardInterrupt:
    screen.line("interrupted; the same command goes on.")
    return 130
  return 0


def divide(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Models' paths, and the arguments that settings are made of."""
  paths, arguments = [], []
  for before, argument in zip(("", *argv), argv, strict=False):
    key, equals, _ = argument.partition("=")
    path = before != "--config" and (
      not argument.startswith("-") and (not equals or "/" in key)
    )
    (paths if path else arguments).append(argument)
  return paths, arguments


def read(model: model_paths.Model, arguments: Sequence[str]) -> cli.Command:
  """The command line's settings for one model.

  Raises:
    UserError: as `config.parse`; or nothing says how the model is asked.
  """
  if model.run:
    # Its output is where it was trained, not where it is evaluated.
    layers = [f"--config={model.run / 'config.yaml'}", "output=null"]
  elif any(argument.startswith("--config") for argument in arguments):
    layers = []
  else:
    raise UserError(
      f"{model.folder} lies in no run, whose settings would say how it is "
      "asked; name an experiment, such as --config gsm8k_nl_codellama_7b."
    )
  command = cli.parse([*layers, *arguments])
  config = command.config
  path = config.model.path if model.checkpoint else str(model.folder)
  config = settings.settings_of(config, path)
  return dataclasses.replace(command, config=config)


def check(configs: Sequence[schema.Config]) -> None:
  """Raises UserError for settings that make no sense here."""
  for config in configs:
    checks.validate(config)
    checks.check_files(_without_training_set(config))
    settings.check(config.evaluation)


def places(
  models: Sequence[model_paths.Model], configs: Sequence[schema.Config]
) -> list[pathlib.Path]:
  """Where each model's answers are kept.

  Raises:
    UserError: two models have the same place.
  """
  found: dict[pathlib.Path, model_paths.Model] = {}
  for model, config in zip(models, configs, strict=True):
    split = config.evaluation.split
    folder = settings.folder(model.run, model.name, split)
    if config.output:
      name = folder.name if len(models) > 1 else ""
      folder = files.expand_user(config.output) / name
    if folder in found:
      raise UserError(
        f"{found[folder].folder} and {model.folder} would both be kept in "
        f"{folder}; evaluate one at a time, each with its own output."
      )
    found[folder] = model
  return list(found)


def evaluate(
  models: Sequence[model_paths.Model],
  configs: Sequence[schema.Config],
  screen: console_lib.Console,
  *,
  dry: bool = False,
) -> None:
  """Evaluates models, each with its settings, and compares them in a table.

  All are checked before the first is asked anything; with `dry` that is all,
  and nothing is downloaded for it.
  """
  with multihost.raise_on_all_processes():
    check(configs)
    directories = places(models, configs)
  if dry and (absent := list(missing(models, configs))):
    for name in dict.fromkeys(absent):
      screen.line(f"missing: {name}, to be downloaded from {hub.page(name)}")
    screen.line("dry run: what is missing was not checked")
    return
  logging.getLogger("absl").setLevel(logging.WARNING)
  setup.use_compilation_cache()
  with contextlib.ExitStack() as exits:
    with multihost.raise_on_all_processes():
      graders = open_graders(configs, exits)
      prepared = [
        prepare(*each, screen)
        for each in zip(models, configs, directories, graders, strict=True)
      ]
      if not dry and multihost.is_lead():
        for directory in directories:
          claim(directory)
    check_alike(prepared)
    exits.enter_context(loop_lib.stopping_on_sigterm())
    summaries = {}
    for evaluation in prepared:
      introduce(evaluation, screen)
      if dry:
        continue
      with jax.set_mesh(evaluation.run.mesh):
        evaluation.draw()
        summary = evaluation.write(evaluation.answers())
      summaries[label(evaluation.model, models)] = summary
  if dry:
    screen.line("dry run: all is well, and nothing was sampled")
    return
  show(summaries, screen)
  for directory in directories:
    screen.line(f"every completion: {directory / 'report.html'}")


def check_alike(evaluations: Sequence[evaluation_lib.Evaluation]) -> None:
  """All processes must evaluate the same.

  Raises:
    UserError: models, settings or problems differ.
  """
  names = [str(each.model.folder) for each in evaluations]
  multihost.check_equal_on_all({"models": repr(names)})
  for name, each in zip(names, evaluations, strict=True):
    split = each.run.config.evaluation.split
    multihost.check_equal_on_all(
      {
        f"settings of {name}": loading.to_yaml(each.run.config),
        f"layout of {name}": repr(each.run.mesh.shape),
        f"tokenizer of {name}": each.run.tokenizer.fingerprint,
        f"problems of {name}": encode.fingerprint({split: each.problems}),
        f"weights of {name}": evaluation_lib.fingerprint(each.model.folder),
      }
    )


def missing(
  models: Sequence[model_paths.Model], configs: Sequence[schema.Config]
) -> Iterator[str]:
  """The names of models on the hub that are not here yet."""
  for model, config in zip(models, configs, strict=True):
    own = None if model.checkpoint else str(model.folder)
    for name in (own, config.model.path, config.evaluation.reward_model):
      if name and hub.is_id(name) and hub.find(name) is None:
        yield name


def open_graders(
  configs: Sequence[schema.Config], exits: contextlib.ExitStack
) -> list[grader_lib.Grader]:
  """A grader for each model; models that are graded alike share one."""
  opened: dict[Any, grader_lib.Grader] = {}
  keys = [(c.data.reasoning, c.data.answers, c.programs) for c in configs]
  for key, config in zip(keys, configs, strict=True):
    if key not in opened:
      opened[key] = setup.open_grader(config, exits)
  return [opened[key] for key in keys]


def prepare(
  model: model_paths.Model,
  config: schema.Config,
  directory: pathlib.Path,
  grader: grader_lib.Grader,
  screen: console_lib.Console,
) -> evaluation_lib.Evaluation:
  """Everything that an evaluation needs but the weights.

  Raises:
    UserError: something of it is missing or does not fit.
  """
  if not model.checkpoint:
    model = dataclasses.replace(model, folder=hub.folder(str(model.folder)))
  tokenizer, network = setup.open_model(config)
  setup.check_lengths(config, network)
  laid_out = setup.lay_out(config, network)
  mesh, sampling_mesh = mesh_lib.meshes(laid_out)
  network = dataclasses.replace(network, gather=laid_out.gather)
  problems = read_problems(config, tokenizer)
  split = config.evaluation.split
  if not problems.examples:
    setting = "data.dev_size" if split == "dev" else f"data.{split}"
    raise UserError(
      f"evaluation.split={split}: {model.name} has no such problems; set "
      f"{setting}, or another split."
    )
  run = context.Run(
    config=config,
    directory=directory,
    mesh=mesh,
    sampling_mesh=sampling_mesh,
    networks=network,
    tokenizer=tokenizer,
    **{"train": (), "dev": (), "test": (), split: problems.examples},
    grader=grader,
    recorder=None,  # Nothing is logged step by step.
    console=screen,
  )
  return evaluation_lib.Evaluation(run, model, problems)


def read_problems(
  config: schema.Config, tokenizer: tokenizer_lib.Tokenizer
) -> encode.Encoded:
  """The problems that are asked, as ids; raises as `run_lib.encoded`."""
  splits = context.encoded(_without_training_set(config), tokenizer)
  asked = splits[config.evaluation.split]
  # Nor does it matter which annotations could be learnt.
  return dataclasses.replace(asked, long_targets=0, unusable_targets=())


def _without_training_set(config: schema.Config) -> schema.Config:
  """Settings that read a test set of its own, if it is asked, and no other.

  What a model was trained on need not be here to test it; the test set stands
  in its place.
  """
  data = config.data
  if config.evaluation.split != "test" or data.test is None:
    return config
  data = dataclasses.replace(
    data, train=data.test, train_limit=data.test_limit, dev_size=0
  )
  return dataclasses.replace(config, data=data)


def claim(directory: pathlib.Path) -> None:
  """Makes the folder of an evaluation.

  Raises:
    UserError: it cannot be written.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=directory).close()
  except OSError as error:
    raise UserError(
      f"the evaluation's folder {directory} cannot be written "
      f"({error.strerror}); set output to another place."
    ) from error


def introduce(
  evaluation: evaluation_lib.Evaluation, screen: console_lib.Console
) -> None:
  """Says which model is asked which problems."""
  run = evaluation.run
  screen.line(f"{evaluation.model.name}: {run.directory}", style="bold")
  splits = {run.config.evaluation.split: evaluation.problems}
  screen.line(dry_run.describe_problems(splits))


def label(model: model_paths.Model, models: Sequence[model_paths.Model]) -> str:
  """A model's name, with its folder's where several have that name."""
  if [each.name for each in models].count(model.name) == 1:
    return model.name
  return f"{(model.run or model.folder.parent).name}/{model.name}"


def show(
  summaries: Mapping[str, Mapping[str, Any]], screen: console_lib.Console
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
  screen.table(
    "Accuracy, and half the width of its 95 % interval over questions",
    ["", *summaries],
    [[name, *(column.get(name) for column in columns)] for name in names],
  )


def _cell(value: float, low: float, high: float) -> str:
  return f"{value:.3f} ± {(high - low) / 2:.3f}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
