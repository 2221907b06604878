"""The smallest change of settings that makes a run fit.

Changes that do not change the method come first: smaller micro-batches, more
rematerialisation, a smaller dtype of activations, more shards. LoRA, which is
another method, comes last.
"""

import functools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from reft_jax.planner import hardware
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout

Settings = dict[str, Any]
# Changes that may help, by name: settings, the smallest change first.
Knobs = Mapping[str, Sequence[Settings]]

# Another method, which needs less.
LORA: Knobs = {"lora.rank": [{"lora.rank": 16}]}


def smallest(
  knobs: Knobs,
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

  def need(options: Mapping[str, Settings]) -> float:
    settings = _merged(options)
    key = tuple(sorted(settings.items()))
    if key not in tried:
      tried[key] = needs(settings)
    return tried[key]

  chosen: dict[str, Settings] = {}
  best = now
  for name, options in knobs.items():
    turned = chosen | {name: options[-1]}
    if need(turned) <= best:
      chosen, best = turned, need(turned)
    if best <= limit:
      break
  if best > limit:
    return None
  for name in reversed(list(chosen)):
    less = {other: x for other, x in chosen.items() if other != name}
    if less and need(less) <= limit:
      chosen = less
      continue
    for option in knobs[name][:-1]:
      milder = chosen | {name: option}
      if need(milder) <= limit:
        chosen = milder
        break
  return _merged(chosen)


def _merged(options: Mapping[str, Settings]) -> Settings:
  return functools.reduce(operator.or_, options.values(), {})


def knobs(
  subject: subjects.Subject,
  target: hardware.Target,
  laid_out: layout.Layout,
  failing: Collection[str],
) -> Knobs:
  """The changes that may help the failing phases of the current layout.

  Micro-batches go down to one row. With more shards than rows they are padded,
  but a larger tensor axis leaves fewer shards.
  """
  config, model = subject.config, subject.config.model
  found: dict[str, list[Settings]] = {}

  def add(key: str, values: Sequence[Any]) -> None:
    if values:
      found[key] = [{key: value} for value in values]

  if "evaluate" in failing:
    shards = target.devices // laid_out.sampler_tensor
    fewer = _fewer(config.evaluation.batch_size, shards)
    add("evaluation.batch_size", fewer)
  stages = []
  if subject.supervised and "supervised" in failing:
    stages.append(subject.supervised)
  if "online update" in failing:
    stages.append("online_st")
  if {"update", "score"} & set(failing):
    stages.append("reft")
  for name in stages:
    rows = getattr(config, name).micro_batch
    divisors = [n for n in range(rows // 2, 0, -1) if rows % n == 0]
    add(f"{name}.micro_batch_size", divisors)
  if stages:
    kinds = ("none", "dots", "block")
    add("model.remat", kinds[kinds.index(model.remat) + 1 :])
  if model.compute_dtype != "bfloat16":
    add("model.compute_dtype", ["bfloat16"])
  if stages and laid_out.gather == "step":
    add("mesh.gather", ["layer"])
  spread = {"mesh.data": 1, "mesh.fsdp": -1}
  if laid_out.data != 1:
    found["mesh.fsdp"] = [spread]
  heads = subject.shape.kv_heads
  splits = [n for n in (2, 4, 8) if target.devices % n == heads % n == 0]
  if {"sample", "online sample", "evaluate"} & set(failing):
    more = [n for n in splits if n > laid_out.sampler_tensor]
    add("mesh.sampler_tensor", more)
  if more := [n for n in splits if n > laid_out.tensor]:
    found["mesh.tensor"] = [spread | {"mesh.tensor": n} for n in more]
  return found


def _fewer(rows: int, shards: int) -> list[int]:
  """Successive halves of `rows`, multiples of `shards` as long as larger."""
  found = []
  while rows > 1:
    rows //= 2
    rows -= rows % shards if rows > shards else 0
    found.append(rows)
  return found
