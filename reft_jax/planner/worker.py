"""One target's plan, made in its own process.

The compiler of hardware that is not here is a plugin of jax whose flags apply
to a whole process. They must not apply to the program that asks for the plan.
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

# No GPU to autotune on, without which Triton's kernels have no tile sizes.
_GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class CompilerError(Exception):
  """A compiler failed, for another reason than memory."""


def missing(platform: str) -> str | None:
  """The command that installs a platform's compiler; None if it is here."""
  version = metadata.version("jax")
  if platform == "tpu" and not _found("libtpu"):
    return f'pip install "jax[tpu]=={version}"'
  plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
  if platform == "cuda" and not any(map(_found, plugins)):
    return (
      f"pip install --no-deps jax-cuda13-pjrt=={version}"
      f" jax-cuda13-plugin=={version}"
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
  """`plans.make` in a process with the target's compiler.

  Raises:
    UserError: as `plans.make`.
    CompilerError: the compiler failed; its last line says why.
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
      lines = done.stderr.strip().splitlines() or ["no message"]
      raise CompilerError(
        f"{target.name}: the compiler ended with code {done.returncode}:"
        f" {lines[-1].strip()}"
      )
    plan = json.loads(answer.read_text())
  if "error" in plan:
    raise UserError(plan["error"])
  return plan


def environment(target: hardware.Target) -> dict[str, str]:
  """This process's environment, with the target's devices for its own."""
  variables = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("XLA_", "JAX_", "TPU_", "CUDA_"))
  }
  root = str(pathlib.Path(reft_jax.__file__).parent.parent)
  paths = (root, os.environ.get("PYTHONPATH"))
  variables |= {
    "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    # Nothing runs on the target; programs are only compiled for it.
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
  match target.chip.platform:
    case "cpu":
      variables["JAX_NUM_CPU_DEVICES"] = str(target.devices)
    case "cuda":
      variables["CUDA_VISIBLE_DEVICES"] = ""
      variables["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
      variables["XLA_FLAGS"] = _GPU_FLAGS
    case "tpu":
      variables["TPU_SKIP_MDS_QUERY"] = "1"
      # It uses no TPU, so it may run beside a process that does.
      variables["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  return variables


def main(request: pathlib.Path) -> None:
  """Reads a request, and writes the plan beside it as JSON."""
  # Imported here, so that `ask` needs neither jax nor the learner.
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
