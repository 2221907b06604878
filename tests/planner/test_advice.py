"""The smallest changes of settings that make a run fit."""

import dataclasses

import planned
import pytest

from reft_jax.planner import advice, hardware, measuring, plans


def test_the_smallest_change_on_a_toy():
  tried = []
  knobs = {
    "rows": [{"rows": 8}, {"rows": 4}, {"rows": 2}],
    "remat": [{"remat": "dots"}, {"remat": "block"}],
    "dtype": [{"dtype": "bfloat16"}],
  }

  def bytes_of(settings):
    tried.append(settings)
    rows, remat = settings.get("rows", 16), settings.get("remat", "none")
    size = 4 if "dtype" not in settings else 2
    return rows * size * {"none": 8, "dots": 4, "block": 1}[remat]

  def smallest(limit):
    return advice.smallest(knobs, bytes_of, limit)

  assert smallest(256) == {"rows": 8}
  assert smallest(100) == {"rows": 2}
  # Both are needed; with remat there is room for more rows again.
  assert smallest(32) == {"remat": "dots", "rows": 2}
  assert smallest(8) == {"remat": "block", "rows": 2}
  assert smallest(4) == {"remat": "block", "rows": 2, "dtype": "bfloat16"}
  assert smallest(3) is None
  tried.clear()
  smallest(3)
  assert len(tried) == 3  # Each only as far as it goes.


def test_a_change_that_makes_it_worse_is_not_made():
  knobs = {"rows": [{"rows": 1}], "bf16": [{"b": 1}]}

  def needs(settings):
    return 10 + 5 * ("rows" in settings) - 4 * ("b" in settings)

  assert advice.smallest(knobs, needs, 6, now=10) == {"b": 1}
  assert advice.smallest(knobs, needs, 5, now=10) is None


def test_knobs_are_those_that_may_help():
  some = planned.tiny_subject(
    "reft.batch_size=32", "reft.minibatch_size=32", "evaluation.batch_size=64"
  )
  target = hardware.target("h100 x8")
  laid_out = measuring.laid_out(some, target)
  assert list(advice.knobs(some, target, laid_out, {"update"})) == [
    "reft.micro_batch_size",
    *("model.remat", "model.compute_dtype", "mesh.gather", "mesh.tensor"),
  ]
  knobs = advice.knobs(some, target, laid_out, {"evaluate"})
  assert next(iter(knobs)) == "evaluation.batch_size"
  assert "mesh.sampler_tensor" in knobs


@pytest.mark.parametrize(
  ("failing", "settings", "sizes"),
  [
    ("supervised", "sft.batch_size=48", [24, 16, 12, 8, 6, 4, 3, 2, 1]),
    ("supervised", "sft.batch_size=48 sft.micro_batch_size=6", [3, 2, 1]),
    ("update", "reft.batch_size=20 reft.minibatch_size=20", [10, 5, 4, 2, 1]),
    ("online update", "stages=[online_st] online_st.batch_size=6", [3, 2, 1]),
    ("evaluate", "evaluation.batch_size=100", [48, 24, 8, 4, 2, 1]),
    ("evaluate", "evaluation.batch_size=9", [4, 2, 1]),
  ],
)
def test_rows_are_tried_down_to_one(failing, settings, sizes):
  some = planned.tiny_subject(*settings.split())
  target = hardware.target("h100 x8")
  laid_out = measuring.laid_out(some, target)
  rows, *_ = advice.knobs(some, target, laid_out, {failing}).values()
  assert [size for option in rows for size in option.values()] == sizes


def test_advice_for_an_evaluation_that_no_halves_divide():
  some = planned.tiny_subject("evaluation.batch_size=100")
  target = hardware.target("cpu x8")
  less = some.changed({"evaluation.batch_size": 48})
  needed = max(m.total for m in measuring.measure(less, target, ()))
  chip = dataclasses.replace(target.chip, memory=int(1.05 * needed), reserve=0)
  target = dataclasses.replace(target, chip=chip)
  found = plans.searched(some, target, {"evaluate"}, None)
  assert found["settings"] == {"evaluation.batch_size": 48}


def test_larger_targets():
  def larger(name):
    return [t.name for t in hardware.larger(hardware.target(name))]

  assert larger("h200 x1") == ["h200 x2", "h200 x4", "h200 x8", "h200 x16"]
  assert larger("v5p-8")[0] == "v5p-16"
  assert larger("v5e-256") == []
  assert larger("cpu") == []
