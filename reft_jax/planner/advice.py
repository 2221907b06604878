"""The smallest change of settings that makes a run fit.

Changes that do not change the method come first: smaller micro-batches, more
rematerialisation, a smaller dtype of activations, more shards. LoRA, which is
another method, comes last.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from reft_jax.planner import hardware
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout

Settings = dict[str, Any]

_LORA_RANK = 16


@dataclasses.dataclass(frozen=True)
class Knob:
  """One change that may help.

  Attributes:
    name: its name.
    options: settings by their keys, the smallest change first.
  """

  name: str
  options: Sequence[Mapping[str, Any]]


def smallest(
  knobs: Sequence[Knob],
  needs: Callable[[Settings], float],
  limit: float,
  now: float = math.inf,
) -> Settings | None:
  """The smallest change that fits; None if none does.

  Knobs are turned in order, each to its last option, until the run fits; one
  that makes it worse is left out. Then each is turned back as far as possible,
  the last and largest change first.

  Args:
    knobs: the possible changes, the smallest first.
    needs: the memory that settings need; inf if it is only known to be too
      much.
    limit: the memory available.
    now: the memory needed without any change.
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


def _merged(options: Iterable[Mapping[str, Any]]) -> Settings:
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
  """The changes that may help the failing phases of the current layout.

  Micro-batches go down to one row. With more shards than rows they are padded,
  but a larger tensor axis leaves fewer shards.
  """
  config, model = subject.config, subject.config.model
  found = []
  if "evaluate" in failing:
    shards = target.devices // laid_out.sampler_tensor
    rows = _fewer(config.evaluation.batch_size, shards)
    found.append(
      Knob("evaluation", [{"evaluation.batch_size": n} for n in rows])
    )
  stages = []
  if subject.supervised and "supervised" in failing:
    stages.append(subject.supervised)
  if "online update" in failing:
    stages.append("online_st")
  if {"update", "score"} & set(failing):
    stages.append("reft")
  for name in stages:
    stage = getattr(config, name)
    key = f"{name}.micro_batch_size"
    divisors = _divisors(stage.micro_batch)
    found.append(Knob(key, [{key: n} for n in divisors]))
  if stages:
    kinds = ("none", "dots", "block")
    stronger = kinds[kinds.index(model.remat) + 1 :]
    found.append(Knob("remat", [{"model.remat": kind} for kind in stronger]))
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
  """LoRA, if the run does not have it already."""
  if subject.config.lora.rank:
    return []
  return [Knob("lora", [{"lora.rank": _LORA_RANK}])]


def _divisors(rows: int) -> list[int]:
  """The proper divisors of `rows`, the largest first."""
  return [n for n in range(rows // 2, 0, -1) if rows % n == 0]


def _fewer(rows: int, shards: int) -> list[int]:
  """Successive halves of `rows`, multiples of `shards` as long as larger."""
  found = []
  while rows > 1:
    rows //= 2
    rows -= rows % shards if rows > shards else 0
    found.append(rows)
  return found
