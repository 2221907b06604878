"""Random keys by purpose: a function of the seed and of a path alone."""

import zlib

import jax


def derive(seed: int, *path: int | str) -> jax.Array:
  """The random key of a purpose, such as `derive(seed, "reft", "update", 7)`.

  A resumed run samples what the unbroken run would have sampled.
  """
  key = jax.random.key(seed)
  for part in path:
    number = part if isinstance(part, int) else zlib.crc32(part.encode())
    key = jax.random.fold_in(key, number)
  return key
