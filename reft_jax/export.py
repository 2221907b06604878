"""`python -m reft_jax.export SOURCE OUTPUT`: a model as others open it.

SOURCE is a run's `models/STAGE`, a checkpoint (`stages/STAGE/best`,
`stages/STAGE/checkpoints` or one of the numbered folders in them), a run's
folder, which stands for its last language model, any Hugging Face folder, or a
model's name on the hub. OUTPUT gets what transformers, vLLM and lm-eval read:
config, generation config, weights, tokenizer; the critic's head where the
checkpoint has one; and a README.md, the model's card on the hub.

Exit codes: 0 done, 2 bad input.
"""

import argparse
import dataclasses
import logging
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NoReturn

from reft_jax import files
from reft_jax.config import loading
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import card, folders, hub
from reft_jax.models import config as configs
from reft_jax.models.hf import pretrained
from reft_jax.run import model_paths, setup
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model in memory, with all that is written of it.

  Attributes:
    shape: the architecture.
    tokenizer: the model's.
    model: a policy or a classifier, on the devices.
    classifier: whether it is one.
    value: its value function, if it has one.
  """

  shape: configs.ModelConfig
  tokenizer: tokenizer_lib.Tokenizer
  model: Any
  classifier: bool
  value: Any = None


def main(argv: Sequence[str]) -> int:
  """Runs the command line `argv`; returns the exit code."""
  screen = console_lib.Console()
  try:
    export(**vars(_parser().parse_args(argv)), screen=screen)
  except (UserError, pretrained.UnsupportedModelError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    where = error.filename or "OUTPUT"
    print(
      f"error: {where} cannot be read or written ({error.strerror})",
      file=sys.stderr,
    )
    return 2
  return 0


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog="python -m reft_jax.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("source", metavar="SOURCE", help="the model")
  parser.add_argument(
    "output", type=files.expand_user, metavar="OUTPUT", help="a new folder"
  )
  parser.add_argument(
    "--dtype",
    choices=list(pretrained.DTYPES),
    default="float32",
    help="of the weights (float32)",
  )
  parser.add_argument(
    "--max-shard-gb",
    type=float,
    default=5.0,
    help="a larger model is written in several files (5)",
  )
  parser.add_argument(
    "--force",
    action="store_true",
    help="replace the model in a folder that is not empty; files of no model"
    " stay there",
  )
  return parser


def export(
  source: str,
  output: pathlib.Path,
  *,
  dtype: str,
  max_shard_gb: float,
  force: bool,
  screen: console_lib.Console,
) -> None:
  """Writes a model to a folder.

  Raises:
    UserError: no model there, or the folder is not empty.
    UnsupportedModelError: its files do not fit together.
  """
  if not max_shard_gb > 0:
    raise UserError(f"--max-shard-gb {max_shard_gb:g} must be above 0")
  if output.exists() and not output.is_dir():
    raise UserError(f"{output} is a file; choose another OUTPUT")
  if not force and output.is_dir() and any(output.iterdir()):
    raise UserError(
      f"{output} is not empty; choose another OUTPUT, or replace the model in"
      " it with --force"
    )
  model = model_paths.find(source)[-1]
  screen.line(f"{model.name}: {model.folder}", style="bold")
  logging.getLogger("absl").setLevel(logging.WARNING)
  setup.use_compilation_cache()
  opened = open_model(model)
  critic = None
  if opened.value is not None:
    critic = "separate" if "trunk" in opened.value else "shared"
  text = card.render(
    card.Exported(
      model=model,
      shape=opened.shape,
      classifier=opened.classifier,
      value=critic,
      dtype=dtype,
      name=output.resolve().name,
    )
  )
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
    new = pathlib.Path(scratch) / "model"
    folders.fill(
      new,
      opened.shape,
      opened.tokenizer,
      opened.model,
      classifier=opened.classifier,
      value=opened.value,
      dtype=dtype,
      max_shard_bytes=int(max_shard_gb * 10**9),
    )
    (new / "README.md").write_text(text, encoding="utf-8")
    folders.merge(new, output)
  size = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
  screen.line(f"exported: {output}, {size / 10**9:.2f} GB in {dtype}")


def open_model(model: model_paths.Model) -> Opened:
  """Reads a model onto all devices.

  Raises:
    UserError: the checkpoint holds no model of its run's shape.
    UnsupportedModelError: the folder's files do not fit together.
  """
  config = None
  if model.run is not None:
    config = loading.load([str(model.run / "config.yaml")])
  mesh = mesh_lib.make_mesh(data=1, fsdp=-1, tensor=1)
  if model.checkpoint:
    return _open_checkpoint(model, config, mesh)
  folder = hub.folder(str(model.folder))
  if config is None:
    tokenizer = tokenizer_lib.load(folder)
  else:
    tokenizer = tokenizer_lib.for_run(config, folder)
  classifier = pretrained.is_classifier(folder)
  load = pretrained.load_classifier if classifier else pretrained.load
  shape, params = load(folder, mesh_lib.placement(mesh))
  return Opened(shape, tokenizer, params, classifier)


def _open_checkpoint(model, config, mesh) -> Opened:
  tokenizer, networks = setup.open_model(config)
  parts = model_paths.parts(model.folder, networks)
  classifier = "scorer" in parts
  wanted = "scorer" if classifier else "policy"
  if wanted not in parts:
    raise UserError(
      f"{model.folder}: no model of the shape that the settings of {model.run}"
      " describe; give another checkpoint."
    )
  names = [wanted, *({"value"} & parts.keys())]
  held = model_paths.read(model.folder, networks, mesh, names)
  return Opened(
    networks.config, tokenizer, held[wanted], classifier, held.get("value")
  )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
