"""The collectives of a compiled program, read from its HLO text.

`Compiled.as_text()` is parsed line by line; no jax is needed. A collective in
the body of a `while` counts as often as the body runs.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
  *("ragged-all-to-all", "collective-permute", "collective-broadcast"),
)

_BITS = {
  "pred": 8,
  **{f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)},
  **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
  "f4e2m1fn": 4,
}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_ASSIGNMENT = re.compile(r"(ROOT )?%?([\w.\-]+) = ")
_OPENING = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str  # The name of its result.
  kind: str  # Its opcode.
  type: str  # The type of its result, as text.
  operands: tuple[str, ...]  # The names of its arguments; a parameter's number.
  attributes: str  # The rest of the line.
  root: bool  # Whether its result is that of the computation.


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program: its computations by name, and the first one's."""

  computations: Mapping[str, Sequence[Instruction]]
  entry: str
  partitions: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program."""

  kind: str  # One of KINDS.
  # Bytes on one device of the array that is gathered, reduced or exchanged.
  payload: int
  group: tuple[int, ...]  # The devices of its first group, by number.
  times: int  # How often it runs.
  # Whether `times` is an upper bound: the loop may stop early.
  bounded: bool = False

  @property
  def wire(self) -> float:
    """Bytes that a device sends in one run, around a ring."""
    n = len(self.group)
    if self.kind in ("collective-permute", "collective-broadcast"):
      return self.payload
    share = (n - 1) / n
    return self.payload * share * (2 if self.kind == "all-reduce" else 1)

  def crosses(self, node: int) -> bool:
    """Whether its group spans nodes of `node` devices; 0: one node has all."""
    return bool(node) and len({device // node for device in self.group}) > 1


def size(type_text: str) -> int:
  """Bytes of an array's type, or of all arrays in a tuple's."""
  total = 0
  for dtype, dims in _ARRAY.findall(type_text):
    bits = _BITS.get(dtype, 8 if dtype.startswith("f8") else 0)
    sizes = [int(d.strip("<=")) for d in dims.split(",") if d]
    total += -(-bits * math.prod(sizes) // 8)
  return total


def parse(text: str) -> Module:
  """Parses the text of a compiled program."""
  computations: dict[str, list[Instruction]] = {}
  current: list[Instruction] | None = None
  entry = ""
  for line in text.splitlines():
    stripped = line.strip()
    opening = None if " = " in line[:200] else _OPENING.match(stripped)
    if opening and not line.startswith(" "):
      current = computations.setdefault(opening[2], [])
      if opening[1]:
        entry = opening[2]
    elif stripped == "}":
      current = None
    elif current is not None:
      instruction = _instruction(stripped)
      if instruction:
        current.append(instruction)
  partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
  return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(line: str) -> Instruction | None:
  match = _ASSIGNMENT.match(line)
  if not match:
    return None
  rest = line[match.end() :]
  end = _closing(rest) if rest.startswith("(") else rest.find(" ")
  type_text, rest = rest[:end], rest[end:].lstrip()
  kind, opened, rest = rest.partition("(")
  if not opened:
    return None
  end = _closing("(" + rest) - 1
  inside = rest[: end - 1]
  operands = tuple(_NAME.findall(inside)) or (inside.strip(),)
  return Instruction(
    name=match[2],
    kind=kind,
    type=type_text,
    operands=operands,
    attributes=rest[end:],
    root=bool(match[1]),
  )


def _closing(text: str) -> int:
  """The index after the parenthesis that closes the text's first one."""
  depth = 0
  for place, letter in enumerate(text):
    if letter == "(":
      depth += 1
    elif letter == ")":
      depth -= 1
      if not depth:
        return place + 1
  return len(text)


def collectives(module: Module, *, open_loop: int = 1) -> list[Collective]:
  """All collectives that run, those of loops included.

  `open_loop` are the assumed trips of a loop whose text does not tell them.
  """
  found = []

  def run(name: str, times: int, bounded: bool) -> None:
    instructions = module.computations.get(name, ())
    types = {each.name: each.type for each in instructions}
    for each in instructions:
      kind = each.kind.removesuffix("-start")
      runs: dict[str, int] = {}
      sure = True
      if kind in KINDS:
        if name.startswith("all-reduce-scatter"):  # A fusion on TPUs.
          kind = "reduce-scatter"
        group = groups(each.attributes, module.partitions)
        given = sum(size(types.get(operand, "")) for operand in each.operands)
        payload = given * len(group) if kind == "all-gather" else given
        if len(group) > 1:
          found.append(Collective(kind, payload, group, times, bounded))
      elif each.kind == "while":
        count, sure = trips(module, each, open_loop)
        # The condition runs once more, to end the loop.
        runs = {"body": count, "condition": count + 1}
      elif not each.kind.endswith(("-done", "-update")):
        runs = {"calls": 1, "branch_computations": 1, "to_apply": 1}
      for field, often in runs.items():
        for called in _called(each, field):
          run(called, times * often, bounded or not sure)

  run(module.entry, 1, False)
  return found


def _called(instruction: Instruction, field: str) -> list[str]:
  match = re.search(
    rf"\b{field}=(\{{[^}}]*\}}|%[\w.\-]+)", instruction.attributes
  )
  return _NAME.findall(match[1]) if match else []


def trips(
  module: Module, loop: Instruction, open_loop: int
) -> tuple[int, bool]:
  """How often a loop's body runs, and whether that is certain.

  The number is the compiler's note or, without one, the constant with which the
  condition compares a counter that starts at 0.
  """
  noted = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
  if noted:
    return int(noted[1]), True
  (condition,) = _called(loop, "condition")
  instructions = {x.name: x for x in module.computations.get(condition, ())}
  for each in instructions.values():
    below = each.kind == "compare" and "direction=LT" in each.attributes
    if each.root and below:
      limit = instructions.get(each.operands[-1])
      if limit is not None and limit.kind == "constant":
        return int(limit.operands[0]), True
  return open_loop, False


def groups(attributes: str, partitions: int) -> tuple[int, ...]:
  """The first of a collective's groups of devices.

  All notations are read: {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0) and
  mesh['x'=2,'y'=2] {'x'}. Empty means all devices.
  """
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
  if listed and listed[1]:
    return tuple(map(int, listed[1].split(",")))
  iota = re.search(
    r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?",
    attributes,
  )
  if iota:
    shape = [int(size) for size in iota[2].split(",")]
    devices = np.arange(math.prod(shape)).reshape(shape)
    if iota[3]:
      devices = devices.transpose([int(axis) for axis in iota[3].split(",")])
    return tuple(devices.flatten()[: int(iota[1])].tolist())
  mesh = re.search(
    r"replica_groups=(?:@?\w*)?\[([^\]]*)\]\s*\{([^}]*)\}", attributes
  )
  if mesh:
    return _group_of_axes(mesh[1], mesh[2])
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
  if pairs:
    return tuple(dict.fromkeys(map(int, re.findall(r"\d+", pairs[1]))))
  return tuple(range(partitions))


def _group_of_axes(mesh: str, axes: str) -> tuple[int, ...]:
  """The group of device 0 along some axes of a mesh, or parts of axes.

  'x':(2)4 is the part of size 4 of axis x after a part of size 2.
  """
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
  strides, devices = {}, 1
  for name, size in reversed(sizes.items()):
    strides[name] = devices
    devices *= size
  ranges = []
  for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
    count, stride = sizes[name], strides[name]
    if part:
      stride *= count // (int(before) * int(part))
      count = int(part)
    ranges.append(range(0, count * stride, stride))
  return tuple(sum(place) for place in itertools.product(*ranges))


@dataclasses.dataclass(frozen=True)
class Traffic:
  """All collectives of one kind."""

  kind: str  # One of KINDS.
  count: int  # How many run.
  payload: int  # Bytes of their arrays.
  near: float  # Bytes that a device sends within its node.
  far: float  # Bytes that it sends to other nodes.
  bounded: bool  # Whether these are upper bounds.


def by_kind(found: Sequence[Collective], node: int = 0) -> list[Traffic]:
  """Sums collectives by kind; `node` devices share the fast links."""
  kinds = collections.defaultdict(list)
  for each in found:
    kinds[each.kind].append(each)
  return [
    Traffic(
      kind=kind,
      count=sum(each.times for each in some),
      payload=sum(each.times * each.payload for each in some),
      near=sum(e.times * e.wire for e in some if not e.crosses(node)),
      far=sum(e.times * e.wire for e in some if e.crosses(node)),
      bounded=any(each.bounded for each in some),
    )
    for kind, some in sorted(kinds.items())
  ]
