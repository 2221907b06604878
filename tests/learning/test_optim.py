"""Learning rates by update, clipping, AdamW and Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax.config import schema
from reft_jax.learning import optim
from reft_jax.models import config as model_configs
from reft_jax.models import networks

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_SIZE, FFN = 2, 8, 2, 1, 6, 20
MODEL = {
  "vocab_size": 11,
  "width": WIDTH,
  "layers": LAYERS,
  "heads": HEADS,
  "kv_heads": KV_HEADS,
  "head_size": HEAD_SIZE,
  "ffn": FFN,
}
# Inputs and outputs of each of a block's matrices.
MATRICES = {
  "q_DNH": (WIDTH, HEADS * HEAD_SIZE),
  "k_DKH": (WIDTH, KV_HEADS * HEAD_SIZE),
  "v_DKH": (WIDTH, KV_HEADS * HEAD_SIZE),
  "o_NHD": (HEADS * HEAD_SIZE, WIDTH),
  "gate_DF": (WIDTH, FFN),
  "up_DF": (WIDTH, FFN),
  "down_FD": (FFN, WIDTH),
}
MUON = schema.OptimizerConfig(
  kind="muon",
  learning_rate=0.5,
  adam_learning_rate=1e-3,
  schedule="constant",
  warmup_fraction=0.0,
  clip_norm=None,
)


def plain(**changes) -> schema.OptimizerConfig:
  """AdamW at a constant rate, with nothing else that changes an update."""
  settings = {
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "clip_norm": None,
  }
  return schema.OptimizerConfig(**settings | changes)


def normal(shapes, seed=0):
  """A tree of normal numbers."""
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes
  )


def parameters(value="separate", **changes):
  """Normal numbers in the place of a policy's and a critic's parameters."""
  model = networks.Networks(model_configs.ModelConfig(**MODEL | changes))

  def init(key):
    policy = model.init(key)
    return {"policy": policy, "value": model.init_value(policy, value)}

  return normal(jax.eval_shape(init, jax.random.key(0)))


def one_step(config, params, grads):
  """The first update that an optimizer asks for."""
  optimizer = optim.build(config, steps=10)

  @jax.jit
  def step(params, grads):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  return jax.device_get(step(params, grads))


def named(tree):
  """The leaves with the names on their paths."""
  return [
    ([entry.key for entry in path], leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


@pytest.mark.parametrize(
  ("kind", "warmup", "final", "expected"),
  [
    ("constant", 0.0, 0.0, {0: 1, 50: 1, 100: 1}),
    ("constant", 0.2, 0.0, {0: 0, 5: 0.25, 10: 0.5, 20: 1, 100: 1}),
    ("linear", 0.0, 0.0, {0: 1, 25: 0.75, 99: 0.01, 100: 0, 200: 0}),
    ("linear", 0.1, 0.0, {0: 0, 1: 0.1, 10: 1, 55: 0.5, 100: 0}),
    ("linear", 0.1, 0.2, {10: 1, 55: 0.6, 100: 0.2, 200: 0.2}),
    ("cosine", 0.0, 0.0, {0: 1, 25: (1 + 0.5**0.5) / 2, 50: 0.5, 100: 0}),
    ("cosine", 0.2, 0.4, {0: 0, 10: 0.5, 20: 1, 60: 0.7, 100: 0.4, 200: 0.4}),
    ("linear", 1.0, 0.0, {0: 0, 50: 0.5, 99: 0.99}),
  ],
)
def test_schedules_at_table_values(kind, warmup, final, expected):
  config = schema.OptimizerConfig(
    learning_rate=3e-4,
    schedule=kind,
    warmup_fraction=warmup,
    final_fraction=final,
  )
  for peak in (None, 0.02):
    rate = optim.schedule(config, 100, peak=peak)
    got = [float(rate(step)) for step in expected]
    want = np.array([*expected.values()]) * (peak or 3e-4)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_one_update_is_the_shortest_schedule(kind):
  config = plain(schedule=kind, warmup_fraction=0.1)
  assert float(optim.schedule(config, 1)(0)) == pytest.approx(1e-3)


def test_the_rate_of_an_update_is_its_schedules():
  config = plain(schedule="linear", warmup_fraction=0.2)
  optimizer = optim.build(config, steps=10)
  params = {"w_D": jnp.zeros(3)}
  state = optimizer.init(params)
  rates = []
  for _ in range(10):
    # A steady gradient moves Adam by the learning rate.
    updates, state = optimizer.update({"w_D": jnp.ones(3)}, state, params)
    rates.append(-float(updates["w_D"][0]))
  want = [optim.schedule(config, 10)(step) for step in range(10)]
  np.testing.assert_allclose(rates, want, rtol=1e-4)


def test_clipping_bounds_what_a_huge_gradient_does():
  params = {"w_D": jnp.zeros(4), "b": jnp.zeros(())}
  direction = {"w_D": jnp.full(4, 0.4), "b": jnp.array(0.6)}
  assert optax.tree.norm(direction) == pytest.approx(1.0)
  huge = jax.tree.map(lambda g: 1e6 * g, direction)
  # An eps this large leaves the size of a gradient visible in the update.
  clipped = plain(eps=1.0, clip_norm=1.0)
  bounded = one_step(clipped, params, huge)
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5),
    bounded,
    one_step(clipped, params, direction),
  )
  assert optax.tree.norm(bounded) <= 1e-3
  free = one_step(plain(eps=1.0), params, huge)
  assert optax.tree.norm(free) > 1.5 * optax.tree.norm(bounded)
  small = jax.tree.map(lambda g: 0.5 * g, direction)
  jax.tree.map(
    np.testing.assert_array_equal,
    one_step(clipped, params, small),
    one_step(plain(eps=1.0), params, small),
  )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_steps_as_torch_does(weight_decay):
  torch = pytest.importorskip("torch")
  random = np.random.default_rng(0)
  start = (0.1 * random.standard_normal((4, 3))).astype(np.float32)
  grads = random.standard_normal((3, 4, 3)).astype(np.float32)
  settings = {"eps": 1e-6, "weight_decay": weight_decay}

  theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
  reference = torch.optim.AdamW([theirs], 1e-3, (0.9, 0.95), **settings)
  ours = {"w_DF": jnp.array(start)}
  optimizer = optim.build(plain(b2=0.95, **settings), steps=10)
  state = optimizer.init(ours)
  for grad in grads:
    theirs.grad = torch.from_numpy(grad)
    reference.step()
    updates, state = optimizer.update({"w_DF": grad}, state, ours)
    ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(
      ours["w_DF"], theirs.detach().numpy(), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize("value", ["shared", "separate"])
def test_muon_orthogonalizes_every_matrix_of_a_block(tied_head, value):
  params = parameters(value, tied_head=tied_head)
  updates = one_step(MUON, params, normal(params, seed=1))
  seen = []
  for path, update in named(updates):
    if "blocks" not in path or path[-1] not in MATRICES:
      continue
    seen.append(path[-1])
    # From inputs to outputs, all directions move alike (Newton-Schulz leaves
    # singular values near 1) and by an amount that the two widths set.
    inputs, outputs = MATRICES[path[-1]]
    matrix = update.reshape(LAYERS, inputs, outputs) / MUON.learning_rate
    sizes = np.linalg.svd(matrix, compute_uv=False)
    sizes /= max(1, outputs / inputs) ** 0.5
    assert 0.6 < sizes.min() < sizes.max() < 1.3, path
  assert sorted(seen) == sorted([*MATRICES] * (1 + (value == "separate")))


def check_adams(updates):
  """Adam moves all entries alike at first, whatever their gradients are."""
  for name, update in updates.items():
    size = np.abs(update).mean()
    # optax.contrib.muon gives its Adam Nesterov's momentum: more than 1e-3.
    assert 1e-3 < size < 1.5e-3, name
    np.testing.assert_allclose(np.abs(update), size, rtol=1e-2, err_msg=name)


def test_muon_leaves_the_rest_to_adam():
  params = parameters()
  updates = named(one_step(MUON, params, normal(params, seed=1)))
  rest = {path[-1]: leaf for path, leaf in updates if path[-1] not in MATRICES}
  assert {"embed_VD", "lm_DV", "norm_D", "w_D", "b"} < rest.keys()
  check_adams(rest)


def test_biases_are_adams():
  params = parameters(qkv_bias=True, o_bias=True, mlp_bias=True)
  updates = named(one_step(MUON, params, normal(params, seed=1)))
  biases = {path[-1]: leaf for path, leaf in updates if "bias" in path[-1]}
  assert {"q_bias_NH", "o_bias_D", "gate_bias_F"} < biases.keys()
  check_adams(biases)
