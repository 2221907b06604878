"""Every test runs on eight simulated CPU devices unless told otherwise."""

import os
import pathlib
import tempfile

# Read when the libraries are imported, so set before the imports below.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Programs are tiny: they take longer to compile than to run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

from reft_jax.runtime import xla_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent

HASTY = "--xla_cpu_use_fusion_emitters=false"  # Compiles twice as fast.
# How many more programs are compiled before their memory maps are counted.
PROGRAMS = 100
MOST_MAPS = 40_000
_compiled = []

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles, which no deadline foresees.
hypothesis.settings.register_profile("compiles", deadline=None)
hypothesis.settings.load_profile("compiles")


def pytest_configure(config):
  """Compiles hastily, and keeps compiled programs between runs of the tests."""
  # One jaxlib has the flags of all platforms; newer ones have not this one.
  if "XLA_FLAGS" not in os.environ and not xla_flags.unknown("cuda", [HASTY]):
    os.environ["XLA_FLAGS"] = HASTY
  cache = getattr(config, "cache", None)
  folder = (
    cache.mkdir("compiled")
    if cache
    else pathlib.Path(tempfile.gettempdir()) / "reft_jax_compiled"
  )
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  jax.monitoring.register_event_duration_secs_listener(_count)


def _count(event, duration, **_):
  if event == "/jax/core/compile/backend_compile_duration":
    _compiled.append(duration)


@pytest.fixture(autouse=True)
def _room_for_programs():
  """Lets go of compiled programs before there are too many.

  Each holds about 70 memory maps. Linux gives a process 65,530, and XLA aborts
  when it gets no more; a single file of tests may compile 800 programs.
  """
  yield
  if len(_compiled) < PROGRAMS:
    return
  _compiled.clear()
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
    jax.clear_caches()


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  """The repository."""
  return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """Data sets, models and reference numbers that lie beside the repository."""
  folder = ROOT.parent / "shared"
  if not folder.is_dir():
    pytest.skip(f"needs the reference data in {folder}")
  return folder
