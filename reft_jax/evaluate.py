"""`python -m reft_jax.evaluate MODEL...`: the accuracy of models, compared.

A MODEL is a run's folder, which stands for all models in it; one of its
`models/STAGE`; a checkpoint (`stages/STAGE/best`, `stages/STAGE/checkpoints` or
one of the numbered folders in them); any Hugging Face folder; or a model's name
on the hub, owner/name or owner/name@revision. A model in a run has the settings
of that run, with --config files and key=value over them. Other models need
--config.

Each model answers the problems of evaluation.split, once greedily and
evaluation.samples times by sampling. A vote, and a reward model if there is
one, choose among evaluation.at of the samples. Samples are kept in
RUN/evaluations/NAME-SPLIT or evaluations/NAME-SPLIT: re-running the command
resumes, and other settings of answers, votes or rewards need no sampling. An
argument with a slash before its first equals sign is a path, not a setting.

Exit codes: 0 done, 2 bad input, 3 programs can no longer be run, 75 stopped by
SIGTERM with all samples kept, 130 interrupted.
"""

import functools
import sys
from collections.abc import Sequence

from reft_jax.config import cli, loading
from reft_jax.errors import UserError
from reft_jax.evaluation import compare, prepare
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.run import model_paths, setup
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import multihost, preemption, xla_flags
from reft_jax.tasks.sandbox import executor as executor_lib

PROGRAM = cli.Program(
  "reft_jax.evaluate",
  about=__doc__,
  paths=("MODEL...",),
  default="those of the model's run",
)


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  return multihost.run(functools.partial(_main, argv))


def _main(argv: Sequence[str]) -> int:
  console = console_lib.Console()
  try:
    command = cli.parse(argv, PROGRAM)
    if command.action == "help":
      cli.print_help(PROGRAM)
      return 0
    models = [each for path in command.paths for each in model_paths.find(path)]
    configs = [prepare.read_settings(model, command) for model in models]
    if command.action == "print-config":
      print("---\n".join(map(loading.to_yaml, configs)), end="")
      return 0
    dry = command.action == "dry-run"
    if not dry:
      xla_flags.use(configs[0].xla_flags, console.line)
      multihost.initialize(configs[0].distributed)
      console = console_lib.Console(quiet=not multihost.is_lead())
    setup.configure_libraries()
    compare.compare(models, configs, console, dry=dry)
  except (UserError, UnsupportedModelError) as error:
    return multihost.refuse(error)
  except preemption.PreemptedError as reason:
    console.line(f"{reason}; re-running the command resumes.")
    return 75
  except executor_lib.LostWorkerError as error:
    print(f"error: {error}; re-running the command resumes.", file=sys.stderr)
    return 3
  except KeyboardInterrupt:
    console.line("interrupted; re-running the command resumes.")
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
