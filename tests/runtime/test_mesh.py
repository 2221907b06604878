"""The mesh, and where parameters and batches lie on it."""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from reft_jax.data import batches
from reft_jax.errors import UserError
from reft_jax.models import config as configs
from reft_jax.models import networks
from reft_jax.runtime import mesh as mesh_lib

MODEL = configs.ModelConfig(
  vocab_size=12,
  width=8,
  layers=2,
  heads=4,
  kv_heads=2,
  head_size=6,
  ffn=16,
)
SHAPES = [(1, 8, 1), (2, 2, 2), (4, 1, 2), (8, 1, 1), (1, 1, 8), (1, 4, 2)]


@pytest.fixture(scope="module")
def policy():
  """A policy on the host."""
  return jax.device_get(networks.Networks(MODEL).init(jax.random.key(0)))


def mesh_of(data, fsdp, tensor):
  return mesh_lib.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_axis_may_take_the_rest(shape):
  whole = mesh_of(*shape)
  assert tuple(whole.shape.values()) == shape
  assert whole.axis_names == mesh_lib.AXES
  assert whole.size == jax.device_count() == 8
  for axis in range(3):
    asked = [-1 if index == axis else size for index, size in enumerate(shape)]
    assert mesh_of(*asked) == whole
  assert mesh_lib.num_batch_shards(whole) == shape[0] * shape[1]


def test_a_mesh_may_span_some_of_the_devices():
  some = jax.devices()[2:6]
  mesh = mesh_lib.make_mesh(data=2, fsdp=-1, tensor=1, devices=some)
  assert tuple(mesh.shape.values()) == (2, 2, 1)
  assert set(mesh.devices.flat) == set(some)
  with pytest.raises(UserError, match="the 4 devices"):
    mesh_lib.make_mesh(data=8, fsdp=1, tensor=1, devices=some)


@pytest.mark.parametrize(
  ("shape", "words"),
  [
    ((1, 1, 1), ["data=1 x fsdp=1 x tensor=1", "8 devices", "axis to -1"]),
    ((4, 4, 1), ["data=4 x fsdp=4 x tensor=1", "8 devices", "axis to -1"]),
    ((3, -1, 1), ["data=3 x tensor=1", "8 devices; give sizes that divide 8"]),
    ((16, -1, 1), ["data=16", "8 devices"]),
    ((-1, -1, 1), ["only one", "data and fsdp"]),
    ((-1, -1, -1), ["only one", "data and fsdp and tensor"]),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, words):
  with pytest.raises(UserError) as error:
    mesh_of(*shape)
  message = str(error.value)
  assert message.startswith("mesh: ")
  assert "\n" not in message
  for word in words:
    assert word in message


@pytest.mark.parametrize("samples", [1, 2, 3, 8, 12])
def test_rows_are_filled_up_to_the_least_that_are_shared_alike(samples):
  mesh = mesh_of(2, 2, 2)  # The tensor axis does not split a batch.
  for rows in range(1, 20):
    alike = mesh_lib.pad_to_shards(mesh, rows, samples)
    want = next(n for n in range(rows, 40) if n * samples % 4 == 0)
    assert alike == want


def test_rows_that_are_not_shared_alike_lie_on_every_device():
  mesh = mesh_of(2, 4, 1)
  host = {"rows": np.arange(6), "more": np.ones((16, 2))}
  placed = mesh_lib.put_batch(mesh, host)
  chex.assert_trees_all_equal(jax.device_get(placed), host)
  assert placed["rows"].sharding.spec == P()
  assert placed["more"].sharding.spec == mesh_lib.BATCH


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_batches_keep_their_values(policy, shape):
  mesh = mesh_of(*shape)
  placed = mesh_lib.put(mesh, policy)
  chex.assert_trees_all_equal(jax.device_get(placed), policy)
  jax.tree.map(
    lambda leaf, sharding: chex.assert_equal(leaf.sharding, sharding),
    placed,
    mesh_lib.shardings(mesh, policy),
  )
  # Each device holds its rows of a batch.
  rows = [([row, row + 1], [row + 2]) for row in range(14)]
  host = batches.supervised(rows, batch=16, slots=8, pad_id=0)
  placed = mesh_lib.put_batch(mesh, host)
  chex.assert_trees_all_equal(jax.device_get(placed), host)
  share = 16 // mesh_lib.num_batch_shards(mesh)
  for leaf in jax.tree.leaves(placed):
    assert leaf.sharding.spec == mesh_lib.BATCH == P(("data", "fsdp"))
    for shard in leaf.addressable_shards:
      assert shard.data.shape == (share, *leaf.shape[1:])
      np.testing.assert_array_equal(shard.data, np.asarray(leaf)[shard.index])


def test_letters_say_how_much_of_a_parameter_a_device_holds(policy):
  placed = mesh_lib.put(mesh_of(1, 4, 2), policy)
  block = placed["trunk"]["blocks"]

  def held(leaf):
    return {shard.data.shape for shard in leaf.addressable_shards}

  assert held(placed["trunk"]["embed_VD"]) == {(12 // 2, 8 // 4)}
  assert held(placed["lm_DV"]) == {(8 // 4, 12 // 2)}
  assert held(block["attention"]["q_DNH"]) == {(2, 8 // 4, 4 // 2, 6)}
  assert held(block["mlp"]["down_FD"]) == {(2, 16 // 2, 8 // 4)}
  assert held(placed["trunk"]["norm_D"]) == {(8,)}
