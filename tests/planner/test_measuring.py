"""The programs of a run on shapes: memory, collectives, real runs' shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import planned
import pytest
import tiny

from reft_jax.learning import learner as learner_lib
from reft_jax.learning import optim
from reft_jax.learning import supervised as supervised_lib
from reft_jax.planner import (
  hardware,
  measuring,
  plans,
  programs,
  shapes,
  timing,
)


def shapes_of(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_arithmetic_agrees_with_the_compiler_on_what_stays():
  some, target = planned.tiny_subject(), hardware.target("cpu x8")
  compiled = measuring.measure(some, target, plans.PHASES)
  assert [m.name for m in compiled] == [
    *("sft", "publish", "prefill", "decode", "assess", "update"),
    *("prefill", "decode"),
  ]
  counted = measuring.measure(some, target, ())
  for ours, theirs in zip(counted, compiled, strict=True):
    assert theirs.traffic is not None
    assert theirs.rest >= 0
    assert ours.kinds == theirs.kinds
    assert ours.total <= theirs.total
  kinds = {m.name: set(m.kinds) for m in counted}
  assert kinds["sft"] == {"weights", "optimizer"}
  assert kinds["update"] == {"weights", "optimizer", "reference"}
  assert kinds["decode"] == set(measuring.KINDS)


def test_arguments_are_as_large_as_the_compiler_says():
  mesh = tiny.mesh((1, 8, 1))
  made, _ = planned.recorded(programs.reinforced, planned.tiny_subject(), mesh)
  update = made["update"]
  with jax.set_mesh(mesh):
    traced = update.function.trace(*update.arguments, **update.keywords)
  memory = traced.lower().compile().memory_analysis()
  state, experience, _ = update.arguments
  # jit drops the arguments that the objective does not read.
  unread = (
    experience.reference_logprobs_BT,
    experience.rollout.logprobs_BT,
    experience.rollout.ended_B,
  )
  inputs = (update.arguments, update.keywords)
  given = shapes.device_bytes(inputs) - shapes.device_bytes(unread)
  assert given == memory.argument_size_in_bytes
  assert shapes.device_bytes(state) == memory.alias_size_in_bytes


def test_shapes_are_those_of_a_real_run():
  """The state on shapes is the state that a run makes, shard by shard."""
  some = dataclasses.replace(planned.tiny_subject(), shape=tiny.CONFIG)
  mesh = tiny.mesh((1, 8, 1))
  made, stage = planned.recorded(programs.reinforced, some, mesh)
  params = {
    "policy": tiny.policy(),
    "value": tiny.make().init_value(tiny.policy(), "shared"),
  }
  optimizer = optim.build(some.config.reft.optimizer, 10)
  state = jax.eval_shape(lambda p: learner_lib.init_state(p, optimizer), params)
  assert shapes_of(stage.arrays.state) == shapes_of(state)
  prefill = made["prefill"]
  rows = jax.eval_shape(prefill.function, *prefill.arguments)
  assert rows.response_BT.shape == (8, 8)


@pytest.mark.slow
def test_online_self_training_is_planned():
  target = hardware.target("cpu x8")
  some = planned.tiny_subject(
    *("stages=[warmup,online_st]", "warmup.batch_size=8"),
    *("online_st.batch_size=16", "online_st.minibatch_size=8"),
    "online_st.passes=3",
  )
  measured = measuring.measure(some, target, ("online update",))
  assert [(m.phase, m.name) for m in measured] == [
    ("supervised", "warmup"),
    *(("online sample", name) for name in ("publish", "prefill", "decode")),
    ("online update", "online_st"),
    *(("evaluate", name) for name in ("prefill", "decode")),
  ]
  by_name = {m.name: m for m in measured}
  update = by_name["online_st"]
  assert update.times == 3 * 2
  assert update.traffic
  assert update.kinds == by_name["warmup"].kinds
  assert "reference" not in update.kinds
  works = timing.work(some, target, (1000, 1000))
  # Two batches of minibatch_size rows, passes x minibatches times.
  assert works["online update"].flops == 2 * 6 * works["supervised"].flops
  time = timing.times(some, target, measured, (1000, 1000))
  parts = [
    time["phases"][f"online {x}"]["seconds"] for x in ("sample", "update")
  ]
  assert time["online_st"]["step"] == pytest.approx(sum(parts))
  alone = some.changed({"online_st.gold_share": 0.0})
  once = timing.work(alone, target, (1000, 1000))
  assert once["online update"].flops == works["online update"].flops / 2


def test_shapes_of_online_self_training_are_those_of_a_real_step():
  """Its two batches are as wide as a rollout and a question's annotation."""
  some = planned.tiny_subject("stages=[online_st]", "online_st.batch_size=8")
  mesh = tiny.mesh((1, 8, 1))
  made, _ = planned.recorded(programs.online, some, mesh)
  sampled = shapes.Shapes(some, mesh).rollout(8)
  correct_B = jax.ShapeDtypeStruct((8,), jnp.bool_)
  real = jax.eval_shape(supervised_lib.imitations, sampled, correct_B)
  _, *batches = made["online_st"].arguments
  assert list(map(shapes_of, batches)) == [shapes_of(real)] * 2


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G"
      " of 15.75G hbm. Exceeded hbm capacity by 4.75G.",
      20.5 * 2**30,
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
      " for HLO temporaries (18.50G) exceeds available HBM (15.75G).",
      100 + 18.5 * 2**30,
    ),
    ("RESOURCE_EXHAUSTED: something new", 100),
    ("INTERNAL: another reason", None),
  ],
)
def test_refusals_say_how_much_is_needed(message, needed):
  assert measuring.refused(message, given=100) == needed


def test_adapters_leave_the_reference_where_the_weights_are():
  target = hardware.target("cpu x8")
  counted = measuring.measure(planned.tiny_subject("lora.rank=2"), target, ())
  update = next(m for m in counted if m.name == "update")
  # Of its own it has the adapter that it started with, which is small.
  assert update.kinds["reference"] < update.kinds["weights"] / 2
  assert update.kinds["optimizer"] < update.kinds["weights"]
