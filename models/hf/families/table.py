"""A family's table of tensors, and the way between the two layouts."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from reft_jax.models import config as configs
from reft_jax.models import networks


class Part(NamedTuple):
  """Where a parameter lies in a tensor that it shares with others.

  Attributes:
    axis: the stored axis along which they share it.
    size: the length of that axis.
    index: the places along it that are this parameter's, in its own order.
  """

  axis: int
  size: int
  index: np.ndarray


class Tensor(NamedTuple):
  """A parameter and the tensor of a checkpoint that holds it.

  Attributes:
    stored: the checkpoint's name; {} stands for the number of the layer.
    path: the policy's path, its keys joined by slashes.
    axes: the letters of the stored axes; letters written together are merged
      into one axis, as in "NH D".
    part: which part of the tensor it is, if several parameters are stored as
      one.
  """

  stored: str
  path: str
  axes: str
  part: Part | None = None

  @property
  def letters(self) -> str:
    """The letters of the parameter's own axes."""
    return configs.letters(self.path)

  @property
  def stacked(self) -> bool:
    """Whether every layer has its own stored tensor."""
    return "{}" in self.stored

  def names(self, layers: int) -> list[str]:
    """The stored names, one for each layer if stacked."""
    if not self.stacked:
      return [self.stored]
    return [self.stored.format(layer) for layer in range(layers)]

  def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the tensor in the checkpoint."""
    shape = self._own_shape(sizes)
    if self.part is not None:
      shape[self.part.axis] = self.part.size
    return tuple(shape)

  def from_stored(
    self, array: np.ndarray, sizes: Mapping[str, int]
  ) -> np.ndarray:
    """One layer's parameter, split and transposed; a view where possible."""
    if self.part is not None:
      array = array.take(self.part.index, self.part.axis)
    letters = self.axes.replace(" ", "")
    split = array.reshape([sizes[letter] for letter in letters])
    return np.einsum(f"{letters}->{self.letters}", split)

  def to_stored(
    self, array: np.ndarray, sizes: Mapping[str, int], stored: np.ndarray
  ) -> None:
    """The inverse of `from_stored`: writes the parameter into its tensor."""
    letters = self.axes.replace(" ", "")
    split = np.einsum(f"{self.letters}->{letters}", array)
    index: list[Any] = [slice(None)] * stored.ndim
    if self.part is not None:
      index[self.part.axis] = self.part.index
    stored[tuple(index)] = split.reshape(self._own_shape(sizes))

  def _own_shape(self, sizes: Mapping[str, int]) -> list[int]:
    return [
      int(np.prod([sizes[letter] for letter in axis]))
      for axis in self.axes.split()
    ]


def parts(*sizes: int, axis: int = 0) -> list[Part]:
  """Parameters that lie one after the other along an axis."""
  ends = np.cumsum(sizes)
  return [
    Part(axis, int(ends[-1]), np.arange(end - size, end))
    for size, end in zip(sizes, ends, strict=True)
  ]


def alternating(blocks: int, sizes: Sequence[int], axis: int = 0) -> list[Part]:
  """Parameters that lie block by block, some of each in every block."""
  inner = parts(*sizes)
  block = sum(sizes)
  starts = np.arange(blocks)[:, None] * block
  return [
    Part(axis, blocks * block, (starts + part.index[None, :]).reshape(-1))
    for part in inner
  ]


def linear(stored: str, path: str) -> list[tuple[str, str, str]]:
  """The rows of torch's Linear: a weight, stored out x in, and its bias.

  The bias is one of the outputs' axes; `present` drops it where there is none.
  """
  stem, letters = path.rsplit("_", 1)
  split = 1 if letters[0] == "D" else len(letters) - 1
  ins, outs = letters[:split], letters[split:]
  return [
    (f"{stored}.weight", path, f"{outs} {ins}"),
    (f"{stored}.bias", f"{stem}_bias_{outs}", outs),
  ]


def norm(stored: str, path: str) -> list[tuple[str, str, str]]:
  """The rows of torch's LayerNorm: a scale and its bias."""
  stem, letter = path.rsplit("_", 1)
  return [
    (f"{stored}.weight", path, letter),
    (f"{stored}.bias", f"{stem}_bias_{letter}", letter),
  ]


def present(
  config: configs.ModelConfig, rows: Iterable[Sequence[Any]]
) -> list[Tensor]:
  """The rows whose parameters this architecture has."""
  paths = _paths(config)
  return [Tensor(*row) for row in rows if row[1] in paths]


@functools.lru_cache
def _paths(config: configs.ModelConfig) -> frozenset[str]:
  """The path of every parameter, as the networks name them."""
  init = networks.Networks(config).init
  policy = jax.eval_shape(init, jax.random.key(0))
  return frozenset(path for path, _ in walk(policy))


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
  """Sets the leaf at a path, making the dictionaries on the way."""
  *parents, name = path.split("/")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[name] = leaf


def walk(
  tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Every leaf with its path."""
  for name, node in tree.items():
    if isinstance(node, Mapping):
      yield from walk(node, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", node
