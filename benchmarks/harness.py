"""What the benchmarks share: their machine, and runs of the trainer."""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
from importlib import metadata


def options(about: str, output: str) -> argparse.Namespace:
  """The command line of a benchmark that trains: seeds, folder, settings."""
  parser = argparse.ArgumentParser(description=about.splitlines()[0])
  parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
  parser.add_argument(
    "--output", type=pathlib.Path, default=pathlib.Path(output)
  )
  parser.add_argument(
    "overrides", nargs="*", help="settings for every run, as key=value"
  )
  return parser.parse_intermixed_args()


def machine() -> dict:
  """What the numbers were measured on."""
  import jax  # Here, not above: not every benchmark wants its threads.

  return {
    "platform": platform.platform(),
    "cpus": os.cpu_count(),
    "python": platform.python_version(),
    "jax": metadata.version("jax"),
    "devices": [str(device) for device in jax.devices()],
  }


def train(output: pathlib.Path, *arguments: str) -> dict:
  """Runs the trainer; a run that is finished is not repeated.

  Returns:
    The run's summary.
  """
  command = [sys.executable, "-m", "reft_jax.train", f"output={output}"]
  subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)
  return json.loads((output / "summary.json").read_text())


def samples(output: pathlib.Path, name: str) -> list[dict]:
  """The completions that a run kept under a name, such as `test-reft`."""
  text = (output / "samples" / f"{name}.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]
