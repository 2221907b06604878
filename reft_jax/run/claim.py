"""A run's folder: whose it is, and whether this command may resume it."""

import datetime
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata

import jax

from reft_jax import files, manifest
from reft_jax.config import loading, schema
from reft_jax.errors import UserError

MANIFEST = "manifest.json"
_REMEDY = "set output to another folder, or resume=never to put that run aside."


def claim(
  directory: pathlib.Path, config: schema.Config, inputs: Mapping[str, str]
) -> None:
  """Makes the run's folder, or takes up the run that lies there.

  Two runs are the same if their settings are, but for those that may change,
  and their `inputs`: fingerprints by name of what settings only point to.

  Raises:
    UserError: the folder holds a run with other settings or inputs, or one of
      another version; or it cannot be written.
  """
  file = directory / MANIFEST
  settings = directory / "config.yaml"
  held = settings.exists() or (directory / "stages").exists()
  if config.resume == "never" and (held or file.exists()):
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    directory.rename(directory.with_name(f"{directory.name}.until-{now}"))
    held = False
  described = manifest.Manifest("run", loading.identity(config) | dict(inputs))
  before = manifest.read(file, _REMEDY)
  if before is None and held:
    raise UserError(
      f"{directory} holds a run without a {MANIFEST} that can be read: an"
      f" earlier version of reft_jax made it, or the file is gone; {_REMEDY}"
    )
  if before is not None and (changed := before.changes(described)):
    raise UserError(
      f"{directory} holds a run with other settings ({'; '.join(changed)}); "
      f"{_REMEDY}"
    )
  try:
    directory.mkdir(parents=True, exist_ok=True)
    # First: settings without a manifest are taken for another version's.
    described.write(file)
    files.replace(settings, loading.to_yaml(config))
  except OSError as error:
    raise UserError(
      f"the run's folder {directory} cannot be written ({error.strerror}); "
      "set output to another place."
    ) from error
  environment = json.dumps(_environment(), indent=2)
  (directory / "environment.json").write_text(environment + "\n")


def _environment() -> dict[str, object]:
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
