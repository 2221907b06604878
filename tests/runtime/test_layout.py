"""How a model is laid out on devices, and that it changes no result."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import strategies as st

from reft_jax.config import schema
from reft_jax.data import batches
from reft_jax.errors import UserError
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import optim
from reft_jax.learning import supervised as supervised_lib
from reft_jax.planner import hlo
from reft_jax.planner import subject as subjects
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib

GIB = 2**30


@functools.cache
def published(model: str):
  """The shape of a published model, and the number of its parameters."""
  shape = subjects.read_shape(model)
  return shape, subjects.Subject(schema.Config(), shape, model, None).parameters


def choose(wanted=None, *, model="codellama-7b", count=8, node=8, memory=60):
  """The layout of a published model in bfloat16; memory is in GiB."""
  shape, parameters = published(model) if model else (None, 0)
  return layout.choose(
    wanted or schema.MeshConfig(),
    shape,
    parameters=parameters,
    compute_dtype="bfloat16",
    devices=layout.Devices(count, node, memory and memory * GIB),
  )


def axes(found: layout.Layout) -> tuple[int, ...]:
  return found.data, found.fsdp, found.tensor


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    # ZeRO-2 to learn, tensor-parallel to sample.
    ({}, (1, 8, 1, "step", 8)),
    # A small model has one mesh, and an unknown one counts as small.
    ({"model": "galactica-125m"}, (1, 8, 1, "step", 1)),
    ({"model": None, "memory": 16}, (1, 8, 1, "step", 1)),
    # 141 GB of bfloat16 are too many for one device.
    ({"model": "llama-3.1-70b", "count": 64}, (1, 8, 8, "layer", 8)),
    # Nodes hold copies of what fits one; here the state takes two of them.
    ({"count": 32}, (4, 8, 1, "step", 8)),
    ({"count": 32, "node": 4, "memory": 40}, (4, 8, 1, "layer", 4)),
    # Chips too small for a copy.
    ({"memory": 16}, (1, 4, 2, "layer", 8)),
    # Memory that is not known counts as enough.
    ({"memory": None}, (1, 8, 1, "layer", 1)),
  ],
)
def test_layouts_that_follow_from_the_sizes(options, expected):
  assert choose(**options) == layout.Layout(*expected)


@pytest.mark.parametrize(
  ("wanted", "expected"),
  [
    ({"tensor": 4}, (1, 2, 4)),
    ({"data": 8}, (8, 1, 1)),
    ({"data": 8, "fsdp": 1}, (8, 1, 1)),
    ({"data": -1}, (8, 1, 1)),
    ({"data": -1, "tensor": 2}, (4, 1, 2)),
    ({"fsdp": 4, "data": -1}, (2, 4, 1)),
    ({"data": 2}, (2, 4, 1)),
  ],
)
def test_axes_of_the_settings(wanted, expected):
  assert axes(choose(schema.MeshConfig(**wanted))) == expected


def test_a_sampler_that_leaves_devices_out_is_refused():
  with pytest.raises(UserError, match=r"mesh\.sampler_tensor=3"):
    choose(schema.MeshConfig(sampler_tensor=3))


@hypothesis.given(
  nodes=st.sampled_from([1, 2, 3, 4, 8, 16]),
  node=st.sampled_from([1, 2, 4, 8]),
  memory=st.one_of(st.none(), st.floats(4, 200)),
  model=st.sampled_from(["galactica-125m", "codellama-7b", "llama-3.1-70b"]),
)
def test_all_devices_are_used_and_heads_are_split_alike(
  nodes, node, memory, model
):
  found = choose(model=model, count=nodes * node, node=node, memory=memory)
  shape, _ = published(model)
  assert np.prod(axes(found)) == nodes * node
  for tensor in (found.tensor, found.sampler_tensor):
    assert node % tensor == 0
    assert shape.kv_heads % tensor == 0
    assert shape.ffn % tensor == 0


# Results ---------------------------------------------------------------------

ROWS = 16


def learner(gather: str, dtype="float32"):
  """A supervised update of two micro-batches, its optimizer, a batch."""
  networks = tiny.make(compute_dtype=dtype, gather=gather)
  optimizer = optim.build(schema.OptimizerConfig(learning_rate=1e-2), 10)
  update = supervised_lib.make_update(networks, optimizer, micro_batch=8)
  random = np.random.default_rng(0)
  rows = [
    (random.integers(4, 29, 3).tolist(), random.integers(4, 29, 5).tolist())
    for _ in range(ROWS)
  ]
  batch = batches.supervised(rows, batch=ROWS, slots=8, pad_id=0)
  return networks, optimizer, update, batch


@functools.cache
def learnt(gather: str, shape: tuple[int, int, int]):
  """The compiled update, and what three of them make, on the host."""
  networks, optimizer, update, batch = learner(gather)
  mesh = tiny.mesh(shape)
  with jax.set_mesh(mesh):
    policy = networks.init(jax.random.key(0))
    state = mesh_lib.put(
      mesh, learner_lib.init_state({"policy": policy}, optimizer)
    )
    rows = mesh_lib.put_batch(mesh, batch)
    compiled = update.lower(state, rows).compile()
    found = []
    for _ in range(3):
      state, metrics = compiled(state, rows)
      found.append(float(metrics["loss"].value()))
    return compiled, found, jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_gathering_once_a_step_changes_no_result(shape):
  _, ours, params = learnt("step", shape)
  _, theirs, expected = learnt("layer", (1, 1, 1))
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  chex.assert_trees_all_close(params, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weights_are_gathered_once_however_many_micro_batches():
  """Two micro-batches gather the blocks twice, or once for both."""
  sent = {}
  for gather in ("layer", "step"):
    compiled, _, params = learnt(gather, (1, 8, 1))
    found = hlo.collectives(hlo.parse(compiled.as_text()), open_loop=1)
    sent[gather] = sum(
      each.times * each.payload for each in found if each.kind == "all-gather"
    )
  blocks = params["policy"]["trunk"]["blocks"]
  matrices = [x for x in jax.tree.leaves(blocks) if x.ndim > 2]
  assert sent["layer"] - sent["step"] == sum(x.nbytes for x in matrices)


@pytest.mark.slow
def test_the_copy_of_a_step_is_in_the_compute_dtype():
  networks, *_ = learner("step", "bfloat16")
  params = {"policy": networks.init(jax.random.key(0))}
  copy = networks.working_copy(params)["policy"]
  blocks = jax.tree.leaves(copy["trunk"]["blocks"])
  assert {leaf.dtype for leaf in blocks} == {jnp.dtype("bfloat16")}
  # A token's gradients add up here, from all of a batch.
  assert copy["trunk"]["embed_VD"].dtype == jnp.float32


@pytest.mark.slow
def test_a_sampler_s_own_layout_holds_a_share_of_each_weight():
  """But all of the key-value heads that its tensor axis does not divide."""
  mesh, sampling = mesh_lib.make_meshes(layout.Layout(1, 8, 1, "layer", 4))
  assert dict(sampling.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
  networks = tiny.make()
  policy = mesh_lib.put(mesh, networks.init(jax.random.key(0)))
  with jax.set_mesh(mesh), jax.set_mesh(sampling):
    block = jax.jit(networks.publish)(policy)["trunk"]["blocks"][0]
  up_DF, k_DKH = block["mlp"]["up_DF"], block["attention"]["k_DKH"]
  for weight, ways in ((up_DF, 4), (k_DKH, 1)):
    rows, columns, *head = weight.shape
    held = weight.sharding.shard_shape(weight.shape)
    assert held == (rows, columns // ways, *head)
