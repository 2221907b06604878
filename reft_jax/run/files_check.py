"""A check, without devices, that the files a run reads are there."""

import operator
import pathlib

from reft_jax import files
from reft_jax.config import schema
from reft_jax.errors import UserError
from reft_jax.huggingface import hub


def missing(config: schema.Config) -> dict[str, str]:
  """The settings that name problems or a model not on this machine."""
  found = {}
  for setting in ("data.train", "data.test"):
    source = operator.attrgetter(setting)(config)
    generated = source in (None, "embedded")
    if not generated and not files.expand_user(source).is_file():
      found[setting] = source
  for setting in ("model.path", "model.warmup"):
    name = operator.attrgetter(setting)(config)
    if name and hub.find(name) is None:
      found[setting] = name
  return found


def check_files(config: schema.Config) -> None:
  """Raises UserError, with one line, if files of a run do not exist.

  Names on the hub are not looked up.
  """
  problems = []
  for setting, name in missing(config).items():
    if setting.startswith("model."):
      if not hub.is_id(name):
        problems.append(
          f"{setting}={name}: no Hugging Face model there (a folder with"
          " config.json, *.safetensors and tokenizer.json), nor a name on the"
          " hub (owner/name[@revision])"
        )
    elif not name.startswith("hub:"):
      problems.append(f"{setting}={name}: no such file in {pathlib.Path.cwd()}")
  if problems:
    raise UserError("; ".join(problems))
