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

from reft_jax import batching, devices, hub, processes, terminal, xla_flags
from reft_jax import config as config_lib
from reft_jax import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.methods import building, evaluating, finding, loop, planning
from reft_jax.methods import run as run_lib
from reft_jax.models import pretrained
from reft_jax.studies import evaluations
from reft_jax.tasks import grading
from reft_jax.tasks.sandbox import executor as executor_lib

PROGRAM = "reft_jax.evaluate MODEL..."


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  return processes.run(functools.partial(_main, argv))


def _main(argv: Sequence[str]) -> int:
  screen = terminal.Terminal()
  try:
    paths, arguments = divide(argv)
    if {"-h", "--help"} & set(arguments):
      print(__doc__)
      config_lib.print_help(PROGRAM, "they are those of the model's run")
      return 0
    models = [model for path in paths for model in finding.find(path)]
    commands = [read(model, arguments) for model in models]
    if not models:
      raise UserError(
        f"which model? Usage: python -m {PROGRAM} {config_lib.USAGE}"
      )
    if commands[0].action == "print-config":
      print(
        "---\n".join(config_lib.to_yaml(c.config) for c in commands), end=""
      )
      return 0
    dry = commands[0].action == "dry-run"
    if not dry:
      xla_flags.use(commands[0].config.xla_flags, screen.line)
      processes.join(commands[0].config.distributed)
      screen = terminal.Terminal(quiet=not processes.first())
    evaluate(models, [command.config for command in commands], screen, dry=dry)
  except (UserError, pretrained.UnsupportedModelError) as error:
    return processes.refuse(error)
  except loop.PreemptedError as reason:
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


def read(model: finding.Model, arguments: Sequence[str]) -> config_lib.Command:
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
  command = config_lib.parse([*layers, *arguments])
  config = command.config
  path = config.model.path if model.checkpoint else str(model.folder)
  config = evaluations.settings_of(config, path)
  return dataclasses.replace(command, config=config)


def check(configs: Sequence[config_lib.Config]) -> None:
  """Raises UserError for settings that make no sense here."""
  for config in configs:
    config_lib.validate(config)
    config_lib.check_files(_without_training_set(config))
    evaluations.check(config.evaluation)


def places(
  models: Sequence[finding.Model], configs: Sequence[config_lib.Config]
) -> list[pathlib.Path]:
  """Where each model's answers are kept.

  Raises:
    UserError: two models have the same place.
  """
  found: dict[pathlib.Path, finding.Model] = {}
  for model, config in zip(models, configs, strict=True):
    split = config.evaluation.split
    folder = evaluations.folder(model.run, model.name, split)
    if config.output:
      name = folder.name if len(models) > 1 else ""
      folder = config_lib.expanded(config.output) / name
    if folder in found:
      raise UserError(
        f"{found[folder].folder} and {model.folder} would both be kept in "
        f"{folder}; evaluate one at a time, each with its own output."
      )
    found[folder] = model
  return list(found)


def evaluate(
  models: Sequence[finding.Model],
  configs: Sequence[config_lib.Config],
  screen: terminal.Terminal,
  *,
  dry: bool = False,
) -> None:
  """Evaluates models, each with its settings, and compares them in a table.

  All are checked before the first is asked anything; with `dry` that is all,
  and nothing is downloaded for it.
  """
  with processes.together():
    check(configs)
    directories = places(models, configs)
  if dry and (absent := list(missing(models, configs))):
    for name in dict.fromkeys(absent):
      screen.line(f"missing: {name}, to be downloaded from {hub.page(name)}")
    screen.line("dry run: what is missing was not checked")
    return
  logging.getLogger("absl").setLevel(logging.WARNING)
  building.use_compilation_cache()
  with contextlib.ExitStack() as exits:
    with processes.together():
      graders = open_graders(configs, exits)
      prepared = [
        prepare(*each, screen)
        for each in zip(models, configs, directories, graders, strict=True)
      ]
      if not dry and processes.first():
        for directory in directories:
          claim(directory)
    check_alike(prepared)
    exits.enter_context(loop.stopping_on_sigterm())
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


def check_alike(evaluations: Sequence[evaluating.Evaluation]) -> None:
  """All processes must evaluate the same.

  Raises:
    UserError: models, settings or problems differ.
  """
  names = [str(each.model.folder) for each in evaluations]
  processes.check_alike({"models": repr(names)})
  for name, each in zip(names, evaluations, strict=True):
    split = each.run.config.evaluation.split
    processes.check_alike(
      {
        f"settings of {name}": config_lib.to_yaml(each.run.config),
        f"layout of {name}": repr(each.run.mesh.shape),
        f"tokenizer of {name}": each.run.tokenizer.fingerprint,
        f"problems of {name}": batching.fingerprint({split: each.problems}),
        f"weights of {name}": evaluating.fingerprint(each.model.folder),
      }
    )


def missing(
  models: Sequence[finding.Model], configs: Sequence[config_lib.Config]
) -> Iterator[str]:
  """The names of models on the hub that are not here yet."""
  for model, config in zip(models, configs, strict=True):
    own = None if model.checkpoint else str(model.folder)
    for name in (own, config.model.path, config.evaluation.reward_model):
      if name and hub.is_id(name) and hub.find(name) is None:
        yield name


def open_graders(
  configs: Sequence[config_lib.Config], exits: contextlib.ExitStack
) -> list[grading.Grader]:
  """A grader for each model; models that are graded alike share one."""
  opened: dict[Any, grading.Grader] = {}
  keys = [(c.data.reasoning, c.data.answers, c.programs) for c in configs]
  for key, config in zip(keys, configs, strict=True):
    if key not in opened:
      opened[key] = building.open_grader(config, exits)
  return [opened[key] for key in keys]


def prepare(
  model: finding.Model,
  config: config_lib.Config,
  directory: pathlib.Path,
  grader: grading.Grader,
  screen: terminal.Terminal,
) -> evaluating.Evaluation:
  """Everything that an evaluation needs but the weights.

  Raises:
    UserError: something of it is missing or does not fit.
  """
  if not model.checkpoint:
    model = dataclasses.replace(model, folder=hub.folder(str(model.folder)))
  tokenizer, network = building.open_model(config)
  building.check_lengths(config, network)
  laid_out = building.lay_out(config, network)
  mesh, sampling_mesh = devices.meshes(laid_out)
  network = dataclasses.replace(network, gather=laid_out.gather)
  problems = read_problems(config, tokenizer)
  split = config.evaluation.split
  if not problems.examples:
    setting = "data.dev_size" if split == "dev" else f"data.{split}"
    raise UserError(
      f"evaluation.split={split}: {model.name} has no such problems; set "
      f"{setting}, or another split."
    )
  run = run_lib.Run(
    config=config,
    directory=directory,
    mesh=mesh,
    sampling_mesh=sampling_mesh,
    networks=network,
    tokenizer=tokenizer,
    **{"train": (), "dev": (), "test": (), split: problems.examples},
    grader=grader,
    recorder=None,  # Nothing is logged step by step.
    terminal=screen,
  )
  return evaluating.Evaluation(run, model, problems)


def read_problems(
  config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> batching.Encoded:
  """The problems that are asked, as ids; raises as `run_lib.encoded`."""
  splits = run_lib.encoded(_without_training_set(config), tokenizer)
  asked = splits[config.evaluation.split]
  # Nor does it matter which annotations could be learnt.
  return dataclasses.replace(asked, long_targets=0, unusable_targets=())


def _without_training_set(config: config_lib.Config) -> config_lib.Config:
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
  evaluation: evaluating.Evaluation, screen: terminal.Terminal
) -> None:
  """Says which model is asked which problems."""
  run = evaluation.run
  screen.line(f"{evaluation.model.name}: {run.directory}", style="bold")
  splits = {run.config.evaluation.split: evaluation.problems}
  screen.line(planning.describe_problems(splits))


def label(model: finding.Model, models: Sequence[finding.Model]) -> str:
  """A model's name, with its folder's where several have that name."""
  if [each.name for each in models].count(model.name) == 1:
    return model.name
  return f"{(model.run or model.folder.parent).name}/{model.name}"


def show(
  summaries: Mapping[str, Mapping[str, Any]], screen: terminal.Terminal
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
