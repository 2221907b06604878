"""The least time of a step: formulas beside numbers worked out by hand."""

import dataclasses
import functools

import jax
import planned
import pytest

from reft_jax.planner import (
  hardware,
  measuring,
  programs,
  roofline,
  subject,
  timing,
)

WEIGHTS = {"block": 1000, "head": 200, "embedding": 200}
SIZES = {"layers": 2, "width": 10, "heads": 2, "queries": 8, "keys": 4}
TOY = roofline.Model(
  **WEIGHTS, total=1500, trainable=1500, **SIZES, ffn=20, vocab=20
)


def test_forward_flops_by_hand():
  # 3 tokens, each 2 x 1000 and, for 5 columns in 2 layers, 2 x 2 x 5 x 8 x 2.
  assert roofline.forward_flops(TOY, 3, 5) == 3 * (2000 + 320)
  assert roofline.head_flops(TOY, 3) == 1200


def test_a_decoded_token_reads_weights_and_cache():
  layout = roofline.Layout(fsdp=2)
  done = roofline.decode(TOY, layout, rows=4, columns=6)
  # bfloat16 weights but the embedding; 4 x 6 columns of K H = 4 keys and values
  # in 2 layers on two devices; 3 passes over float32 logits.
  assert (
    done.memory == 2 * 1300 + 2 * 2 * 4 * 6 * 4 * 2 / 2 + 3 * 4 * 4 * 20 / 2
  )
  assert done.flops == (4 * (2000 + 4 * 6 * 8 * 2) + 2 * 200 * 4) / 2
  assert done.near == done.far == 0


def test_a_step_costs_three_forwards_and_a_fourth_with_remat():
  rows = roofline.Rows(4, micro=4, slots=6, predicted=5)
  one = roofline.Layout()
  blocks = roofline.forward_flops(TOY, 24, 6)
  head = roofline.head_flops(TOY, 20)
  plain = roofline.learn(TOY, one, rows).flops
  assert plain == 3 * blocks + 4 * head
  remat = dataclasses.replace(TOY, remat="block")
  assert roofline.learn(remat, one, rows).flops == 4 * (blocks + head)
  adapted = dataclasses.replace(TOY, trainable=10)
  assert roofline.learn(adapted, one, rows).flops == 2 * blocks + 3 * head


def test_what_is_sent_by_hand():
  # Weights are gathered forward and backward and gradients scattered.
  rows = roofline.Rows(8, micro=4, slots=6, predicted=5)
  layout = roofline.Layout(fsdp=8)
  done = roofline.learn(TOY, layout, rows)
  assert done.near == pytest.approx(
    2 * (2 * 2 * 1500 * 7 / 8 + 4 * 1500 * 7 / 8)
  )
  # With gather=step once, however many micro-batches there are.
  done = roofline.learn(TOY, layout, rows, gather="step")
  assert done.near == pytest.approx(2 * 1500 * 7 / 8 + 2 * 4 * 1500 * 7 / 8)
  # Beyond a node, all of it is far.
  done = roofline.learn(TOY, dataclasses.replace(layout, node=4), rows)
  assert done.near == 0
  # Two all-reduces of the stream in each layer, forward, backward twice.
  rows = dataclasses.replace(rows, micro=8)
  done = roofline.learn(TOY, roofline.Layout(tensor=4), rows)
  assert done.near == pytest.approx(2 * 2 * (2 * 3 / 4) * 48 * 10 * 2 * 2)
  # One, where tensor splits only attention or only the feed-forward layer.
  one = dataclasses.replace(TOY, sums=1)
  half = roofline.learn(one, roofline.Layout(tensor=4), rows)
  assert half.near == pytest.approx(done.near / 2)


def test_seven_billion_parameters_by_hand():
  """A known figure: decoding reads 13.2 GB, 3.9 ms of an H100's bandwidth."""
  shape = subject.read_shape("codellama-7b")
  model = roofline.Model.of(shape, total=6_738_546_688)
  assert model.block == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
  # 32 layers x keys and values x 4096 x 2 bytes: 524 kB a token.
  assert roofline.cache_bytes(model, 1, 1) == 524_288
  done = roofline.decode(model, roofline.Layout(), rows=1, columns=1)
  took = roofline.seconds(done, hardware.target("h100"), "bfloat16")
  assert max(took.values()) == took["memory"]
  assert took["memory"] == pytest.approx(13.2e9 / 3.35e12, rel=0.01)
  row = roofline.Rows(1, micro=1, slots=700, predicted=699)
  learnt = roofline.learn(model, roofline.Layout(), row)
  assert learnt.flops == pytest.approx(6 * 6.6e9 * 700, rel=0.1)


def test_network_time_is_of_near_and_far_links():
  work = roofline.Work(near=450e9, far=100e9)
  took = roofline.seconds(work, hardware.target("h100 x16"), "bfloat16")
  assert took == {"compute": 0, "memory": 0, "network": pytest.approx(3.0)}


@pytest.mark.parametrize(
  ("sizes", "unsplit"),
  [
    ({"heads": 8, "kv_heads": 4, "ffn": 128, "vocab_size": 32}, ""),
    ({"heads": 8, "kv_heads": 2, "ffn": 128, "vocab_size": 32}, "K"),
    ({"heads": 6, "kv_heads": 2, "ffn": 126, "vocab_size": 30}, "NKFV"),
  ],
)
def test_what_a_tensor_axis_does_not_split_counts_on_each_device(
  sizes, unsplit
):
  some = planned.tiny_subject("data.max_prompt_tokens=64", "mesh.tensor=4")
  shape = dataclasses.replace(some.shape, width=64, head_size=16, **sizes)
  assert timing.unsplit_letters(shape, 4) == set(unsplit)
  # An axis of one device splits nothing.
  assert timing.unsplit_letters(shape, 1) == set("NKFV")
  some = dataclasses.replace(some, shape=shape)
  target = hardware.target("cpu x4")
  mesh, _ = measuring.meshes(some, target, compiled=True)
  made, _ = planned.recorded(programs.reinforced, some, mesh)
  prefill = made["prefill"]
  with jax.set_mesh(mesh):
    compiled = prefill.function.trace(*prefill.arguments).lower().compile()
  counted = compiled.cost_analysis()["flops"]
  model = roofline.Model.of(shape, total=1, tensor=4, unsplit=unsplit)
  done = roofline.prefill(model, roofline.Layout(tensor=4), 8, 64)
  assert done.flops == pytest.approx(counted, rel=0.1)


def test_weights_that_a_tensor_axis_does_not_split_by_hand():
  shape = subject.read_shape("qwen2.5-7b")
  total = 7_615_616_512
  of = functools.partial(roofline.Model.of, shape, total)
  one = of()
  eight = of(tensor=8, unsplit=timing.unsplit_letters(shape, 8))
  # 28 layers' q, k, v and o, of 28 and 4 heads of 128, are on eight devices.
  attention = 28 * 2 * 3584 * (28 + 4) * 128
  assert eight.block - one.block == 7 * attention
  assert eight.total - one.total == 7 * attention
  assert eight.trainable - one.trainable == 7 * attention
  assert (eight.head, eight.ffn) == (one.head, one.ffn)
  assert (eight.heads, eight.keys) == (8 * one.heads, 8 * one.keys)
  assert eight.sums == 1  # The feed-forward layer's alone.
  assert of(trainable=10, tensor=8, unsplit="N").trainable == 10
  untied = of(tensor=2, unsplit="V")
  assert untied.total == total + 2 * one.head
  assert untied.embedding == untied.head == 2 * one.head
