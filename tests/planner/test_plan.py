"""Plans: what compiled programs say of themselves, formulas, advice, errors."""

import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from reft_jax import plan
from reft_jax.config import loading
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import optim
from reft_jax.learning import supervised as supervised_lib
from reft_jax.models import networks
from reft_jax.planner import (
  advice,
  hardware,
  hlo,
  measuring,
  plans,
  programs,
  roofline,
  showing,
  subject,
  worker,
)
from reft_jax.runtime import console as console_lib

# Lines as three backends write them: async pairs, a loop whose trips are noted,
# one whose condition tells them, one that may stop early, a TPU's
# reduce-scatter, groups in four notations.
HLO = """\
HloModule jit_f, is_scheduled=true, num_partitions=8, entry_computation_layout=x

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%noted_body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], /*index=1*/f32[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %s = (f32[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=mesh['data'=1,'fsdp'=8,'tensor'=1] {'fsdp'}, dimensions={0}
  %d = bf16[32,8]{1,0} all-gather-done(%s), metadata={op_name="a(b)/while"}
  ROOT %t = (s32[], f32[4,8]) tuple(%p, %x)
}

%told_body (q: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %q = (s32[], f32[4,8]) parameter(0)
  %y = f32[4,8]{1,0} get-tuple-element(%q), index=1
  %f = f32[1,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %t = (s32[], f32[4,8]) tuple(%q, %y)
}

%all-reduce-scatter.2 (i: f32[4,8]) -> f32[1,8] {
  %i = f32[4,8]{1,0} parameter(0)
  %r = f32[4,8]{1,0} all-reduce(%i), replica_groups=[2,4]<=[4,2]T(1,0), \
to_apply=%add
  ROOT %z = f32[1,8]{1,0} dynamic-slice(%r), dynamic_slice_sizes={1,8}
}

%told_condition (q: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[], f32[4,8]) parameter(0)
  %n = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%n, %limit), direction=LT
}

%open_body (o: (s32[], pred[16])) -> (s32[], pred[16]) {
  %o = (s32[], pred[16]) parameter(0)
  ROOT %t = (s32[], pred[16]) tuple(%o, %o)
}

%open_condition (o: (s32[], pred[16])) -> pred[] {
  %o = (s32[], pred[16]) parameter(0)
  %e = pred[16]{0} get-tuple-element(%o), index=1
  %u = u8[16]{0} convert(%e)
  %w = u8[16]{0} all-reduce(%u), replica_groups={}, to_apply=%add
  ROOT %and = pred[] fusion(%w), kind=kLoop, calls=%fused
}

ENTRY %main.1 (x: f32[4,8], m: pred[16]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}
  %m = pred[16]{0} parameter(1)
  %w1 = (s32[], f32[4,8]) while(%x), condition=%none, body=%noted_body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0"}}
  %w2 = (s32[], f32[4,8]) while(%w1), condition=%told_condition, \
body=%told_body
  %w3 = (s32[], pred[16]) while(%m), condition=%open_condition, body=%open_body
  %c = f32[4,8]{1,0} collective-permute(%x), \
source_target_pairs={{0,1},{1,0}}
  ROOT %a2a = f32[4,8]{1,0} all-to-all(%c), replica_groups={{0,4},{1,5},{2,6}}
}
"""


def test_collectives_of_a_text_by_hand():
  found = hlo.collectives(hlo.parse(HLO), open_loop=16)
  by_kind = {each.kind: each for each in found}
  everyone = tuple(range(8))
  assert len(found) == len(by_kind) == 5
  # 4 x 8 float32 on each of 8 devices, three times.
  assert by_kind["all-gather"] == hlo.Collective(
    "all-gather", 8 * 128, everyone, 3
  )
  assert by_kind["reduce-scatter"] == hlo.Collective(
    "reduce-scatter", 128, (0, 2, 4, 6), 5
  )
  # A condition is looked at once more than its body runs.
  assert by_kind["all-reduce"] == hlo.Collective(
    "all-reduce", 16, everyone, 17, bounded=True
  )
  assert by_kind["collective-permute"].wire == 128
  assert by_kind["all-to-all"] == hlo.Collective("all-to-all", 128, (0, 4), 1)
  assert by_kind["all-gather"].wire == 8 * 128 * 7 / 8
  assert by_kind["all-reduce"].wire == 2 * 16 * 7 / 8


def test_far_traffic_is_told_from_near():
  rows = hlo.by_kind(hlo.collectives(hlo.parse(HLO)), node=4)
  sent = {row.kind: (row.near, row.far) for row in rows}
  assert sent["all-to-all"] == (0, 64)  # 0 and 4 are in two nodes of four.
  assert sent["collective-permute"] == (128, 0)
  assert sent["all-gather"] == (0, 3 * 8 * 128 * 7 / 8)


@pytest.mark.parametrize(
  ("attributes", "group"),
  [
    ("replica_groups={{0,2},{1,3}}", (0, 2)),
    ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
    ("replica_groups={}", tuple(range(8))),
  ],
)
def test_groups_in_every_notation(attributes, group):
  assert hlo.groups(attributes, 8) == group


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[4,8]{1,0:T(8,128)S(1)}", 128),
    ("(bf16[2], /*index=1*/pred[3], s32[])", 4 + 3 + 4),
    ("f8e4m3fn[5]", 5),
    ("s4[3]", 2),
    ("token[]", 0),
  ],
)
def test_sizes_of_types(text, size):
  assert hlo.size(text) == size


def test_collectives_of_a_compiled_program():
  """A loop that gathers a sharded weight and sums its gradient 6 times."""
  mesh = tiny.mesh((1, 8, 1))
  rows = NamedSharding(mesh, PartitionSpec("fsdp"))

  def loss(weight, x):
    def layer(x, _):
      whole = jax.lax.with_sharding_constraint(weight, PartitionSpec())
      return jnp.tanh(x @ whole), None

    x, _ = jax.lax.scan(layer, x, None, length=6, unroll=1)
    return jnp.sum(jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp")))

  weight = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)
  x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows)
  with jax.set_mesh(mesh):
    compiled = jax.jit(loss).lower(weight, x).compile()
  found = hlo.by_kind(hlo.collectives(hlo.parse(compiled.as_text())))
  kinds = {row.kind: row for row in found}
  # The gather may be hoisted out of the loop; what it carries is the weight.
  gathered = kinds["all-gather"]
  assert gathered.count in (1, 6)
  assert gathered.payload == gathered.count * 64 * 64 * 4
  assert gathered.near == pytest.approx(gathered.payload * 7 / 8)
  assert kinds["all-reduce"].payload == 4  # The loss.
  assert not any(row.bounded for row in found)


def test_loops_are_counted_in_a_compiled_program():
  mesh = tiny.mesh((1, 1, 8))
  split = NamedSharding(mesh, PartitionSpec(None, "tensor"))

  def chain(x, weights):
    def layer(x, w):
      y = jnp.tanh(jax.lax.with_sharding_constraint(x, split.spec) @ w)
      return y, None

    return jax.lax.scan(layer, x, weights)[0]

  x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=split)
  weights = jax.ShapeDtypeStruct(
    (5, 32, 32),
    jnp.float32,
    sharding=NamedSharding(mesh, PartitionSpec(None, "tensor", None)),
  )
  with jax.set_mesh(mesh):
    compiled = jax.jit(chain).lower(x, weights).compile()
  (row,) = hlo.by_kind(hlo.collectives(hlo.parse(compiled.as_text())))
  # Partial products of [8, 32] are summed over the devices in each of 5 layers.
  assert (row.kind, row.count) in (("all-reduce", 5), ("reduce-scatter", 5))
  assert row.payload == 5 * 8 * 32 * 4


def printed(show, some) -> str:
  out = io.StringIO()
  show(some, console_lib.Console(out))
  return out.getvalue()


# Roofline --------------------------------------------------------------------

TOY = roofline.Model(
  block=1000,
  head=200,
  embedding=200,
  total=1500,
  learnt=1500,
  layers=2,
  width=10,
  heads=2,
  queries=8,
  keys=4,
  ffn=20,
  vocab=20,
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
  rows = {"rows": 4, "slots": 6, "predicted": 5, "micro": 4}
  one = roofline.Layout()
  blocks = roofline.forward_flops(TOY, 24, 6)
  head = roofline.head_flops(TOY, 20)
  plain = roofline.learn(TOY, one, **rows).flops
  assert plain == 3 * blocks + 4 * head
  remat = dataclasses.replace(TOY, remat="block")
  assert roofline.learn(remat, one, **rows).flops == 4 * (blocks + head)
  adapted = dataclasses.replace(TOY, learnt=10)
  assert roofline.learn(adapted, one, **rows).flops == 2 * blocks + 3 * head


def test_what_is_sent_by_hand():
  # Weights are gathered forward and backward and gradients scattered.
  rows = {"rows": 8, "slots": 6, "predicted": 5}
  layout = roofline.Layout(fsdp=8)
  done = roofline.learn(TOY, layout, micro=4, **rows)
  assert done.near == pytest.approx(
    2 * (2 * 2 * 1500 * 7 / 8 + 4 * 1500 * 7 / 8)
  )
  # With gather=step once, however many micro-batches there are.
  done = roofline.learn(TOY, layout, micro=4, gather="step", **rows)
  assert done.near == pytest.approx(2 * 1500 * 7 / 8 + 2 * 4 * 1500 * 7 / 8)
  # Beyond a node, all of it is far.
  done = roofline.learn(
    TOY, dataclasses.replace(layout, node=4), micro=4, **rows
  )
  assert done.near == 0
  # Two all-reduces of the stream in each layer, forward, backward twice.
  done = roofline.learn(TOY, roofline.Layout(tensor=4), micro=8, **rows)
  assert done.near == pytest.approx(2 * 2 * (2 * 3 / 4) * 48 * 10 * 2 * 2)
  # One, where tensor splits only attention or only the feed-forward layer.
  one = dataclasses.replace(TOY, sums=1)
  half = roofline.learn(one, roofline.Layout(tensor=4), micro=8, **rows)
  assert half.near == pytest.approx(done.near / 2)


def test_seven_billion_parameters_by_hand():
  """A known figure: decoding reads 13.2 GB, 3.9 ms of an H100's bandwidth."""
  shape = subject.read_shape("codellama-7b")
  model = roofline.Model.of(shape, total=6_738_546_688)
  assert model.block == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
  # 32 layers x keys and values x 4096 x 2 bytes: 524 kB a token.
  assert roofline.cache_bytes(model, 1, 1) == 524_288
  done = roofline.decode(model, roofline.Layout(), rows=1, columns=1)
  took = roofline.time(done, hardware.target("h100"), "bfloat16")
  assert took.bound == "memory"
  assert took.seconds == pytest.approx(13.2e9 / 3.35e12, rel=0.01)
  learnt = roofline.learn(
    model, roofline.Layout(), rows=1, slots=700, predicted=699, micro=1
  )
  assert learnt.flops == pytest.approx(6 * 6.6e9 * 700, rel=0.1)


@pytest.mark.parametrize(
  ("sizes", "whole"),
  [
    ({"heads": 8, "kv_heads": 4, "ffn": 128, "vocab_size": 32}, ""),
    ({"heads": 8, "kv_heads": 2, "ffn": 128, "vocab_size": 32}, "K"),
    ({"heads": 6, "kv_heads": 2, "ffn": 126, "vocab_size": 30}, "NKFV"),
  ],
)
def test_what_a_tensor_axis_does_not_split_counts_on_each_device(sizes, whole):
  some = tiny_subject("data.max_prompt_tokens=64", "mesh.tensor=4")
  shape = dataclasses.replace(some.shape, width=64, head_size=16, **sizes)
  assert plans.whole(shape, 4) == set(whole)
  assert plans.whole(shape, 1) == set("NKFV")  # There is nothing to split.
  some = dataclasses.replace(some, shape=shape)
  made = []
  mesh, _ = measuring.open_meshes(some, hardware.target("cpu x4"))
  programs.reinforced(
    programs.Shapes(some, mesh),
    lambda program: made.append(program) or measuring.count(program)[1],
  )
  prefill = next(p for p in made if p.name == "prefill")
  with jax.set_mesh(mesh):
    compiled = prefill.function.trace(*prefill.arguments).lower().compile()
  counted = compiled.cost_analysis()["flops"]
  model = roofline.Model.of(shape, total=1, tensor=4, whole=whole)
  done = roofline.prefill(model, roofline.Layout(tensor=4), 8, 64)
  assert done.flops == pytest.approx(counted, rel=0.1)


def test_weights_that_a_tensor_axis_does_not_split_by_hand():
  shape = subject.read_shape("qwen2.5-7b")
  total = 7_615_616_512
  one, eight = (
    roofline.Model.of(shape, total=total, tensor=n, whole=plans.whole(shape, n))
    for n in (1, 8)
  )
  # 28 layers' q, k, v and o, of 28 and 4 heads of 128, are on eight devices.
  attention = 28 * 2 * 3584 * (28 + 4) * 128
  assert eight.block - one.block == 7 * attention
  assert eight.total - one.total == eight.learnt - one.learnt == 7 * attention
  assert (eight.head, eight.ffn) == (one.head, one.ffn)
  assert (eight.heads, eight.keys) == (8 * one.heads, 8 * one.keys)
  assert eight.sums == 1  # The feed-forward layer's alone.
  small = roofline.Model.of(shape, total=total, learnt=10, tensor=8, whole="N")
  assert (small.learnt, small.adapted) == (10, True)
  untied = roofline.Model.of(shape, total=total, tensor=2, whole="V")
  assert untied.total == total + 2 * one.head
  assert untied.embedding == untied.head == 2 * one.head


def test_a_plan_says_what_a_tensor_axis_does_not_split():
  config = loading.load(["gsm8k_nl_codellama_7b"], ["mesh.tensor=8"])
  some = subject.subject(config, "qwen2.5-7b")
  target = hardware.target("h100 x8")
  found = worker.ask(some, target, compiled=False, search=False)
  warning = (
    "q_DNH: N=28 does not divide by the mesh axis tensor=8; replicated there."
  )
  assert found["warnings"].count(warning) == 1
  assert f"\n{warning}\n" in printed(showing.show, found)
  eight = found["time"]["phases"]["update"]["flops"]
  four = plans.work(
    some.changed({"mesh.tensor": 4}),
    target,
    total=found["parameters"],
    learnt=found["learnt"],
  )
  # Twice the devices share what is split, and attention's are not.
  assert eight > 1.5 * four["update"].flops


def test_without_such_there_is_no_warning():
  some, target = tiny_subject("mesh.tensor=1"), hardware.target("cpu x2")
  found = plans.make(some, target, compiled=False, search=False)
  assert found["warnings"] == []


def test_network_time_is_of_near_and_far_links():
  target = hardware.target("h100 x16")
  work = roofline.Work(near=450e9, far=100e9)
  took = roofline.time(work, target, "bfloat16")
  assert (took.network, took.bound) == (pytest.approx(3.0), "network")


# Hardware --------------------------------------------------------------------


@pytest.mark.parametrize(
  ("text", "name", "devices", "topology"),
  [
    ("cpu", "cpu", 1, ""),
    ("CPU x8", "cpu x8", 8, ""),
    ("h100", "h100 x1", 1, "1x1x1"),
    ("a100-80g x8", "a100-80g x8", 8, "1x1x8"),
    ("a100-40gx4", "a100-40g x4", 4, "1x1x4"),
    ("h100 x64", "h100 x64", 64, "8x1x8"),
    ("v5e-16", "v5e-16", 16, "4x4"),
    ("v5litepod-16", "v5e-16", 16, "4x4"),
    ("v5p-8", "v5p-8", 4, "2x2x1"),
    ("v5p-128", "v5p-128", 64, "4x4x4"),
    ("v6e-8", "v6e-8", 8, "2x4"),
  ],
)
def test_targets(text, name, devices, topology):
  found = hardware.target(text)
  assert (found.name, found.devices) == (name, devices)
  assert found.topology == topology
  assert hardware.target(found.name) == found
  assert 0 < found.usable < found.chip.memory


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("b900 x8", "not known"),
    ("tpu", "not known"),
    ("h100 x12", "a multiple of 8"),
    ("h100 x0", "1 to 8"),
    ("cpu x0", "1 device or more"),
    ("v5e-3", "v5e-1, v5e-4"),
    ("v5p-4", "counts cores"),
    ("v5p-9", "counts cores"),
  ],
)
def test_targets_that_are_none(text, says, capsys):
  assert plan.main(["--target", text]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert says in error


def test_every_gpu_is_described():
  for name in hardware.GPUS:
    text = hardware.description(hardware.GPUS[name])
    assert f"device_memory_size: {hardware.GPUS[name].memory}" in text


# Shapes ----------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("codellama-7b", 6_738_546_688),
    ("llama-2-7b", 6_738_415_616),
    ("llama-3.1-8b", 8_030_261_248),
    ("llama-3.1-70b", 70_553_706_496),
    ("qwen2.5-0.5b", 494_032_768),
    ("qwen2.5-1.5b", 1_543_714_304),
    ("qwen2.5-7b", 7_615_616_512),
    ("mistral-7b", 7_248_023_552),
    ("codegen-350m", 356_712_448),
    ("codeparrot-small", 111_008_256),
  ],
)
def test_published_models_have_as_many_parameters_as_published(
  name, parameters
):
  init = networks.Networks(subject.read_shape(name)).init
  policy = jax.eval_shape(init, jax.random.key(0))
  assert programs.count(policy) == parameters


def test_every_published_shape_is_read():
  for name, row in subject.published().items():
    assert subject.read_shape(name).vocab_size == row["config"]["vocab_size"]


def test_packaged_experiments_need_no_model():
  config = loading.load(["gsm8k_nl_codellama_7b"])
  found = subject.subject(config, None)
  assert found.model == "codellama-7b"
  assert found.problems == 7465 - config.data.dev_size
  assert (found.prompt_slots, found.response_slots) == (304, 400)
  assert found.supervised == "sft"
  assert found.reinforced


# Memory ----------------------------------------------------------------------


def tiny_subject(*settings: str) -> subject.Subject:
  options = (
    "stages=[base,sft,reft]",
    "data.max_prompt_tokens=8",
    "data.max_response_tokens=8",
    "sft.batch_size=8",
    "reft.batch_size=8",
    "reft.minibatch_size=8",
    "evaluation.batch_size=8",
    "model.logit_chunk=16",
  )
  config = loading.load(["smoke"], [*options, *settings])
  shape = dataclasses.replace(tiny.CONFIG, layers=1)
  return subject.Subject(config, shape, "tiny", 100)


@pytest.fixture(scope="module")
def compiled():
  """The tiny run on eight simulated devices."""
  return plans.measure(tiny_subject(), hardware.target("cpu x8"), plans.PHASES)


def test_every_program_of_a_run_is_compiled(compiled):
  assert [m.name for m in compiled] == [
    *("sft", "publish", "prefill", "decode", "assess", "update"),
    *("prefill", "decode"),
  ]
  assert all(m.traffic is not None for m in compiled)
  assert all(m.rest >= 0 for m in compiled)


def test_arithmetic_agrees_with_the_compiler_on_what_stays(compiled):
  target = hardware.target("cpu x8")
  counted = plans.measure(tiny_subject(), target, ())
  for ours, theirs in zip(counted, compiled, strict=True):
    assert ours.kinds == theirs.kinds
    assert ours.total <= theirs.total


def test_arguments_are_as_large_as_the_compiler_says():
  mesh = tiny.mesh((1, 8, 1))
  found = {}

  def handle(program):
    if program.phase == "update":
      with jax.set_mesh(mesh):
        lowered = program.function.trace(
          *program.arguments, **program.keywords
        ).lower()
      memory = lowered.compile().memory_analysis()
      arguments = (program.arguments, program.keywords)
      found["ours"] = programs.device_bytes(arguments)
      found["theirs"] = memory.argument_size_in_bytes
      found["donated"] = memory.alias_size_in_bytes
      state, experience, _ = program.arguments
      found["state"] = programs.device_bytes(state)
      # What the objective does not read is not given to the program.
      found["unread"] = programs.device_bytes(
        (
          experience.reference_logprobs_BT,
          experience.rollout.logprobs_BT,
          experience.rollout.ended_B,
        )
      )
    return measuring.count(program)[1]

  programs.reinforced(programs.Shapes(tiny_subject(), mesh), handle)
  assert found["ours"] == found["theirs"] + found["unread"]
  assert found["donated"] == found["state"]


def test_shapes_are_those_of_a_real_run():
  """The state on shapes is the state that a run makes, shard by shard."""
  some = dataclasses.replace(tiny_subject(), shape=tiny.CONFIG)
  mesh = tiny.mesh((1, 8, 1))
  shapes = programs.Shapes(some, mesh)
  made = []
  learner, _ = programs.reinforced(
    shapes, lambda program: made.append(program) or measuring.count(program)[1]
  )
  params = {
    "policy": tiny.policy(),
    "value": tiny.make().init_value(tiny.policy(), "shared"),
  }
  optimizer = optim.build(some.config.reft.optimizer, 10)
  state = jax.eval_shape(lambda p: learner_lib.init_state(p, optimizer), params)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), learner.state) == (
    jax.tree.map(lambda x: (x.shape, x.dtype), state)
  )
  prefill = next(p for p in made if p.name == "prefill")
  rows = jax.eval_shape(prefill.function, *prefill.arguments)
  assert rows.response_BT.shape == (8, 8)


def test_what_is_alive_beside_a_program_is_counted(compiled):
  by_name = {(m.phase, m.name): m for m in compiled}
  learner = programs.Shapes(tiny_subject(), tiny.mesh((1, 8, 1))).learner(
    optax.identity(), critic=True, reference=True
  )
  weights = programs.device_bytes(learner.state.params)
  reference = programs.device_bytes(learner.reference)
  decode = by_name["sample", "decode"].kinds
  assert decode["weights"] == weights
  assert decode["reference"] == reference
  assert decode["optimizer"] >= 2 * weights
  assert decode["published"] > 0
  assert decode["cache"] > 0
  assert by_name["supervised", "sft"].kinds.get("reference", 0) == 0
  assert "published" not in by_name["update", "update"].kinds


def test_online_self_training_is_planned():
  target = hardware.target("cpu x8")
  some = tiny_subject(
    "stages=[warmup,online_st]",
    "warmup.batch_size=8",
    "online_st.batch_size=16",
    "online_st.minibatch_size=8",
    "online_st.passes=3",
  )
  measured = plans.measure(some, target, ("online update",))
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
  assert not any("reference" in m.kinds for m in measured)
  works = plans.work(some, target, total=1000, learnt=1000)
  # Two batches of minibatch_size rows, passes x minibatches times.
  assert works["online update"].flops == 2 * 6 * works["supervised"].flops
  found = plans.make(some, target, compiled=False, search=False)
  phases = found["time"]["phases"]
  assert found["time"]["online_st"]["step"] == pytest.approx(
    phases["online sample"]["seconds"] + phases["online update"]["seconds"]
  )
  alone = some.changed({"online_st.gold_share": 0.0})
  once = plans.work(alone, target, total=1000, learnt=1000)
  assert once["online update"].flops == works["online update"].flops / 2


def test_knobs_of_online_self_training():
  settings = ("stages=[warmup,online_st]", "online_st.batch_size=6")
  assert options("online update", *settings) == [3, 2, 1]


def test_shapes_of_online_self_training_are_those_of_a_real_step():
  """Its two batches are as wide as a rollout and a question's annotation."""
  some = tiny_subject("stages=[online_st]", "online_st.batch_size=8")
  made = []
  programs.online(
    programs.Shapes(some, tiny.mesh((1, 8, 1))),
    lambda program: made.append(program) or measuring.count(program)[1],
  )
  sampled = programs.Shapes(some, tiny.mesh((1, 8, 1))).rollout(8)
  correct_B = jax.ShapeDtypeStruct((8,), jnp.bool_)
  real = jax.eval_shape(supervised_lib.imitations, sampled, correct_B)
  _, *batches = made[-1].arguments
  assert len(batches) == 2
  for batch in batches:
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == (
      jax.tree.map(lambda x: (x.shape, x.dtype), real)
    )


@pytest.mark.parametrize(
  ("stages", "unplanned"),
  [
    ("base,warmup,reft", ["base"]),
    ("warmup,online_st,reft", []),
    ("warmup,offline_st", ["collecting samples"]),
    ("warmup,reward_model", ["reward_model", "collecting samples"]),
  ],
)
def test_what_is_not_planned_is_named(stages, unplanned):
  some, target = tiny_subject(f"stages=[{stages}]"), hardware.target("h100")
  found = plans.make(some, target, compiled=False, search=False)
  assert found["unplanned"] == unplanned
  told = printed(showing.introduce, some)
  assert (f"not planned: {', '.join(unplanned)}\n" in told) == bool(unplanned)
  limited = "what is planned " * bool(unplanned)
  assert showing.verdict(found).startswith(f"{limited}may fit: ")
  compiled = found | {"compiled": True}
  assert showing.verdict(compiled).startswith(f"{limited}fits: ")


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
  counted = plans.measure(tiny_subject("lora.rank=2"), target, ())
  update = next(m for m in counted if m.name == "update")
  # Of its own it has the adapter that it started with, which is small.
  assert update.kinds["reference"] < update.kinds["weights"] / 2
  assert update.kinds["optimizer"] < update.kinds["weights"]


# Advice ----------------------------------------------------------------------


def test_the_smallest_change_on_a_toy():
  tried = []
  knobs = [
    advice.Knob("rows", [{"rows": 8}, {"rows": 4}, {"rows": 2}]),
    advice.Knob("remat", [{"remat": "dots"}, {"remat": "block"}]),
    advice.Knob("dtype", [{"dtype": "bfloat16"}]),
  ]

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
  knobs = [advice.Knob("rows", [{"rows": 1}]), advice.Knob("bf16", [{"b": 1}])]

  def needs(settings):
    return 10 + 5 * ("rows" in settings) - 4 * ("b" in settings)

  assert advice.smallest(knobs, needs, 6, now=10) == {"b": 1}
  assert advice.smallest(knobs, needs, 5, now=10) is None


def test_knobs_are_those_that_may_help():
  some = tiny_subject(
    "reft.batch_size=32", "reft.minibatch_size=32", "evaluation.batch_size=64"
  )
  target = hardware.target("h100 x8")
  laid_out = measuring.laid_out(some, target)
  names = [k.name for k in advice.knobs(some, target, laid_out, {"update"})]
  assert names == [
    "reft.micro_batch_size",
    "remat",
    "dtype",
    "gather",
    "tensor",
  ]
  (rows, *others) = advice.knobs(some, target, laid_out, {"evaluate"})
  sizes = (32, 16, 8, 4, 2, 1)
  assert rows.options == [{"evaluation.batch_size": n} for n in sizes]
  assert "sampler" in [knob.name for knob in others]
  assert advice.lora(some)
  assert not advice.lora(tiny_subject("lora.rank=2"))


def options(failing: str, *settings: str) -> list[int]:
  some = tiny_subject(*settings)
  target = hardware.target("h100 x8")
  laid_out = measuring.laid_out(some, target)
  rows, *_ = advice.knobs(some, target, laid_out, {failing})
  return [value for option in rows.options for value in option.values()]


def test_every_micro_batch_is_tried():
  batch = "sft.batch_size=48"
  assert options("supervised", batch) == [24, 16, 12, 8, 6, 4, 3, 2, 1]
  assert options("supervised", batch, "sft.micro_batch_size=6") == [3, 2, 1]
  batch = "reft.batch_size=100"
  found = options("update", batch, "reft.minibatch_size=100")
  assert found == [50, 25, 20, 10, 5, 4, 2, 1]


def test_evaluations_are_tried_down_to_one_row():
  found = options("evaluate", "evaluation.batch_size=1500")
  assert found == [744, 368, 184, 88, 40, 16, 8, 4, 2, 1]
  assert options("evaluate", "evaluation.batch_size=9") == [4, 2, 1]


def test_advice_for_an_evaluation_that_no_halves_divide():
  some = tiny_subject("evaluation.batch_size=100")
  target = hardware.target("cpu x8")
  less = some.changed({"evaluation.batch_size": 48})
  needed = max(m.total for m in plans.measure(less, target, ()))
  chip = dataclasses.replace(target.chip, memory=int(1.05 * needed), reserve=0)
  target = dataclasses.replace(target, chip=chip)
  found = plans.searched(some, target, {"evaluate"}, None)
  assert found["settings"] == {"evaluation.batch_size": 48}


def test_larger_targets():
  def larger(name):
    return [t.name for t in advice.larger(hardware.target(name))]

  assert larger("h200 x1") == ["h200 x2", "h200 x4", "h200 x8", "h200 x16"]
  assert larger("v5p-8")[0] == "v5p-16"
  assert larger("v5e-256") == []
  assert larger("cpu") == []


def test_a_change_is_found_where_memory_is_short():
  """Fewer rows at a time fit a device that all of them do not."""
  some = tiny_subject("reft.batch_size=256", "reft.minibatch_size=256")
  some = some.changed({"stages": ("base", "reft")})
  target = hardware.target("cpu x2")
  laid_out = measuring.laid_out(some, target)
  (rows, *_) = advice.knobs(some, target, laid_out, {"update"})

  @functools.cache
  def needs(micro):
    each = some.changed({"reft.micro_batch_size": micro})
    return plans.measure(each, target, ("update",))[-3]

  assert needs(256).name == "update"
  limit = (needs(256).total + needs(32).total) / 2
  found = advice.smallest(
    [advice.Knob("rows", rows.options[2:3])],
    lambda settings: needs(*settings.values()).total,
    limit,
  )
  assert found == {"reft.micro_batch_size": 32}


# The command -----------------------------------------------------------------


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["--model", "gpt-9", "--config", "smoke"], "--model gpt-9"),
    (["--model", "codellama-7b"], "name an experiment"),
    (["--target"], "--target needs a name"),
    (["--config", "smoke", "--frobnicate"], "unknown argument"),
    (["--frobnicate"], "expected [--target NAME]... [--model NAME]"),
    (["--config", "smoke", "model.path=no/such/folder"], "model.path"),
    (
      ["--config", "smoke", "--arithmetic", "mesh.fsdp=3", "--target=cpu x2"],
      "mesh",
    ),
  ],
)
def test_bad_input_is_one_line(argv, says, capsys):
  assert plan.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert says in error


@pytest.mark.parametrize(
  "argv", [["--model", "codellama-7b"], ["--frobnicate"], ["--target"]]
)
def test_help_comes_first(argv, capsys):
  assert plan.main([*argv, "--help"]) == 0
  out = capsys.readouterr().out
  assert "Usage: python -m reft_jax.plan [--target NAME]..." in out


def test_arithmetic_of_seven_billion_parameters(capsys):
  """Without any compiler: 16 bytes a weight over 8 devices, and no guess."""
  argv = ["--config", "gsm8k_nl_codellama_7b", "--target", "h100 x8"]
  assert plan.main([*argv, "--arithmetic", "--json"]) == 0
  (found,) = json.loads(capsys.readouterr().out)["plans"]
  assert not found["compiled"]
  update = found["memory"]["phases"]["update"]
  each = 6_738_546_688 / 8
  for kind, size in (("weights", 4), ("optimizer", 8), ("reference", 4)):
    assert update[kind] == pytest.approx(size * each, rel=1e-3)
  sample = found["memory"]["phases"]["sample"]
  # The sampler's own layout: an eighth of the bfloat16 copy.
  assert found["sampler_tensor"] == 8
  assert sample["published"] == pytest.approx(2 * each, rel=1e-3)
  # 4 rows of 704 columns of 524 kB.
  assert sample["cache"] == pytest.approx(4 * 704 * 524_288, rel=1e-3)
  assert found["time"]["reft"]["epoch"] > found["time"]["reft"]["step"]


def test_without_a_compiler_it_says_what_to_install(capsys, monkeypatch):
  monkeypatch.setattr(worker, "_found", lambda module: False)
  argv = ["--config", "gsm8k_nl_codellama_7b"]
  argv += ["--target", "h100 x8", "--target", "v5e-8", "--no-search"]
  assert plan.main(argv) == 0
  out = capsys.readouterr().out
  assert "pip install --no-deps jax-cuda13-pjrt==" in out
  assert 'pip install "jax[tpu]==' in out
  assert "arithmetic alone" in out
  assert "may fit" in out
  assert "does not fit" in out  # 16 bytes a weight are too many for a v5e.


@pytest.mark.parametrize("name", ["h100 x8", "v5e-8"])
def test_a_real_compiler(name, capsys, tmp_path):
  lacking = worker.missing(hardware.target(name).chip.platform)
  if lacking:
    pytest.skip(f"needs the target's compiler: {lacking}")
  argv = ["--config", "smoke", "--target", name, "--json", "base.layers=1"]
  argv += ["stages=[base,reft]", "reft.ppo_epochs=1"]
  assert plan.main(argv) == 0
  (found,) = json.loads(capsys.readouterr().out)["plans"]
  assert found["compiled"]
  assert found["memory"]["fits"]
  update = next(p for p in found["programs"] if p["name"] == "update")
  assert {"all-gather"} <= {row["kind"] for row in update["traffic"]}


def test_the_compilers_flags_stay_in_their_process(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--ours")
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  cpu, gpu = (
    worker.environment(hardware.target(name)) for name in ("cpu x2", "h100 x8")
  )
  assert cpu["JAX_NUM_CPU_DEVICES"] == "2"
  assert "XLA_FLAGS" not in cpu
  assert "--ours" not in gpu["XLA_FLAGS"]
  assert gpu["JAX_PLATFORMS"] == cpu["JAX_PLATFORMS"] == "cpu"
