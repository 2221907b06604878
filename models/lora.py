"""LoRA: low-rank adapters beside the weights of a policy's blocks.

A weight W called `q_DNH` acts as W + scale A B, where A is `q_a_DR` and B is
`q_b_RNH` beside it (Hu et al. 2022; `layers.Layer.project`). An adapter is a
tree of A and B alone, at their paths in the policy. `join` adds it to the tree
it was made for, which gives a policy again and copies no array.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from reft_jax.models import config as configs
from reft_jax.models import errors, layers

ALL = "all"
# The weights that may have an adapter: the module in a block, and the name.
TARGETS = {
  "q": ("attention", "q_DNH"),
  "k": ("attention", "k_DKH"),
  "v": ("attention", "v_DKH"),
  "o": ("attention", "o_NHD"),
  "gate": ("mlp", "gate_DF"),
  "up": ("mlp", "up_DF"),
  "down": ("mlp", "down_FD"),
}
# The names of the factors by the name of the weight, and the set of them all.
_FACTORS = {name: layers.adapter_names(name) for _, name in TARGETS.values()}
_NAMES = frozenset(name for pair in _FACTORS.values() for name in pair)


def selected_targets(
  config: configs.ModelConfig, targets: Iterable[str]
) -> dict[str, tuple[str, str]]:
  """The rows of TARGETS with these names, in its order; "all" selects all.

  Raises:
    UnsupportedModelError: the architecture has no such weight.
  """
  has = dict(TARGETS)
  if not config.gated:
    del has["gate"]
  wanted = set(targets)
  lacking = sorted(wanted - has.keys() - {ALL})
  if lacking:
    raise errors.UnsupportedModelError(
      f"{config.family} models have no {' and no '.join(lacking)} to adapt, "
      f"only {', '.join(has)}."
    )
  return {x: row for x, row in has.items() if wanted & {ALL, x}}


def largest_rank(config: configs.ModelConfig, targets: Iterable[str]) -> int:
  """The rank at which A B can be any matrix; a higher one adds nothing."""
  return min(
    math.prod(_factor_shape(config, factor, rank=1))
    for _, name in selected_targets(config, targets).values()
    for factor in _FACTORS[name]
  )


def _factor_shape(
  config: configs.ModelConfig, name: str, rank: int
) -> tuple[int, ...]:
  sizes = config.sizes | {"R": rank}
  return tuple(sizes[letter] for letter in configs.letters(name))


def init(
  config: configs.ModelConfig,
  key: jax.Array,
  *,
  rank: int,
  targets: Iterable[str],
) -> dict[str, Any]:
  """An adapter that changes nothing yet: A is uniform, B is 0.

  As in PEFT, A is within +-1 / sqrt(inputs). The random numbers of a target do
  not depend on which other targets there are.

  Raises:
    UnsupportedModelError: as `selected_targets`.
  """
  modules: dict[str, Any] = {}
  for target, (module, name) in selected_targets(config, targets).items():
    down, up = _FACTORS[name]
    *inputs, _ = _factor_shape(config, down, rank)
    limit = math.prod(inputs) ** -0.5
    factors = modules.setdefault(module, {})
    factors[down] = jax.random.uniform(
      jax.random.fold_in(key, list(TARGETS).index(target)),
      (config.layers, *inputs, rank),
      minval=-limit,
      maxval=limit,
    )
    outputs = _factor_shape(config, up, rank)
    factors[up] = jnp.zeros((config.layers, *outputs), jnp.float32)
  return {"trunk": {"blocks": modules}}


def frozen_base(
  policy: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
  """The frozen weights of each part whose parameters are adapters.

  Args:
    policy: the adapted policy; {} without adapters.
    params: the trained parameters by part: policy, value function, scorer.

  Returns:
    The base that `join` completes these parts with: the policy, and its trunk
    (the same arrays) for any other part that has a trunk.
  """
  if not policy:
    return {}
  trunk = {"trunk": policy["trunk"]}
  return {
    name: policy if name == "policy" else trunk
    for name, part in params.items()
    if "trunk" in part
  }


def join(base: Any, adapter: Any) -> Any:
  """The union of both trees; where both have an array, it is `adapter`'s.

  Either may be empty. No array is copied.
  """
  if not isinstance(base, Mapping) or not isinstance(adapter, Mapping):
    return adapter
  both = {
    name: join(base[name], node) if name in base else node
    for name, node in adapter.items()
  }
  return {**base, **both}


def split(policy: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The inverse of `join`: the base, and the adapter, {} if there is none."""
  base: dict[str, Any] = {}
  adapter: dict[str, Any] = {}
  for name, node in policy.items():
    if isinstance(node, Mapping):
      base[name], inner = split(node)
      if inner:
        adapter[name] = inner
    else:
      (adapter if name in _NAMES else base)[name] = node
  return base, adapter


def merge(policy: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """The policy with the weights W + scale A B, summed in fp32.

  `policy` may be a part of one, such as one layer's block. Weights without an
  adapter are the same arrays.
  """
  merged = {
    name: merge(node, scale) if isinstance(node, Mapping) else node
    for name, node in policy.items()
    if name not in _NAMES
  }
  for name, (down, up) in _FACTORS.items():
    if down in policy:
      product = jnp.einsum(
        f"...{configs.letters(down)},...{configs.letters(up)}"
        f"->...{configs.letters(name)}",
        jnp.asarray(policy[down], jnp.float32),
        jnp.asarray(policy[up], jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
      )
      merged[name] = policy[name] + scale * product
  return merged


def merge_in_place(policy: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """As `merge`, in place: adapted weights are donated and keep their shards.

  Without adapters it returns the arrays of `policy`.
  """
  base, adapter = split(policy)
  if not adapter:
    return dict(policy)
  factors = traverse_util.flatten_dict(adapter)
  adapted = traverse_util.unflatten_dict(
    {
      (*path, name): weight
      for (*path, name), weight in traverse_util.flatten_dict(base).items()
      if name in _FACTORS and (*path, _FACTORS[name][0]) in factors
    }
  )

  def join_and_merge(adapted: Any, adapter: Any) -> dict[str, Any]:
    return merge(join(adapted, adapter), scale)

  merged = jax.jit(
    join_and_merge,
    donate_argnums=0,
    out_shardings=jax.tree.map(lambda weight: weight.sharding, adapted),
  )(adapted, adapter)
  return join(base, merged)
