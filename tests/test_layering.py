"""Imports point down the layers, and some libraries stay out of some layers.

Each rule is one test that lists its offenders.
"""

import ast
import functools
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the bottom up. A module may import those of its own layer and below.
LAYERS = (
  ("models", "types", "ops", "errors", "files"),
  ("config", "manifest"),
  ("tasks", "evaluation.votes", "evaluation.settings"),
  ("data", "huggingface", "runtime"),
  ("sampling", "learning"),
  ("run.loop", "run.context", "algorithms"),
  ("run", "evaluation", "huggingface.card"),
  ("studies", "planner"),
  ("train", "evaluate", "export", "plan", "reproduce", "rate"),
)
# Code that a host runs without a device: quick to test, safe in a worker.
HOST_ONLY = (
  *("config", "manifest", "tasks", "evaluation.votes", "evaluation.settings"),
  *("studies", "rate", "reproduce"),
  *("planner.hardware", "planner.hlo", "planner.roofline"),
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


def internal(module: str) -> frozenset[str]:
  """The modules of this project that a module imports."""
  return frozenset(
    name for name in imports(module) if name.split(".")[0] == "reft_jax"
  )


def libraries(module: str) -> set[str]:
  return {name.split(".")[0] for name in imports(module)}


def reached(module: str) -> set[str]:
  """A module and all of this project that importing it brings in."""
  seen, todo = set(), [module]
  while todo:
    name = todo.pop()
    if name not in seen and name in modules():
      seen.add(name)
      todo += internal(name)
  return seen


def lies_in(module: str, part: str) -> bool:
  return f"{module}.".startswith(f"reft_jax.{part}.")


def layer(module: str) -> int:
  """Of the most specific part that names it."""
  found = [
    (len(part), index)
    for index, parts in enumerate(LAYERS)
    for part in parts
    if lies_in(module, part)
  ]
  assert found, f"{module} has no layer: add it to LAYERS"
  return max(found)[1]


LAYERED = sorted(name for name in modules() if name != "reft_jax")


def test_imports_point_down():
  assert not [
    f"{module} imports {name}"
    for module in LAYERED
    for name in internal(module) - {"reft_jax"}
    if layer(name) > layer(module)
  ]


def test_imports_exist():
  assert not [
    f"{module} imports {name}"
    for module in LAYERED
    for name in internal(module) - modules().keys()
  ]


def test_no_cycles():
  graph = {name: internal(name) for name in modules()}
  tuple(graphlib.TopologicalSorter(graph).static_order())


def test_host_code_does_not_reach_jax():
  assert not [
    f"{module} reaches {name}"
    for module in LAYERED
    if any(lies_in(module, part) for part in HOST_ONLY)
    for name in reached(module)
    if libraries(name) & DEVICE_LIBRARIES
  ]


def test_flax_stays_in_models():
  assert not [
    module
    for module in modules()
    if "flax" in libraries(module) and not lies_in(module, "models")
  ]


def test_models_stand_alone():
  assert not [
    f"{module} imports {name}"
    for module in LAYERED
    if lies_in(module, "models")
    for name in internal(module)
    if not lies_in(name, "models")
  ]


def test_mathematics_takes_numbers_not_settings():
  assert not [
    f"{module} imports {name}"
    for module in LAYERED
    if lies_in(module, "ops") or lies_in(module, "models")
    for name in reached(module)
    if lies_in(name, "config")
  ]
