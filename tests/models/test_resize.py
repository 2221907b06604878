"""Vocabularies that grow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from reft_jax.models import networks, resize

MORE = 5
SIZE = tiny.CONFIG.vocab_size + MORE


def numbers(name: str, shape):
  """A parameter without anything alike in two rows."""
  rng = np.random.default_rng(len(name))
  return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def policy():
  """Every parameter that knows the vocabulary, and some that do not."""
  V, D = tiny.CONFIG.vocab_size, tiny.CONFIG.width
  return {
    "trunk": {
      "embed_VD": numbers("embed_VD", (V, D)),
      "blocks": {
        "q_DNH": numbers("q_DNH", (2, D, 4, 4)),
        "layers_VD": numbers("layers_VD", (2, V, D)),
      },
      "norm_D": numbers("norm_D", (D,)),
    },
    "lm_DV": numbers("lm_DV", (D, V)),
    "lm_bias_V": numbers("lm_bias_V", (V,)),
  }


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_all_that_has_the_axis_grows_by_its_mean(policy, kind):
  given = jax.tree.map(kind, policy)
  config, grown = resize.grow(tiny.CONFIG, given, SIZE)
  jax.tree.map(np.testing.assert_array_equal, given, policy)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given)
  _, half_grown = resize.grow(tiny.CONFIG, half, SIZE)
  assert {x.dtype.name for x in jax.tree.leaves(half_grown)} == {"bfloat16"}
  assert config == dataclasses.replace(tiny.CONFIG, vocab_size=SIZE)
  assert jax.tree.structure(grown) == jax.tree.structure(given)
  for path, axis in (
    (("trunk", "embed_VD"), 0),
    (("trunk", "blocks", "layers_VD"), 1),
    (("lm_DV",), 1),
    (("lm_bias_V",), 0),
  ):
    old, new = policy, grown
    for key in path:
      old, new = old[key], new[key]
    assert isinstance(new, type(kind(old)))
    assert new.dtype == old.dtype
    first, last = np.split(np.asarray(new), [old.shape[axis]], axis)
    np.testing.assert_array_equal(first, old)
    assert last.shape[axis] == MORE
    mean = old.mean(axis, keepdims=True)
    np.testing.assert_allclose(last, np.repeat(mean, MORE, axis), atol=1e-6)
  assert grown["trunk"]["norm_D"] is given["trunk"]["norm_D"]
  assert grown["trunk"]["blocks"]["q_DNH"] is given["trunk"]["blocks"]["q_DNH"]


def test_the_same_size_is_the_same_model(policy):
  config, grown = resize.grow(tiny.CONFIG, policy, tiny.CONFIG.vocab_size)
  assert config == tiny.CONFIG
  jax.tree.map(np.testing.assert_array_equal, grown, policy)


def test_a_vocabulary_does_not_shrink(policy):
  with pytest.raises(ValueError, match="vocab_size=28 is below the model's 29"):
    resize.grow(tiny.CONFIG, policy, 28)


@pytest.mark.parametrize("tied", [False, True])
def test_a_grown_model_answers_as_before(tied):
  config = dataclasses.replace(tiny.CONFIG, tied_head=tied)
  network = networks.Networks(config)
  policy = jax.jit(network.init)(jax.random.key(0))
  tokens_BS = np.arange(12, dtype=np.int32).reshape(2, 6)
  lengths_B = np.array([6, 4], np.int32)

  config, grown = resize.grow(config, policy, SIZE)
  shapes = jax.eval_shape(networks.Networks(config).init, jax.random.key(0))
  assert jax.tree.map(np.shape, grown) == jax.tree.map(np.shape, shapes)
  old_BSV = tiny.logits(network, policy, tokens_BS, lengths_B)
  grown_network = networks.Networks(config)
  new_BSV = tiny.logits(grown_network, grown, tokens_BS, lengths_B)
  size = tiny.CONFIG.vocab_size
  np.testing.assert_allclose(new_BSV[..., :size], old_BSV, atol=1e-5)
  mean_BS1 = np.mean(old_BSV, axis=-1, keepdims=True)
  new_rows = np.broadcast_to(mean_BS1, (*mean_BS1.shape[:-1], MORE))
  np.testing.assert_allclose(new_BSV[..., size:], new_rows, atol=1e-5)
