"""What to change so that a run fits: the smallest change that does.

Changes that leave what is learnt as it is come first: fewer rows at a time,
more computed again, a narrower dtype of activations, weights spread further.
Adapters instead of weights, which is another method, come last.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from reft_jax.planner import hardware
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout

Settings = dict[str, Any]

_LORA_RANK = 16


@dataclasses.dataclass(frozen=True)
class Knob:
  """One thing that may be changed.

  Attributes:
    name: what it is.
    options: settings by their keys, the mildest change first.
  """

  name: str
  options: Sequence[Mapping[str, Any]]


def smallest(
  knobs: Sequence[Knob],
  needs: Callable[[Settings], float],
  limit: float,
  now: float = math.inf,
) -> Settings | None:
  """The smallest change that fits, None where none does.

  Knobs are turned in their order, each as far as it goes, until it fits; those
  that make it worse are left alone. Then each is turned back as far as may be,
  the last and largest change first.

  Args:
    knobs: what may be changed, the smallest change first.
    needs: the memory that settings need; inf where that is known to be too
      much and no more.
    limit: what there is.
    now: the memory that is needed without any change.
  """
  tried: dict[tuple[tuple[str, Any], ...], float] = {}

  def need(options: Mapping[str, Mapping[str, Any]]) -> float:
    settings = _merged(options.values())
    key = tuple(sorted(settings.items()))
    if key not in tried:
      tried[key] = needs(settings)
    return tried[key]

  chosen: dict[str, Mapping[str, Any]] = {}
  best = now
  for knob in knobs:
    turned = chosen | {knob.name: knob.options[-1]}
    if need(turned) <= best:
      chosen, best = turned, need(turned)
    if best <= limit:
      break
  if best > limit:
    return None
  for knob in reversed(knobs):
    if knob.name not in chosen:
      continue
    less = {name: x for name, x in chosen.items() if name != knob.name}
    if less and need(less) <= limit:
      chosen = less
      continue
    for option in knob.options[:-1]:
      milder = chosen | {knob.name: option}
      if need(milder) <= limit:
        chosen = milder
        break
  return _merged(chosen.values())


def _merged(options) -> Settings:
  merged: Settings = {}
  for option in options:
    merged |= option
  return merged


def knobs(
  subject: subjects.Subject,
  target: hardware.Target,
  laid_out: layout.Layout,
  failing: Collection[str],
) -> list[Knob]:
  """What may help phases that do not fit, as it is `laid_out` now.

  Rows go down to one. Where devices share more than that they are filled up,
  but a larger tensor axis leaves fewer devices to share them.
  """
  config, model = subject.config, subject.config.model
  found = []
  if "evaluate" in failing:
    sharing = target.devices // laid_out.sampler_tensor
    rows = _fewer(config.evaluation.batch_size, sharing)
    found.append(
      Knob("evaluation", [{"evaluation.batch_size": n} for n in rows])
    )
  stages = []
  if "supervised" in failing:
    stages.append(subject.supervised)
  if "online update" in failing:
    stages.append("online_st")
  if {"update", "score"} & set(failing):
    stages.append("reft")
  for name in stages:
    stage = getattr(config, name)
    rows = getattr(stage, "minibatch_size", None) or stage.batch_size
    rows = stage.micro_batch_size or rows
    key = f"{name}.micro_batch_size"
    found.append(Knob(key, [{key: n} for n in _divisors(rows)]))
  if stages:
    kinds = ("none", "dots", "block")
    more = kinds[kinds.index(model.remat) + 1 :]
    found.append(Knob("remat", [{"model.remat": kind} for kind in more]))
  if model.compute_dtype != "bfloat16":
    found.append(Knob("dtype", [{"model.compute_dtype": "bfloat16"}]))
  if stages and laid_out.gather == "step":
    found.append(Knob("gather", [{"mesh.gather": "layer"}]))
  if laid_out.data != 1:
    found.append(Knob("fsdp", [{"mesh.data": 1, "mesh.fsdp": -1}]))
  splits = [
    n
    for n in (2, 4, 8)
    if target.devices % n == 0 and subject.shape.kv_heads % n == 0
  ]
  if {"sample", "online sample", "evaluate"} & set(failing):
    more = [n for n in splits if n > laid_out.sampler_tensor]
    found.append(Knob("sampler", [{"mesh.sampler_tensor": n} for n in more]))
  spread = {"mesh.data": 1, "mesh.fsdp": -1}
  more = [n for n in splits if n > laid_out.tensor]
  found.append(Knob("tensor", [spread | {"mesh.tensor": n} for n in more]))
  return [knob for knob in found if knob.options]


def lora(subject: subjects.Subject) -> list[Knob]:
  """Adapters, where there are none."""
  if subject.config.lora.rank:
    return []
  return [Knob("lora", [{"lora.rank": _LORA_RANK}])]


def larger(target: hardware.Target) -> list[hardware.Target]:
  """More of the same: the next four sizes."""
  if target.kind == "cpu":
    return []
  if target.chip.platform == "tpu":
    return hardware.larger_slices(target)[:4]
  return [
    hardware.target(f"{target.kind} x{n}")
    for n in (2, 4, 8, 16, 32, 64, 128)
    if n > target.devices
  ][:4]


def _divisors(rows: int) -> list[int]:
  """Proper divisors, largest first: micro-batches of `rows`."""
  return [n for n in range(rows // 2, 0, -1) if rows % n == 0]


def _fewer(rows: int, ways: int) -> list[int]:
  """Halves, largest first, of whole rows for each of `ways` devices."""
  found = []
  while rows > 1:
    rows //= 2
    rows -= rows % ways if rows > ways else 0
    found.append(rows)
  return found
