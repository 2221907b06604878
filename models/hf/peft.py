"""Adapters as folders that the PEFT library opens.

`peft.PeftModel.from_pretrained(base, folder)` has such a folder's adapter on
the model that it was made for.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from reft_jax.models import config as configs
from reft_jax.models import layers
from reft_jax.models.hf import families, tensor_files
from reft_jax.models.hf.families import table

FOLDER = "adapter"

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEAD = "score"  # Of a classifier, in every family.


class Adapter(NamedTuple):
  """An adapter and what it belongs to."""

  params: Mapping[str, Any]  # A tree as of `models.lora`.
  rank: int
  alpha: float  # The product A B is scaled by alpha / rank.
  base: str  # The model it was made for: a folder, or owner/name[@revision].


def save(
  folder: pathlib.Path,
  config: configs.ModelConfig,
  adapter: Adapter,
  *,
  head_DC: Any = None,
) -> None:
  """Writes adapter_config.json and adapter_model.safetensors, in fp32.

  PEFT adapts tensors as they are stored. Where q, k and v (or gate and up) are
  parts of one, theirs become one adapter: the A stacked, the B on the diagonal
  of blocks, and a rank and an alpha that are as many times larger.

  Args:
    folder: is made.
    config: the architecture.
    adapter: the adapter.
    head_DC: the head of a classifier, which is saved whole.
  """
  params = traverse_util.flatten_dict(jax.device_get(adapter.params), sep="/")
  groups: dict[str, list[table.Tensor]] = {}
  for row in families.tensors(config):
    if len(row.letters) > 1 and layers.adapter_names(row.path)[0] in params:
      groups.setdefault(row.stored, []).append(row)

  arrays: dict[str, np.ndarray] = {}
  for layer in range(config.layers):
    for stored, rows in groups.items():
      name = _PREFIX + stored.format(layer).removesuffix(".weight")
      down, up = _factors(rows, params, layer, config.sizes)
      arrays[f"{name}.lora_A.weight"] = down
      arrays[f"{name}.lora_B.weight"] = up
  if head_DC is not None:
    head = np.ascontiguousarray(np.transpose(jax.device_get(head_DC)))
    arrays[f"{_PREFIX}{_HEAD}.weight"] = head

  folder.mkdir(parents=True)
  tensor_files.write_file(
    folder / _WEIGHTS,
    {name: array.shape for name, array in arrays.items()},
    "F32",
    arrays.__getitem__,
  )
  text = json.dumps(_fields(adapter, groups, head_DC), indent=2) + "\n"
  (folder / _CONFIG).write_text(text, encoding="utf-8")


def _fields(adapter: Adapter, groups: Any, head: Any) -> dict[str, Any]:
  """What adapter_config.json holds."""
  base, _, revision = adapter.base.partition("@")
  alpha = adapter.alpha
  alpha = int(alpha) if alpha == int(alpha) else alpha
  # Modules by what their names have in common in all layers.
  counts = {
    stored.removesuffix(".weight").rpartition("{}.")[2]: len(rows)
    for stored, rows in groups.items()
  }
  fused = {name: count for name, count in counts.items() if count > 1}
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
    "base_model_name_or_path": base,
    "revision": revision or None,
    "inference_mode": True,
    "r": adapter.rank,
    "lora_alpha": alpha,
    "rank_pattern": {n: count * adapter.rank for n, count in fused.items()},
    "alpha_pattern": {n: count * alpha for n, count in fused.items()},
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": list(counts),
    "modules_to_save": None if head is None else [_HEAD],
    "fan_in_fan_out": any(_inputs(rows[0]) == 0 for rows in groups.values()),
  }


def _inputs(row: table.Tensor) -> int:
  """Which of a weight's two stored axes is that of its inputs."""
  down, _ = layers.adapter_names(row.path)
  letters = set(configs.letters(down)) - {"R"}
  return [set(axis) for axis in row.axes.split()].index(letters)


def _factors(
  rows: Sequence[table.Tensor],
  params: Mapping[str, np.ndarray],
  layer: int,
  sizes: Mapping[str, int],
) -> tuple[np.ndarray, np.ndarray]:
  """A (rank x inputs) and B (outputs x rank) of one layer's stored tensor."""
  downs, ups = [], []
  for row in rows:
    ins = _inputs(row)
    groups, (down, up) = row.axes.split(), layers.adapter_names(row.path)
    a, b = params[down][layer], params[up][layer]
    rank = a.shape[-1]
    a = np.einsum(f"{configs.letters(down)}->R{groups[ins]}", a)
    b = np.einsum(f"{configs.letters(up)}->{groups[1 - ins]}R", b)
    downs.append(a.reshape(rank, -1))
    ups.append(b.reshape(-1, rank))
  total = rows[0].stored_shape(sizes)[1 - _inputs(rows[0])]
  together = np.zeros((total, rank * len(rows)), np.float32)
  for number, (row, up_OR) in enumerate(zip(rows, ups, strict=True)):
    places = slice(None) if row.part is None else row.part.index
    together[places, number * rank : (number + 1) * rank] = up_OR
  return np.concatenate(downs), together
