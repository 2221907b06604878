"""Imports point down the layers, and some libraries stay out of some layers."""

import ast
import functools
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

LEVELS = (
  ("models", "types", "ops", "errors", "files", "hub"),
  ("config", "processes", "xla_flags"),
  ("layout",),
  (
    "tasks",
    "tokenizer",
    "batching",
    "optim",
    "devices",
    "checkpoints",
    "metrics",
    "terminal",
    "plots",
    "pages",
    "studies",
  ),
  ("steps", "rollout", "selection"),
  ("methods",),
  ("planner",),
  ("train", "evaluate", "export", "plan", "reproduce", "rate"),
)
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
  """Every module's import name and file."""
  homes = {"reft_jax": ROOT / "reft_jax", "reft_jax.models": ROOT / "models"}
  found = {}
  for package, folder in homes.items():
    for path in folder.rglob("*.py"):
      parts = path.relative_to(folder).with_suffix("").parts
      name = ".".join((package, *parts)).removesuffix(".__init__")
      found[name] = path
  return found


@functools.cache
def imports(module: str) -> frozenset[str]:
  """All that a module imports, wherever in the file it does."""
  names = set()
  for node in ast.walk(ast.parse(modules()[module].read_text("utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: relative import"
      inner = {f"{node.module}.{alias.name}" for alias in node.names}
      known = inner & modules().keys()
      names |= known if known == inner else known | {node.module}
  return frozenset(names)


def inside(module: str) -> frozenset[str]:
  """The modules of this project that a module imports."""
  return frozenset(
    name for name in imports(module) if name.split(".")[0] == "reft_jax"
  )


def reached(module: str) -> set[str]:
  """A module and all of this project that importing it brings in."""
  seen, todo = set(), [module]
  while todo:
    name = todo.pop()
    if name not in seen and name in modules():
      seen.add(name)
      todo += inside(name)
  return seen


def level(module: str) -> int:
  part = module.split(".")[1]
  levels = [i for i, parts in enumerate(LEVELS) if part in parts]
  assert levels, f"{module} has no level: add it to the layers"
  return levels[0]


def below(*parts: str) -> list[str]:
  """The modules of the given parts of the project."""
  homes = tuple(f"reft_jax.{part}." for part in parts)
  return sorted(name for name in modules() if f"{name}.".startswith(homes))


LEVELLED = sorted(name for name in modules() if name != "reft_jax")


@pytest.mark.parametrize("module", LEVELLED)
def test_imports_point_down(module):
  for name in inside(module) - {"reft_jax"}:
    assert level(name) <= level(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", LEVELLED)
def test_imports_exist(module):
  assert inside(module) <= modules().keys()


def test_no_cycles():
  graph = {name: inside(name) for name in modules()}
  tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
  "module",
  below(
    *("tasks", "selection", "config", "studies", "rate", "reproduce"),
    *("planner.hardware", "planner.hlo", "planner.roofline"),
  ),
)
def test_host_code_does_not_reach_jax(module):
  for name in reached(module):
    libraries = {library.split(".")[0] for library in imports(name)}
    assert not libraries & DEVICE_LIBRARIES, f"{module} reaches {name}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_flax_stays_in_models(module):
  libraries = {library.split(".")[0] for library in imports(module)}
  assert "flax" not in libraries or module.startswith("reft_jax.models")


@pytest.mark.parametrize("module", below("models"))
def test_models_stand_alone(module):
  for name in inside(module):
    assert f"{name}.".startswith("reft_jax.models."), f"imports {name}"
