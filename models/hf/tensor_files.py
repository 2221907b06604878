"""Tensors on disk, by their names: safetensors or pickles, whole or in shards.

Nothing is read before it is asked for, and a tensor at a time. Tensors are read
with ordinary reads and not through a memory map, whose pages would count as
this process's memory.
"""

import functools
import json
import math
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from reft_jax.models import errors

# By the names that safetensors gives them.
DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}

_WHOLE = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_INDEX = ".index.json"
_OURS = re.compile(
  r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)"
  r"(\.index\.json)?"
)


class Stored(NamedTuple):
  """A tensor on disk."""

  shape: tuple[int, ...]
  dtype: str  # By safetensors' name; of a type not in DTYPES, any that says it.
  read: Callable[[], np.ndarray]  # Only if the type is in DTYPES.


# Reading ---------------------------------------------------------------------


def find(folder: pathlib.Path) -> dict[str, Stored]:
  """All tensors of a folder, by their names.

  safetensors are preferred to pickles, and one file to several.

  Raises:
    UnsupportedModelError: there are no files, or one of them is missing,
      damaged or of no known kind.
  """
  for whole, opened in ((_WHOLE, _safetensors), (_PICKLED, _pickled)):
    if (folder / whole).is_file():
      return opened(folder / whole)
    index = folder / (whole + _INDEX)
    if index.is_file():
      tensors: dict[str, Stored] = {}
      for shard in _shards(index):
        if not (folder / shard).is_file():
          raise errors.UnsupportedModelError(
            f"{folder / shard} cannot be read: it does not exist, but "
            f"{index.name} names it; fetch it."
          )
        tensors |= opened(folder / shard)
      return tensors
  raise errors.UnsupportedModelError(
    f"{folder} holds neither {_WHOLE} nor {_PICKLED}, nor the index of their "
    "shards; fetch the weights too."
  )


def _shards(index: pathlib.Path) -> list[str]:
  """The files that an index spreads the tensors over."""
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(shard, str) and shard == pathlib.PurePath(shard).name
    for shard in weight_map.values()
  ):
    raise errors.UnsupportedModelError(
      f"{index}: the field 'weight_map' must be an object that names the file "
      "of each tensor; fetch the index again."
    )
  return sorted(set(weight_map.values()))


def _safetensors(file: pathlib.Path) -> dict[str, Stored]:
  try:
    # Holds what the header says against the length of the file.
    with safetensors.safe_open(file, framework="np"):
      pass
    with file.open("rb") as opened:
      length = int.from_bytes(opened.read(8), "little")
      header = json.loads(opened.read(length))
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise _unreadable(file, error) from None
  header.pop("__metadata__", None)

  def describe(field: Mapping[str, Any]) -> Stored:
    shape, dtype = tuple(field["shape"]), field["dtype"]
    start, end = (8 + length + offset for offset in field["data_offsets"])
    return Stored(
      shape, dtype, functools.partial(_span, file, start, end, shape, dtype)
    )

  return {name: describe(field) for name, field in header.items()}


def _span(
  file: pathlib.Path, start: int, end: int, shape: Sequence[int], dtype: str
) -> np.ndarray:
  """The tensor in a span of a file's bytes."""
  try:
    content = np.fromfile(file, np.uint8, end - start, offset=start)
  except OSError as error:
    raise _unreadable(file, error) from None
  if len(content) < end - start:
    raise _unreadable(file, "it has become shorter")
  return content.view(DTYPES[dtype]).reshape(shape)


def _pickled(file: pathlib.Path) -> dict[str, Stored]:
  try:
    import torch
  except ImportError:
    raise errors.UnsupportedModelError(
      f"{file} is a pickle, which only PyTorch reads: pip install torch, or "
      "fetch the model as safetensors."
    ) from None
  try:
    state = torch.load(
      file,
      map_location="cpu",
      weights_only=True,
      mmap=zipfile.is_zipfile(file),  # Older pickles cannot be mapped.
    )
  except Exception as error:  # It has no common type for damage.
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
      raise errors.UnsupportedModelError(
        f"{file} holds more than tensors and could run programs, so it is not "
        "opened; fetch the model as safetensors."
      ) from None
    raise _unreadable(file, error) from None
  if not isinstance(state, dict) or not all(
    isinstance(name, str) and isinstance(tensor, torch.Tensor)
    for name, tensor in state.items()
  ):
    raise errors.UnsupportedModelError(
      f"{file} holds something else than tensors by their names; fetch the "
      "model as safetensors."
    )
  dtypes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

  def read(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own.
      return tensor.view(torch.int16).numpy().view(DTYPES["BF16"])
    return tensor.numpy()

  return {
    name: Stored(
      tuple(tensor.shape),
      dtypes.get(tensor.dtype, str(tensor.dtype)),
      functools.partial(read, tensor),
    )
    for name, tensor in state.items()
  }


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The fields of a JSON object.

  Raises:
    UnsupportedModelError: there is no such file, or it holds something else.
  """
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise errors.UnsupportedModelError(
      f"{file} does not exist; give a folder in the Hugging Face layout, "
      "with config.json and model.safetensors."
    ) from None
  except (OSError, ValueError) as error:
    raise _unreadable(file, error) from None
  if not isinstance(content, dict):
    raise errors.UnsupportedModelError(f"{file} does not hold a JSON object.")
  return content


def _unreadable(
  file: pathlib.Path, reason: object
) -> errors.UnsupportedModelError:
  lines = str(reason).strip().splitlines() or [type(reason).__name__]
  line = lines[0].rstrip(".")
  return errors.UnsupportedModelError(
    f"{file} cannot be read: {line:.200}; fetch it again."
  )


# Writing ---------------------------------------------------------------------


def write(
  folder: pathlib.Path,
  shapes: Mapping[str, Sequence[int]],
  dtype: str,
  array_of: Callable[[str], np.ndarray],
  max_shard_bytes: int,
) -> None:
  """Writes tensors as safetensors, in as many files as it takes.

  Args:
    folder: exists, and holds no weights.
    shapes: of each tensor, in the order in which they are written.
    dtype: of all of them, one of DTYPES.
    array_of: the tensor of a name; asked for once, when it is written.
    max_shard_bytes: several files are written if all tensors are more than
      this; one that is larger by itself has a file of its own.
  """
  sizes = {
    name: math.prod(shape) * DTYPES[dtype].itemsize
    for name, shape in shapes.items()
  }
  shards: list[list[str]] = [[]]
  room = max_shard_bytes
  for name, size in sizes.items():
    if shards[-1] and size > room:
      shards.append([])
      room = max_shard_bytes
    shards[-1].append(name)
    room -= size
  files = {
    f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
    for number, names in enumerate(shards, 1)
  }
  if len(shards) == 1:
    files = {_WHOLE: shards[0]}
  for file, names in files.items():
    chosen = {name: tuple(shapes[name]) for name in names}
    write_file(folder / file, chosen, dtype, array_of)
  if len(shards) > 1:
    count = sum(math.prod(shape) for shape in shapes.values())
    total = sum(sizes.values())
    index = {
      "metadata": {"total_parameters": count, "total_size": total},
      "weight_map": {
        name: file for file, names in files.items() for name in names
      },
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / (_WHOLE + _INDEX)).write_text(text)


def remove(folder: pathlib.Path) -> None:
  """Removes the files that `find` would look at."""
  for file in folder.iterdir():
    if _OURS.fullmatch(file.name):
      file.unlink()


def write_file(
  file: pathlib.Path,
  shapes: Mapping[str, Sequence[int]],
  dtype: str,
  array_of: Callable[[str], np.ndarray],
) -> None:
  """One file of safetensors, a tensor at a time: never all are in memory."""
  # "pt" is what transformers insists on; the layout has no other meaning.
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
    header[name] = {
      "dtype": dtype,
      "shape": list(shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with file.open("wb") as opened:
    opened.write(len(text).to_bytes(8, "little"))
    opened.write(text)
    for name in shapes:
      # Whole bytes: not every type here can be written as it is.
      opened.write(array_of(name).reshape(-1).view(np.uint8).data)
