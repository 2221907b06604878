"""Random keys follow from the seed and the purpose alone."""

import itertools
import zlib

import jax
import numpy as np

from reft_jax.runtime import keys


def bits(*path) -> tuple[int, ...]:
  return tuple(np.asarray(jax.random.key_data(keys.derive(*path))).tolist())


def test_keys_differ_by_seed_and_by_every_part_of_the_path():
  paths = [
    (0,),
    (1,),
    (0, "reft"),
    (0, "sft"),
    (0, "reft", "sample", 0),
    (0, "reft", "sample", 1),
    (0, "reft", "update", 0),
    (0, "sample", "reft", 0),
  ]
  for one, other in itertools.combinations(paths, 2):
    assert bits(*one) != bits(*other), (one, other)
  assert [bits(*path) for path in paths] == [bits(*path) for path in paths]


def test_a_path_is_folded_in_part_by_part():
  key = jax.random.fold_in(jax.random.key(5), zlib.crc32(b"reft"))
  key = jax.random.fold_in(key, 7)
  assert bits(5, "reft", 7) == tuple(
    np.asarray(jax.random.key_data(key)).tolist()
  )
