"""One target's plan, made in a process of its own.

A compiler for hardware that is not here is a plugin of jax, and its flags hold
for all of a process: the program that asks must not become one that has them.
"""

import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

import reft_jax
from reft_jax.errors import UserError
from reft_jax.planner import hardware
from reft_jax.planner import subject as subjects

_XLA_FLAGS = {
  # There is no GPU to try kernels on, without which these have no tiles.
  "cuda": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
}


class CompilerError(Exception):
  """A compiler failed, and not for want of memory."""


def missing(platform: str) -> str | None:
  """What to install to compile for a platform; None: it is all here."""
  jax_version = metadata.version("jax")
  match platform:
    case "tpu" if not _found("libtpu"):
      return f'pip install "jax[tpu]=={jax_version}"'
    case "cuda" if not (
      _found("jax_plugins.xla_cuda13") or _found("jax_plugins.xla_cuda12")
    ):
      return (
        f"pip install --no-deps jax-cuda13-pjrt=={jax_version}"
        f" jax-cuda13-plugin=={jax_version}"
      )
  return None


def _found(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


def ask(
  subject: subjects.Subject,
  target: hardware.Target,
  *,
  compiled: bool,
  search: bool,
) -> dict[str, Any]:
  """`plans.make` in a process that has the target's compiler.

  Raises:
    UserError: as `plans.make`.
    CompilerError: its compiler failed; one line.
  """
  with tempfile.TemporaryDirectory() as folder:
    request = pathlib.Path(folder) / "request"
    request.write_bytes(pickle.dumps((subject, target.name, compiled, search)))
    done = subprocess.run(
      [sys.executable, "-m", "reft_jax.planner.worker", str(request)],
      env=environment(target),
      capture_output=True,
      text=True,
      errors="replace",
      check=False,
    )
    answer = request.with_suffix(".json")
    if not answer.exists():
      raise CompilerError(
        f"{target.name}: the compiler ended with code {done.returncode}:"
        f" {_last_line(done.stderr)}"
      )
    plan = json.loads(answer.read_text())
  if "error" in plan:
    raise UserError(plan["error"])
  return plan


def environment(target: hardware.Target) -> dict[str, str]:
  """This process's variables without its devices, and with the target's."""
  ours = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("XLA_", "JAX_", "TPU_", "CUDA_"))
  }
  root = str(pathlib.Path(reft_jax.__file__).parent.parent)
  paths = (root, os.environ.get("PYTHONPATH"))
  ours |= {
    "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    # What runs here runs on the CPU; what is compiled is for the target.
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
  match target.chip.platform:
    case "cpu":
      ours["JAX_NUM_CPU_DEVICES"] = str(target.devices)
    case "cuda":
      ours["CUDA_VISIBLE_DEVICES"] = ""
      ours["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
      ours["XLA_FLAGS"] = _XLA_FLAGS["cuda"]
    case "tpu":
      ours["TPU_SKIP_MDS_QUERY"] = "1"
      # It compiles alone, beside others and beside a run on a TPU.
      ours["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  return ours


def _last_line(text: str) -> str:
  lines = [line for line in text.splitlines() if line.strip()]
  return lines[-1].strip() if lines else "nothing was said"


def main(request: pathlib.Path) -> None:
  """Answers the request in a file, beside it."""
  from reft_jax.planner import plans

  subject, name, compiled, search = pickle.loads(request.read_bytes())
  try:
    plan = plans.make(
      subject, hardware.target(name), compiled=compiled, search=search
    )
  except UserError as error:
    plan = {"error": str(error)}
  request.with_suffix(".json").write_text(json.dumps(plan))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
