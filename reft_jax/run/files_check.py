"""A check, without devices, that the files a run reads are there."""

import pathlib

from reft_jax import files
from reft_jax.config import schema
from reft_jax.errors import UserError
from reft_jax.huggingface import hub


def check_files(config: schema.Config) -> None:
  """Checks that the problems and models of a run exist.

  Names on the hub are not looked up.

  Raises:
    UserError: one line with everything that is missing.
  """
  problems = [
    f"{key}={source}: no such file in {pathlib.Path.cwd()}"
    for key, source in (
      ("data.train", config.data.train),
      ("data.test", config.data.test),
    )
    if source
    and source != "embedded"
    and not source.startswith("hub:")
    and not files.expand_user(source).is_file()
  ]
  problems += [
    f"{key}={path}: no Hugging Face model there (a folder with config.json,"
    " *.safetensors and tokenizer.json), nor a name on the hub"
    " (owner/name[@revision])"
    for key, path in (
      ("model.path", config.model.path),
      ("model.warmup", config.model.warmup),
    )
    if path and not hub.is_id(path) and hub.find(path) is None
  ]
  if problems:
    raise UserError("; ".join(problems))
