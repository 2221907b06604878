"""`python -m reft_jax.export SOURCE OUTPUT`: a model for other programs.

SOURCE is a run's `models/STAGE`; a checkpoint (`stages/STAGE/best`,
`stages/STAGE/checkpoints` or one of the numbered folders in them); a run's
folder, which stands for its last language model; any Hugging Face folder; or a
model's name on the hub. OUTPUT is a new folder. It gets what transformers, vLLM
and lm-eval read: config, generation config, weights, tokenizer; the critic's
head if the checkpoint has one; and a README.md, the model's card on the hub.

Exit codes: 0 done, 2 bad input.
"""

import sys
from collections.abc import Sequence

from reft_jax import files
from reft_jax.config import cli
from reft_jax.errors import UserError
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.models.hf import write as writer
from reft_jax.run import export_model, model_paths, setup
from reft_jax.runtime import console as console_lib

_DTYPE = cli.Value(
  "TYPE", f"one of {', '.join(writer.DTYPES)}", choices=writer.DTYPES
)
_SIZE = cli.Value("SIZE", "a number above 0", cli.positive(float))
PROGRAM = cli.Program(
  "reft_jax.export",
  about=__doc__,
  paths=("SOURCE", "OUTPUT"),
  options=(
    cli.Option("--dtype", "type of the weights (float32)", _DTYPE, "float32"),
    cli.Option(
      "--max-shard-gb",
      "larger models are written in several files (5)",
      _SIZE,
      5.0,
    ),
    cli.Option(
      "--force",
      "replace the model in a folder that is not empty; other files stay",
    ),
  ),
  overrides=False,
)


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  try:
    command = cli.parse(argv, PROGRAM)
    if command.action == "help":
      cli.print_help(PROGRAM)
    else:
      export(command, console_lib.Console())
  except (UserError, UnsupportedModelError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    trouble = f"cannot be read or written ({error.strerror})"
    print(f"error: {error.filename or 'OUTPUT'} {trouble}", file=sys.stderr)
    return 2
  return 0


def export(command: cli.Command, console: console_lib.Console) -> None:
  """Writes the model of SOURCE to OUTPUT."""
  source, output = command.paths[0], files.expand_user(command.paths[1])
  export_model.check_output(output, force=command.options["force"])
  model = model_paths.find(source)[-1]
  console.line(f"{model.name}: {model.folder}", style="bold")
  setup.configure_libraries()
  dtype = command.options["dtype"]
  most = int(command.options["max_shard_gb"] * 10**9)
  size = export_model.export(model, output, dtype=dtype, max_shard_bytes=most)
  console.line(f"exported: {output}, {size / 10**9:.2f} GB in {dtype}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
