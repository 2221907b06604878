"""The networks: what must not change them; test_families has the parity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny as shared_tiny

from reft_jax.models import cache as caches
from reft_jax.models import config as configs
from reft_jax.models import errors, layers, networks

TINY = dataclasses.replace(
  shared_tiny.CONFIG,
  vocab_size=13,
  head_size=6,
  ffn=20,
  qkv_bias=True,
  o_bias=True,
  mlp_bias=True,
  init_scale=0.3,
)
LENGTHS = np.array([9, 4, 1, 7], np.int32)


def roughen(params, seed=0):
  """Random numbers everywhere: fresh biases are 0 and would hide mistakes."""
  leaves, tree = jax.tree.flatten(params)
  random = np.random.default_rng(seed)
  return jax.tree.unflatten(
    tree,
    [
      np.asarray(x + 0.1 * random.standard_normal(x.shape), np.float32)
      for x in leaves
    ],
  )


def tokens_like(lengths_B, slots, seed=0):
  shape = (len(lengths_B), slots)
  tokens = np.random.default_rng(seed).integers(0, TINY.vocab_size, shape)
  return tokens.astype(np.int32)


@functools.cache
def tiny(**switches):
  net = networks.Networks(TINY, **switches)
  return net, roughen(jax.jit(net.init)(jax.random.key(0)))


def forward(*arguments):
  return np.asarray(shared_tiny.logits(*arguments))


def assert_valid_equal(got_BSV, want_BSV, lengths_B, tolerance):
  for got, want, length in zip(got_BSV, want_BSV, lengths_B, strict=True):
    np.testing.assert_allclose(got[:length], want[:length], atol=tolerance)


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def prefill(net, policy, tokens_BP, lengths_B, slots):
  """Published parameters, hidden states and the cache of prompts."""
  published = jax.jit(net.publish)(policy)
  run = jax.jit(net.prefill, static_argnums=3)
  return published, *run(published, tokens_BP, lengths_B, slots)


attention = functools.partial(layers.grouped_attention, scale=0.5)


# Cached decoding.


@pytest.mark.slow
@pytest.mark.parametrize(
  "rope",
  [
    configs.RopeConfig(),
    configs.RopeConfig(
      kind="yarn", factor=4, original_max_positions=32, attention_factor=1.2
    ),
    configs.RopeConfig(kind="dynamic", factor=4),
  ],
  ids=lambda rope: rope.kind,
)
def test_cached_decoding_equals_the_full_forward(rope):
  config = dataclasses.replace(TINY, rope=rope)
  net, (_, policy) = networks.Networks(config), tiny()
  prompt_lengths_B = np.array([3, 1, 5, 4], np.int32)
  P, T = 6, 7
  tokens_BS = tokens_like(prompt_lengths_B, P + T)
  want_BSD = np.asarray(
    jax.jit(net.hidden)(policy["trunk"], tokens_BS, prompt_lengths_B + T)
  )
  rows = np.arange(4)

  published, hidden_BD, cache = prefill(
    net, policy, tokens_BS[:, :P], prompt_lengths_B, T
  )
  np.testing.assert_allclose(
    hidden_BD, want_BSD[rows, prompt_lengths_B - 1], atol=1e-5
  )
  decode = jax.jit(net.decode)
  for step in range(T):
    column_B = prompt_lengths_B + step
    hidden_BD, cache = decode(
      published, cache, tokens_BS[rows, column_B], np.int32(step)
    )
    np.testing.assert_allclose(hidden_BD, want_BSD[rows, column_B], atol=1e-5)
  assert decode._cache_size() == 1


def test_cache_is_head_major_in_the_compute_dtype_and_repeats_rows():
  net, policy = tiny(compute_dtype="bfloat16")
  lengths_B = np.array([2, 4], np.int32)
  tokens_BP = tokens_like(lengths_B, 4)
  _, hidden_BD, cache = prefill(net, policy, tokens_BP, lengths_B, 5)
  assert hidden_BD.shape == (2, TINY.width)
  assert len(cache.prompt_k) == len(cache.response_v) == TINY.layers
  assert cache.prompt_k[0].shape == (2, TINY.kv_heads, 4, TINY.head_size)
  assert cache.response_k[0].shape == (2, TINY.kv_heads, 5, TINY.head_size)
  assert cache.prompt_v[0].dtype == cache.response_v[0].dtype == jnp.bfloat16
  assert not np.any(cache.response_k[0])

  repeated = caches.repeat(cache, 3)
  assert repeated.prompt_lengths_B.tolist() == [2, 2, 2, 4, 4, 4]
  np.testing.assert_array_equal(repeated.prompt_k[1][4], cache.prompt_k[1][1])


# What must not matter.


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_padding_and_neighbours_do_not_matter(kind):
  rope = configs.RopeConfig(
    kind=kind,
    factor=4.0,
    original_max_positions=5,
    short_factor=(1.0, 1.5, 2.0),
    long_factor=(2.0, 4.0, 8.0),
  )
  config = dataclasses.replace(TINY, rope=rope, max_positions=5)
  net, (_, policy) = networks.Networks(config), tiny()
  tokens_BS = tokens_like(LENGTHS, 9)
  want = forward(net, policy, tokens_BS, LENGTHS)

  padding = np.arange(9)[None, :] >= LENGTHS[:, None]
  other = np.where(padding, 7, tokens_BS)
  wide = np.pad(other, ((0, 0), (0, 4)), constant_values=3)
  assert_valid_equal(
    forward(net, policy, wide, LENGTHS), want, LENGTHS, tolerance=1e-5
  )
  order = [2, 0, 3, 1]
  permuted = forward(net, policy, tokens_BS[order], LENGTHS[order])
  assert_valid_equal(permuted, want[order], LENGTHS[order], tolerance=1e-5)
  alone = forward(net, policy, tokens_BS[3:, :7], LENGTHS[3:])
  assert_valid_equal(alone, want[3:], LENGTHS[3:], tolerance=1e-5)


def test_later_tokens_do_not_matter():
  net, policy = tiny()
  tokens_BS = tokens_like(LENGTHS, 9)
  changed_BS = tokens_BS.copy()
  changed_BS[:, 5] = (changed_BS[:, 5] + 1) % TINY.vocab_size
  full = np.full(4, 9, np.int32)
  before = forward(net, policy, tokens_BS, full)
  after = forward(net, policy, changed_BS, full)
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert np.all(np.abs(before - after).max(axis=2)[:, 5:] > 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "dots"])
def test_rematerialisation_changes_no_gradient(remat):
  tokens_BS = tokens_like(LENGTHS, 9)

  def gradient(net, policy):
    def loss(policy):
      hidden_BSD = net.hidden(policy["trunk"], tokens_BS, LENGTHS)
      return jnp.mean(jnp.square(net.logits(policy, hidden_BSD)))

    return jax.jit(jax.grad(loss))(policy)

  want = gradient(*tiny())
  got = gradient(*tiny(remat=remat))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want
  )
  assert all(np.any(leaf) for leaf in jax.tree.leaves(want))


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
  q_BNSH = jnp.ones((1, 2, 3, 4))
  k_BKCH = jnp.ones((1, 1, 5, 4))
  mask_BSC = jnp.zeros((1, 3, 5), bool)

  def total(q_BNSH):
    segment = layers.Segment(k_BKCH, k_BKCH, mask_BSC)
    return attention(q_BNSH, [segment]).sum()

  value, gradient = jax.value_and_grad(total)(q_BNSH)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))


def test_attention_over_two_segments_is_attention_over_their_columns():
  keys = jax.random.split(jax.random.key(0), 3)
  q_BNSH = jax.random.normal(keys[0], (2, 4, 3, 6))
  k_BKCH = jax.random.normal(keys[1], (2, 2, 7, 6))
  mask_BSC = jax.random.bernoulli(keys[2], 0.7, (2, 3, 7))
  whole = [layers.Segment(k_BKCH, -k_BKCH, mask_BSC)]
  parts = [
    layers.Segment(k_BKCH[:, :, cut], -k_BKCH[:, :, cut], mask_BSC[:, :, cut])
    for cut in (slice(0, 2), slice(2, 7))
  ]
  np.testing.assert_allclose(
    jax.jit(attention)(q_BNSH, whole),
    jax.jit(attention)(q_BNSH, parts),
    atol=1e-6,
  )


def test_bfloat16_stays_near_float32():
  want = forward(*tiny(), tokens_like(LENGTHS, 9), LENGTHS)
  got = forward(
    *tiny(compute_dtype="bfloat16"), tokens_like(LENGTHS, 9), LENGTHS
  )
  assert got.dtype == np.float32
  assert np.all(np.isfinite(got))
  error = np.sqrt(np.mean(np.square(got - want))) / np.std(want)
  assert 0 < error < 0.03


@pytest.mark.slow
def test_gradients_of_a_repeated_token_add_up_in_float32():
  tokens_BS = np.zeros((1, 512), np.int32)

  def gradient(net, policy):
    def total(trunk):
      return jnp.sum(net.hidden(trunk, tokens_BS, np.array([512])) ** 3)

    return jax.jit(jax.grad(total))(policy["trunk"])["embed_VD"][0]

  want_D = gradient(*tiny())
  got_D = gradient(*tiny(compute_dtype="bfloat16"))
  np.testing.assert_allclose(
    got_D, want_D, atol=0.1 * np.abs(want_D).max(), rtol=0
  )


# Fresh parameters.


def test_fresh_parameters():
  config = dataclasses.replace(TINY, init_scale=0.05, vocab_size=500)
  init = jax.jit(networks.Networks(config).init)
  policy = init(jax.random.key(1))
  flat = jax.tree_util.tree_leaves_with_path(policy)
  for path, leaf in flat:
    name = path[-1].key
    assert leaf.dtype == jnp.float32
    stacked = (config.layers,) if "blocks" in str(path) else ()
    assert leaf.shape == stacked + config.shape(name)
    if "norm" in name:
      assert np.all(leaf == 1)
    elif "bias" in name:
      assert np.all(leaf == 0)
    else:
      np.testing.assert_allclose(np.std(leaf), 0.05, rtol=0.15)
  q = policy["trunk"]["blocks"]["attention"]["q_DNH"]
  assert np.any(q[0] != q[1])
  assert_equal(policy, init(jax.random.key(1)))


def test_a_tied_head_has_no_parameters():
  net = networks.Networks(dataclasses.replace(TINY, tied_head=True))
  policy = jax.eval_shape(net.init, jax.random.key(0))
  assert set(policy) == {"trunk"}


@pytest.mark.parametrize("kind", networks.VALUE_KINDS)
def test_values_start_at_zero(kind):
  net, policy = tiny()
  value = net.init_value(policy, kind)
  trunk = value.get("trunk", policy["trunk"])
  hidden_BSD = jax.jit(net.hidden)(trunk, tokens_like(LENGTHS, 9), LENGTHS)
  values_BS = net.values(value["head"], hidden_BSD)
  assert values_BS.dtype == jnp.float32
  assert values_BS.shape == (4, 9)
  assert not np.any(values_BS)
  if kind == "separate":
    assert_equal(trunk, policy["trunk"])


def test_value_is_linear_in_the_hidden_state():
  net, _ = tiny()
  head = {"w_D": jnp.arange(16.0), "b": jnp.float32(2)}
  hidden_D = jnp.ones(16, jnp.bfloat16)
  assert net.values(head, hidden_D) == 122


def test_a_scorer_starts_from_the_policy_with_a_head_of_its_own():
  net, policy = tiny()
  scorer = net.init_scorer(policy, jax.random.key(0))
  assert_equal(scorer["trunk"], policy["trunk"])
  assert scorer["score_DC"].shape == (TINY.width, len(configs.CLASSES))
  assert scorer["score_DC"].dtype == jnp.float32
  np.testing.assert_allclose(
    np.std(scorer["score_DC"]), TINY.init_scale, rtol=0.3
  )
  hidden_BD = jax.random.normal(jax.random.key(1), (3, 16), jnp.bfloat16)
  logits_BC = net.class_logits(scorer, hidden_BD)
  assert logits_BC.dtype == jnp.float32
  want_BC = np.float32(hidden_BD) @ np.asarray(scorer["score_DC"])
  np.testing.assert_allclose(logits_BC, want_BC, rtol=1e-5, atol=1e-5)


def test_published_parameters_outlive_their_masters():
  net, policy = tiny()
  policy = jax.tree.map(jnp.array, policy)
  want = jax.tree.map(np.array, jax.jit(net.publish)(policy))
  published = jax.jit(net.publish)(policy)
  jax.tree.map(lambda master: master.delete(), policy)
  assert_equal(published, want)
  assert len(published["trunk"]["blocks"]) == TINY.layers


def test_published_parameters_have_the_compute_dtype_and_the_same_logits():
  net, policy = tiny(compute_dtype="bfloat16")
  published = net.publish(policy)
  assert {x.dtype for x in jax.tree.leaves(published)} == {
    jnp.dtype(jnp.bfloat16)
  }
  hidden_BD = jax.random.normal(jax.random.key(0), (2, 16), jnp.bfloat16)
  logits_BV = net.logits(published, hidden_BD)
  assert logits_BV.dtype == jnp.float32
  np.testing.assert_array_equal(logits_BV, net.logits(policy, hidden_BD))


# Mistakes.


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"compute_dtype": "float16"}, "compute_dtype='float16' is not one of"),
    ({"remat": "all"}, "remat='all' is not one of none, block, dots"),
    ({"kv_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
    ({"head_size": 5}, "rotate 5 of a head's 5 coordinates; that number must"),
    ({"width": 0}, "the size of D is 0"),
    ({"norm": "batch"}, "norm='batch' is not one of rms, layer"),
    ({"windows": (3,)}, "windows lists 1 layers, but the model has 2"),
    (
      {"parallel": "own_norms", "norm_place": "post"},
      "parallel=own_norms needs norm_place=pre",
    ),
  ],
)
def test_what_cannot_be_is_refused(fields, message):
  of_networks = fields.keys() & {"compute_dtype", "remat"}
  kind = ValueError if of_networks else errors.UnsupportedModelError
  with pytest.raises(kind, match=message):
    dataclasses.replace(
      networks.Networks(TINY) if of_networks else TINY, **fields
    )
