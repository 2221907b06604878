"""A family's table of tensors, and the way between the two layouts."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from reft_jax.models import config as configs


class Tensor(NamedTuple):
  """A parameter and the tensor of a checkpoint that holds it.

  Attributes:
    stored: the checkpoint's name; {} stands for the number of the layer.
    path: the policy's path, its keys joined by slashes.
    axes: the letters of the stored axes; letters written together are merged
      into one axis, as in "NH D".
  """

  stored: str
  path: str
  axes: str

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
    return tuple(
      int(np.prod([sizes[letter] for letter in axis]))
      for axis in self.axes.split()
    )

  def from_stored(
    self, array: np.ndarray, sizes: Mapping[str, int]
  ) -> np.ndarray:
    """One layer's parameter, split and transposed; a view where possible."""
    letters = self.axes.replace(" ", "")
    split = array.reshape([sizes[letter] for letter in letters])
    return np.einsum(f"{letters}->{self.letters}", split)

  def to_stored(
    self, array: np.ndarray, sizes: Mapping[str, int]
  ) -> np.ndarray:
    """The inverse of `from_stored`, contiguous."""
    letters = self.axes.replace(" ", "")
    split = np.einsum(f"{self.letters}->{letters}", array)
    return np.ascontiguousarray(split.reshape(self.stored_shape(sizes)))


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
