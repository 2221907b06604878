"""Compiler flags that a run may opt in to: `xla_flags=fast`.

They overlap collectives with computation and combine small collectives. XLA
reads them from the environment when jax starts, and ends the process if it does
not know one; names change between versions. So a separate process tries them
first, once for each version, and unknown ones are left out.

Sources: openxla.org/xla/flags_guidance; for GPUs xla/debug_options_flags.cc in
openxla/xla, which has the defaults; for TPUs benchmarks/xla_flags_library.py in
AI-Hypercomputer/maxtext.
"""

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from reft_jax import files

# Arrays are combined up to this size before they are sent. In bfloat16, a layer
# of a 7B model has 0.4 GB.
_COMBINED = 512 << 20

# For each of jax's platforms. launch/README.md says what each flag does.
FLAGS: dict[str, tuple[str, ...]] = {
  "cuda": (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    f"--xla_gpu_all_gather_combine_threshold_bytes={_COMBINED}",
    f"--xla_gpu_all_reduce_combine_threshold_bytes={_COMBINED}",
    f"--xla_gpu_reduce_scatter_combine_threshold_bytes={_COMBINED}",
  ),
  "tpu": (
    "--xla_enable_async_all_gather=true",
    "--xla_enable_async_all_reduce=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
  ),
}

_VARIABLES = {"cuda": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}
_COMPILERS = {"cuda": "jaxlib", "tpu": "libtpu"}
# Programs that fail on an unknown flag, and use no accelerator.
_TRIALS = {
  "cuda": "import jax; jax.numpy.zeros(1)",
  "tpu": (
    "from jax.experimental import topologies as t;"
    " t.get_topology_desc(platform='tpu', topology_name='v5e:2x4')"
  ),
}
_TRIAL_SECONDS = 300
_UNKNOWN = re.compile(
  r"Unknown (?:flags? in XLA_FLAGS: (.*)|command line flag '(.*?)')"
)

CACHE = "~/.cache/reft_jax/xla_flags"


def use(wanted: str, say: Callable[[str], None]) -> None:
  """Sets the flags that this machine's compiler knows.

  Call it before jax starts: later they have no effect. Flags that the user has
  set win.

  Args:
    wanted: `none` or `fast`.
    say: called with one line: what was set and what was left out.
  """
  if wanted == "none":
    return
  kind = platform()
  if kind is None:
    say(f"xla_flags={wanted}: there are none for what this runs on")
    return
  variable = _VARIABLES[kind]
  theirs = os.environ.get(variable, "").strip()
  if theirs and not theirs.startswith("-"):
    say(f"xla_flags={wanted}: none are set, since {variable} names a file")
    return
  try:
    left_out = unknown(kind, FLAGS[kind])
  except TrialError as error:
    say(f"xla_flags={wanted}: none are set, they could not be tried ({error})")
    return
  not_ours = {*left_out, *map(_name, theirs.split())}
  ours = [flag for flag in FLAGS[kind] if _name(flag) not in not_ours]
  # The user's come last: XLA takes the last value of a flag.
  os.environ[variable] = " ".join([*ours, theirs]).strip()
  text = f"xla_flags={wanted}: {len(ours)} flags added to {variable}"
  if left_out:
    names = ", ".join(f"--{name}" for name in left_out)
    text += f"; left out, unknown to this {_COMPILERS[kind]}: {names}"
  say(text)


def platform() -> str | None:
  """`cuda` or `tpu` if jax will run on it; does not start jax."""
  if asked := os.environ.get("JAX_PLATFORMS", "").split(",")[0]:
    return {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(asked)
  if has_tpu():
    return "tpu"
  gpus = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
  if any(map(os.path.exists, gpus)) and _plugins():
    return "cuda"
  return None


def has_tpu() -> bool:
  """Whether this machine has TPU chips and the library that drives them."""
  chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips and importlib.util.find_spec("libtpu"))


class TrialError(Exception):
  """The flags could not be tried, for a reason of one line."""


def unknown(kind: str, flags: Sequence[str]) -> list[str]:
  """The names of the flags that a platform's compiler does not know.

  The answer is cached on disk for each version of the compiler.

  Args:
    kind: cuda or tpu.
    flags: as written in the environment.

  Raises:
    TrialError: the process that tries them failed for another reason.
  """
  names = ["jaxlib", *(["libtpu"] if kind == "tpu" else _plugins())]
  versions = [f"{name} {metadata.version(name)}" for name in names]
  tried = {"versions": versions, "flags": list(flags)}
  key = hashlib.sha256(json.dumps(tried).encode()).hexdigest()[:16]
  file = pathlib.Path(CACHE).expanduser() / f"{kind}-{key}.json"
  found = files.read_json(file).get("unknown")
  if found is None:
    found = _tried(kind, flags)
    with contextlib.suppress(OSError):  # The next start tries them again.
      file.parent.mkdir(parents=True, exist_ok=True)
      files.replace(file, json.dumps(tried | {"unknown": found}, indent=1))
  return found


def _tried(kind: str, flags: Sequence[str]) -> list[str]:
  """As `unknown`, from a process that starts with the flags."""
  environment = os.environ | {
    # No accelerator, no query to the cloud, and other runs may use the TPU.
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "0",
    **dict.fromkeys(_VARIABLES.values(), ""),
    _VARIABLES[kind]: " ".join(flags),
  }
  try:
    done = subprocess.run(
      [sys.executable, "-c", _TRIALS[kind]],
      env=environment,
      capture_output=True,
      text=True,
      errors="replace",
      timeout=_TRIAL_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise TrialError(str(error)) from error
  if not done.returncode:
    return []
  found = " ".join(map("".join, _UNKNOWN.findall(done.stderr)))
  named = [_name(flag) for flag in found.split()]
  if not named or not set(named).issubset(map(_name, flags)):
    last = done.stderr.strip().rpartition("\n")[2]
    raise TrialError(f"exit code {done.returncode}: {last:.200}")
  return named


def _name(flag: str) -> str:
  return flag.lstrip("-").partition("=")[0]


def _plugins() -> list[str]:
  """The installed packages that compile for NVIDIA GPUs."""
  names = [f"jax-cuda{version}-plugin" for version in (12, 13)]
  return [name for name in names if any(metadata.distributions(name=name))]
