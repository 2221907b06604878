"""Small models of any family."""

import typing

import jax
import numpy as np
import pytest
import tiny

from reft_jax.config import schema
from reft_jax.models import config as model_configs
from reft_jax.models import errors, networks
from reft_jax.models.hf import read as reader
from reft_jax.models.hf import scratch
from reft_jax.models.hf import write as writer

SIZES = {
  "vocab_size": 11,
  "width": 16,
  "layers": 2,
  "heads": 4,
  "kv_heads": 4,
  "ffn": 20,
  "max_positions": 24,
}


def test_the_settings_offer_every_family():
  hints = typing.get_type_hints(schema.BaseConfig)
  assert typing.get_args(hints["family"]) == scratch.FAMILIES


def test_the_default_base_model_is_a_plain_llama():
  assert scratch.architecture("llama", **SIZES) == model_configs.ModelConfig(
    vocab_size=11,
    width=16,
    layers=2,
    heads=4,
    kv_heads=4,
    head_size=4,
    ffn=20,
    tied_head=True,
    max_positions=24,
  )


@pytest.mark.parametrize("family", scratch.FAMILIES)
def test_a_model_of_every_family_starts_near_chance_and_is_saved(
  family, tmp_path
):
  config = scratch.architecture(family, **SIZES)
  assert config.family == family
  assert config.tied_head
  net = networks.Networks(config)
  tokens_BS = np.arange(6, dtype=np.int32).reshape(1, 6)
  policy = jax.jit(net.init)(jax.random.key(0))
  logits_BSV = tiny.logits(net, policy, tokens_BS, np.array([6]))
  losses_SV = -jax.nn.log_softmax(logits_BSV)[0, :-1, 1:]
  # Gemma's embeddings are large on purpose; the others begin near ln V.
  if not family.startswith("gemma"):
    np.testing.assert_allclose(losses_SV.mean(), np.log(11), atol=0.1)
  writer.save(tmp_path, config, policy)
  config_again, again = reader.load(tmp_path)
  assert config_again == config
  jax.tree.map(np.testing.assert_array_equal, again, policy)


@pytest.mark.parametrize("family", ["opt", "gpt2", "codegen", "gpt_neox"])
def test_grouped_heads_are_refused_where_there_are_none(family):
  with pytest.raises(errors.UnsupportedModelError, match="kv_heads=2 must be"):
    scratch.architecture(family, **SIZES | {"kv_heads": 2})
