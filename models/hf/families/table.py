"""What a family is: its tensors, their names and the two layouts of each.

A checkpoint stores a parameter with other axes than the networks use, perhaps
as a part of a larger tensor. A row of a family's table, a Tensor, has both.
"""

import dataclasses
import functools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import traverse_util

from reft_jax.models import config as configs
from reft_jax.models import networks
from reft_jax.models.hf.families import kinds


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """The place of a parameter in a tensor that holds several."""

  axis: int  # The stored axis that they share, and its length.
  size: int
  index: np.ndarray  # The parameter's indices along it, in its own order.


class Tensor(NamedTuple):
  """A parameter, and the tensor of a checkpoint that holds it."""

  stored: str  # The tensor's name; {} stands for the number of the layer.
  path: str  # The keys of the parameter in the policy, joined by slashes.
  # The letters of the stored axes: "NH D" has two, of sizes N H and D.
  axes: str
  part: Part | None = None  # Which part it is of a tensor that holds several.

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


class Names(NamedTuple):
  """What a family's classes and tensors are called."""

  model: str  # The class of its language models in transformers.
  classifier: str
  prefix: str  # The start of the trunk's names, which a bare trunk's lack.
  head: str  # The LM head's tensor.
  ignored: str = r"(?!)"  # A pattern of the tensors that are not read.
  # Other starts of names, and what they are replaced by.
  renamed: Mapping[str, str] = types.MappingProxyType({})


class Family(Protocol):
  """What a family's module must have.

  A family is all models with one `model_type` in config.json. To add one:

  1. Write a module with that name: its checkpoints' fields, names and tensors.
     If the family differs from another one in a few fields, call that one's
     functions, as mistral.py calls llama.py's. If its networks compute
     something new, ModelConfig first needs a switch for it.
  2. Add the module to `families.BY_TYPE`.
  3. Add a tiny model to the tests of families, and a variant for each switch
     that the family has: its logits are compared with transformers'.
  """

  # Every field that changes what is computed; `kinds.only` where one value is
  # implemented. The fields of the rope are known already, and so are those in
  # `kinds.HARMLESS`.
  FIELDS: kinds.Fields
  NAMES: Names

  def read_config(self, fields: Mapping[str, Any]) -> configs.ModelConfig:
    """The architecture that a config.json describes.

    Args:
      fields: the config.json, checked and completed by FIELDS. Null fields
        count as missing, but not those that are nullable.

    Raises:
      KeyError: a field without a default is missing.
      UnsupportedModelError: the networks cannot compute this model.
    """

  def write_config(self, config: configs.ModelConfig) -> dict[str, Any]:
    """The fields that `read_config` reads back as this architecture.

    `architectures` and `model_type` are not among them: `families.write_config`
    adds these.
    """

  def tensors(self, config: configs.ModelConfig) -> list[Tensor]:
    """One row for each parameter of a language model."""


def parts(*sizes: int, axis: int = 0) -> list[Part]:
  """Parameters one after the other along an axis."""
  ends = np.cumsum(sizes)
  return [
    Part(axis, int(ends[-1]), np.arange(end - size, end))
    for size, end in zip(sizes, ends, strict=True)
  ]


def alternating(blocks: int, sizes: Sequence[int], axis: int = 0) -> list[Part]:
  """Parameters spread over blocks, each of which has a share of every one."""
  inner = parts(*sizes)
  block = sum(sizes)
  starts = np.arange(blocks)[:, None] * block
  return [
    Part(axis, blocks * block, (starts + part.index[None, :]).reshape(-1))
    for part in inner
  ]


def pair(stored: str, path: str) -> list[tuple[str, str, str]]:
  """The rows of torch's Linear, stored out x in, or LayerNorm, and its bias.

  `present` drops the bias of a model that has none.
  """
  stem, letters = path.rsplit("_", 1)
  split = len(letters) - 1
  if split and letters[0] == "D":
    split = 1
  ins, outs = letters[:split], letters[split:]
  return [
    (f"{stored}.weight", path, f"{outs} {ins}".strip()),
    (f"{stored}.bias", f"{stem}_bias_{outs}", outs),
  ]


def fused_qkv(
  stored: str, path: str, axes: str, qkv: Sequence[Part]
) -> list[tuple[str, str, str, Part]]:
  """The rows of queries, keys and values that are parts of one tensor.

  The path and the axes, such as "trunk/blocks/attention/{}_D{}H" and "{}H D",
  are filled with q and N, k and K, v and K.
  """
  return [
    (stored, path.format(name, heads), axes.format(heads), part)
    for name, heads, part in zip("qkv", "NKK", qkv, strict=True)
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
  policy = jax.eval_shape(networks.Networks(config).init, jax.random.key(0))
  return frozenset(traverse_util.flatten_dict(policy, sep="/"))
