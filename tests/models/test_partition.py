"""Axis letters to PartitionSpecs, and the layout of activations."""

import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax.models import config as configs
from reft_jax.models import networks, partition

P = jax.sharding.PartitionSpec
SIZES = {"data": 1, "fsdp": 4, "tensor": 2}
ONE_WAY = {"data": 1, "fsdp": 1, "tensor": 2}
CONFIG = configs.ModelConfig(
  **{"vocab_size": 16, "width": 8, "layers": 3, "heads": 4, "kv_heads": 2},
  head_size=6,
  ffn=20,
  qkv_bias=True,
  o_bias=True,
)
NETWORKS = networks.Networks(CONFIG)


def shapes(init=NETWORKS.init):
  return jax.eval_shape(init, jax.random.key(0))


def test_letters_choose_the_mesh_axes():
  specs = partition.specs(shapes(), SIZES)
  assert specs["lm_DV"] == P("fsdp", "tensor")
  assert specs["trunk"]["embed_VD"] == P("tensor", "fsdp")
  blocks = specs["trunk"]["blocks"]
  assert blocks["attention"]["q_DNH"] == P(None, "fsdp", "tensor")
  assert blocks["attention"]["o_NHD"] == P(None, "tensor", None, "fsdp")
  assert blocks["attention"]["k_bias_KH"] == P(None, "tensor")
  assert blocks["mlp"]["down_FD"] == P(None, "tensor", "fsdp")


def test_vectors_and_leaves_without_letters_are_replicated():
  specs = partition.specs(shapes(), SIZES)
  assert specs["trunk"]["norm_D"] == P()
  assert specs["trunk"]["blocks"]["attention_norm_D"] == P()
  value = NETWORKS.init_value(shapes(), "shared")
  chex.assert_trees_all_equal(
    partition.specs(value, SIZES), {"head": {"w_D": P(), "b": P()}}
  )


def test_unstacked_layers_have_the_specs_of_one_layer():
  published = jax.eval_shape(NETWORKS.publish, shapes())
  specs = partition.specs(published, SIZES)
  for block in specs["trunk"]["blocks"]:
    assert block["attention"]["q_DNH"] == P("fsdp", "tensor")


def test_optimizer_state_lies_where_its_parameters_do():
  params = shapes()
  adam = jax.eval_shape(optax.adamw(1e-3).init, params)
  specs = partition.specs(adam, SIZES)
  want = partition.specs(params, SIZES)
  assert specs[0].mu == want
  assert specs[0].nu == want
  assert specs[0].count == P()


@pytest.mark.parametrize(
  ("name", "shape", "options", "spec"),
  [
    # A mesh axis is used once for a parameter.
    ("gate_DF", (8, 8), {"rules": {"D": "fsdp", "F": "fsdp"}}, P("fsdp")),
    # Axes of one device are left out, as in what a program of jax returns.
    ("gate_DF", (8, 8), {"axis_sizes": ONE_WAY}, P(None, "tensor")),
    ("down_FD", (8, 8), {"axis_sizes": ONE_WAY}, P("tensor")),
    # A rank that the letters do not explain is replicated.
    ("q_DNH", (8,), {}, P()),
  ],
)
def test_a_parameters_spec(name, shape, options, spec):
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  options = {"axis_sizes": SIZES, **options}
  assert partition.specs({name: leaf}, **options) == {name: spec}


def test_what_does_not_divide_is_replicated_and_logged_once(caplog):
  leaf = jax.ShapeDtypeStruct((3, 8, 6, 6), jnp.float32)
  sizes = {"fsdp": 2, "tensor": 4}
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      specs = partition.specs({"odd_DNH": leaf}, sizes)
  assert specs == {"odd_DNH": P(None, "fsdp")}
  assert [record.getMessage() for record in caplog.records] == [
    "odd_DNH: N=6 does not divide by the mesh axis tensor=4; replicated there."
  ]


def test_pin_is_the_identity_without_a_mesh():
  x = jnp.ones((4, 2))
  assert partition.pin(x) is x
  assert partition.gather("gate_DF", x) is x


@pytest.mark.parametrize("shape", [(), (3,)])
def test_pin_is_the_identity_where_rows_do_not_divide(shape):
  mesh = jax.sharding.AbstractMesh((2, 2, 1), ("data", "fsdp", "tensor"))
  x = jnp.ones(shape)
  with jax.sharding.use_abstract_mesh(mesh):
    assert partition.pin(x) is x


def gradients(net, shape, policy, tokens_BS, lengths_B):
  """Loss and gradients on a mesh, and the bytes its program needs a device."""

  def loss(policy, tokens_BS, lengths_B):
    hidden_BSD = net.hidden(policy["trunk"], tokens_BS, lengths_B)
    return jnp.mean(jnp.square(net.logits(policy, hidden_BSD)))

  mesh = jax.make_mesh(
    shape,
    ("data", "fsdp", "tensor"),
    (jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[: np.prod(shape)],
  )
  layout = jax.tree.map(
    lambda spec: jax.sharding.NamedSharding(mesh, spec),
    partition.specs(policy, mesh.shape),
  )
  rows = jax.sharding.NamedSharding(mesh, P(("data", "fsdp")))
  arguments = (
    jax.device_put(policy, layout),
    *jax.device_put((tokens_BS, lengths_B), rows),
  )
  with jax.set_mesh(mesh):
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
    step = step.lower(*arguments).compile()
    return step(*arguments), step.memory_analysis().temp_size_in_bytes


def test_sharded_gradients_equal_and_activations_stay_spread(capfd):
  config = configs.ModelConfig(
    vocab_size=16, width=32, layers=2, heads=4, kv_heads=2, head_size=8, ffn=64
  )
  net = networks.Networks(config)
  policy = jax.jit(net.init)(jax.random.key(0))
  tokens_BS = np.random.default_rng(0).integers(0, 16, (8, 32), np.int32)
  run = functools.partial(
    gradients,
    net,
    policy=policy,
    tokens_BS=tokens_BS,
    lengths_B=np.full(8, 32, np.int32),
  )
  want, bytes_alone = run((1, 1, 1))
  for shape in [(2, 2, 2), (1, 8, 1)]:
    got, bytes_spread = run(shape)
    chex.assert_trees_all_close(got, want, atol=1e-6)
    assert bytes_spread < 0.5 * bytes_alone
  assert "rematerialization" not in capfd.readouterr().err
