"""Loading a model: peak memory and seconds, beside transformers' loader.

    python benchmarks/load.py --folder /tmp/qwen2-1.5b

The checkpoint has the shape of Qwen2.5-1.5B and random weights in bf16; it is
made once, in --folder (3.1 GB). Each measurement is a process of its own, on a
file that lies in the page cache, and ends with all weights there in fp32: ours
on one device and on eight simulated ones, whose memory is the host's, and
`AutoModelForCausalLM.from_pretrained(dtype=torch.float32)`.

`peak_gb` is VmHWM, the most memory that the process ever had resident, its
libraries and file pages that it has mapped included: what a container's limit
has to leave room for. `peak_anonymous_gb` leaves out the file pages, which the
system may take back; it is sampled. `before_gb` is what was resident before.
Prints JSON, and a table for people on standard error.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import harness

OURS_1, OURS_8, THEIRS = SYSTEMS = (
  "reft_jax, 1 device",
  "reft_jax, 8 devices",
  "transformers",
)
SHAPE = {
  "vocab_size": 151936,
  "hidden_size": 1536,
  "num_hidden_layers": 28,
  "num_attention_heads": 12,
  "num_key_value_heads": 2,
  "intermediate_size": 8960,
  "max_position_embeddings": 131072,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1000000.0,
  "tie_word_embeddings": True,
}
TARGET = 1.3  # Of the parameters in fp32.
_GB = 1e9


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument(
    "--layers",
    type=int,
    default=SHAPE["num_hidden_layers"],
    help="fewer: a try",
  )
  parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.measure:
    print(json.dumps(measure(options.measure, options.folder)))
    return
  files = build(options.folder, options.layers)
  rows = []
  for system in SYSTEMS:
    found = []
    for _ in range(options.repeats):
      touch(files)
      found.append(in_a_process(system, options.folder))
      print(json.dumps(found[-1]), file=sys.stderr)
    rows.append(summary(system, found))
  checksums = {row.pop("checksum") for row in rows}
  result = {
    "benchmark": "load",
    "machine": harness.machine()
    | {name: metadata.version(name) for name in ("transformers", "torch")},
    "settings": {
      **SHAPE,
      "num_hidden_layers": options.layers,
      "stored": "bfloat16",
      "held": "float32",
      "repeats": options.repeats,
    },
    "rows": rows,
    "targets": {
      "peak_over_parameters": TARGET,
      "same_weights": len(checksums) == 1,
      "met": len(checksums) == 1
      and all(
        row["peak_over_parameters"] < TARGET
        for row in rows
        if row["system"] != THEIRS
      ),
    },
  }
  print(json.dumps(result, indent=2))
  print(table(rows), file=sys.stderr)


def build(folder: pathlib.Path, layers: int) -> list[pathlib.Path]:
  """Makes the checkpoint if it is not there; its files of weights."""
  import numpy as np

  from reft_jax.models.hf import families, tensor_files

  fields = {"model_type": "qwen2", **SHAPE, "num_hidden_layers": layers}
  file = folder / "config.json"
  if not file.exists() or json.loads(file.read_text()) != fields:
    print(f"making {folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.remove(folder)
    config = families.read_config(fields)
    random = np.random.default_rng(0)
    shapes = {
      name: row.stored_shape(config.sizes)
      for row in families.tensors(config)
      for name in row.names(config.layers)
    }

    def array_of(name: str) -> np.ndarray:
      array = random.standard_normal(shapes[name], np.float32) * 0.02
      return array.astype(tensor_files.DTYPES["BF16"])

    tensor_files.write(folder, shapes, "BF16", array_of, 5 * 10**9)
    file.write_text(json.dumps(fields))
  return sorted(folder.glob("*.safetensors"))


def touch(files: list[pathlib.Path]) -> None:
  """Brings files into the page cache."""
  for file in files:
    with file.open("rb") as opened:
      while opened.read(1 << 24):
        pass


def in_a_process(system: str, folder: pathlib.Path) -> dict[str, Any]:
  """What `measure` finds in a fresh process."""
  count = "8" if system == OURS_8 else "1"
  run = subprocess.run(
    [sys.executable, __file__, f"--folder={folder}", f"--measure={system}"],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": count,
      "HF_HUB_OFFLINE": "1",
    },
  )
  return json.loads(run.stdout.splitlines()[-1])


def measure(system: str, folder: pathlib.Path) -> dict[str, Any]:
  """Loads the model once, in this process."""
  load, facts = (theirs if system == THEIRS else ours)(folder)
  before = memory()
  # The peak up to here is forgotten (Linux 4.0 and later).
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  with sampled() as sample:
    begin = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - begin
  peak = memory()["VmHWM"]
  parameters, checksum = facts(model)
  return {
    "system": system,
    "seconds": round(seconds, 2),
    "parameters_gb": round(4 * parameters / _GB, 3),
    "before_gb": round(before["VmRSS"] / _GB, 3),
    "peak_gb": round(peak / _GB, 3),
    "peak_anonymous_gb": round(sample["peak"] / _GB, 3),
    "checksum": checksum,
  }


def ours(folder: pathlib.Path):
  """Our loader, and what tells of its policy."""
  import jax
  import numpy as np

  from reft_jax.models.hf import read as reader
  from reft_jax.runtime import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(data=1, fsdp=-1, tensor=1)
  jax.block_until_ready(jax.jit(lambda: 1)())  # Starts the backend.

  def load():
    _, policy = reader.load(folder, mesh_lib.placement(mesh))
    return jax.block_until_ready(policy)

  def facts(policy):
    leaves = jax.tree.leaves(policy)
    trunk = policy["trunk"]
    return sum(leaf.size for leaf in leaves), checksum(
      np.asarray(trunk["embed_VD"]),
      np.asarray(trunk["blocks"]["mlp"]["down_FD"][-1]).T,
    )

  return load, facts


def theirs(folder: pathlib.Path):
  """The loader of transformers, and what tells of its model."""
  import torch
  import transformers

  # Imports what it would import when it loads.
  auto = transformers.AutoModelForCausalLM
  auto.from_config(
    transformers.Qwen2Config(
      **SHAPE | {"vocab_size": 8, "hidden_size": 24, "intermediate_size": 8}
    )
  )

  def load():
    return auto.from_pretrained(folder, dtype=torch.float32)

  def facts(model):
    trunk = model.model
    return sum(one.numel() for one in model.parameters()), checksum(
      trunk.embed_tokens.weight.detach().numpy(),
      trunk.layers[-1].mlp.down_proj.weight.detach().numpy(),
    )

  return load, facts


def checksum(*arrays) -> str:
  """The same for the same weights, whatever they are held in."""
  import hashlib

  import numpy as np

  digest = hashlib.sha256()
  for array in arrays:
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()[:16]


def memory() -> dict[str, int]:
  """Bytes of this process's memory, by Linux's names."""
  fields = {}
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    name, _, value = line.partition(":")
    if value.endswith("kB"):
      fields[name] = 1024 * int(value.split()[0])
  return fields


@contextlib.contextmanager
def sampled() -> Iterator[dict[str, int]]:
  """The peak of anonymous memory, looked at every 5 ms."""
  sample, done = {"peak": 0}, threading.Event()

  def look():
    while not done.wait(0.005):
      found = memory()
      now = found["RssAnon"] + found["RssShmem"]
      sample["peak"] = max(sample["peak"], now)

  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  try:
    yield sample
  finally:
    done.set()
    thread.join()


def summary(system: str, found: list[dict[str, Any]]) -> dict[str, Any]:
  """The median of the seconds, and the highest of the peaks."""
  row = {
    "system": system,
    "seconds": statistics.median(one["seconds"] for one in found),
    "seconds_of_each": [one["seconds"] for one in found],
    "parameters_gb": found[0]["parameters_gb"],
  }
  for name in ("before_gb", "peak_gb", "peak_anonymous_gb"):
    row[name] = max(one[name] for one in found)
  ratio = row["peak_gb"] / row["parameters_gb"]
  row["peak_over_parameters"] = math.ceil(1000 * ratio) / 1000
  return row | {"checksum": found[0]["checksum"]}


def table(rows: list[dict[str, Any]]) -> str:
  """Markdown: a line for each loader."""
  lines = [
    "| loader | seconds | peak GB | without file pages | before "
    "| peak / fp32 parameters |",
    "|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {row['system']} | {row['seconds']:.1f} | {row['peak_gb']:.2f} "
    f"| {row['peak_anonymous_gb']:.2f} | {row['before_gb']:.2f} "
    f"| {row['peak_over_parameters']:.2f} |"
    for row in rows
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
