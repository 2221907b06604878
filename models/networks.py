"""Networks: a model's pure functions, which the rest of the program calls."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from reft_jax.models import cache as caches
from reft_jax.models import config as configs
from reft_jax.models import layers, lora, partition, transformer

Params = dict[str, Any]

COMPUTE_DTYPES = ("float32", "bfloat16")
REMATS = ("none", *transformer.REMAT_POLICIES)
GATHERS = ("layer", "step")
VALUE_KINDS = ("shared", "separate")


@dataclasses.dataclass(frozen=True)
class Networks:
  """A policy and its value function, as pure functions of parameters.

  Parameters are plain dicts of fp32 arrays. A policy is

      {"trunk": {"embed_VD", "blocks": {...}, "norm_D"}, "lm_DV"}

  without lm_DV where the head is tied, and with whatever else the architecture
  has. Where embeddings have another width, the names of the parameters at that
  width have E for D. Arrays under "blocks" have a leading layer axis that is
  not in their names. A value function is {"head"} when it reads the policy's
  trunk ("shared") and {"trunk", "head"} when it has its own ("separate"): the
  caller passes the trunk to read. A scorer, which classifies solutions as
  correct or not, is {"trunk", "score_DC"}.

  A policy's blocks may hold adapters beside their weights (models.lora).
  """

  config: configs.ModelConfig
  # The dtype of activations, and of weights where they are used.
  compute_dtype: str = "float32"
  # What a training forward keeps of each block for the backward pass: "none",
  # everything; "dots", the results of matrix products; "block", its input.
  remat: str = "none"
  # Multiplies the outputs of adapters: LoRA's alpha / rank.
  adapter_scale: float = 1.0
  # "layer", a training pass all-gathers each layer's weights along "fsdp" where
  # it uses them; "step", it reads a `working_copy`.
  gather: str = "layer"

  def __post_init__(self) -> None:
    _check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
    _check_choice("remat", self.remat, REMATS)
    _check_choice("gather", self.gather, GATHERS)
    _check_choice("activation", self.config.activation, layers.ACTIVATIONS)
    for rope in (self.config.rope, self.config.local_rope):
      if rope is not None:
        _check_choice("rope kind", rope.kind, configs.ROPE_KINDS)

  @property
  def _trunk(self) -> transformer.Trunk:
    return transformer.Trunk(
      self.config, self.compute_dtype, self.adapter_scale, self.remat
    )

  def init(self, key: jax.Array) -> Params:
    """A new policy: normal weights, norms 1, biases 0."""
    trunk_key, head_key = jax.random.split(key)
    tokens_BS = jnp.zeros((1, 1), jnp.int32)
    lengths_B = jnp.ones((1,), jnp.int32)
    variables = self._trunk.init(trunk_key, tokens_BS, lengths_B)
    policy = {"trunk": variables["params"]}
    config = self.config
    if not config.tied_head:
      normal_DV = jax.random.normal(head_key, config.shape(config.head_name))
      policy[config.head_name] = config.init_scale * normal_DV
    if config.head_bias:
      policy["lm_bias_V"] = jnp.zeros(config.shape("lm_bias_V"), jnp.float32)
    return policy

  @property
  def parameters(self) -> int:
    """The number of parameters of a policy."""
    policy = jax.eval_shape(self.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(policy))

  def init_value(self, policy: Params, kind: str) -> Params:
    """A value function that is zero everywhere.

    Args:
      policy: the policy; a "separate" value function gets a copy of its trunk.
      kind: one of VALUE_KINDS.
    """
    _check_choice("value", kind, VALUE_KINDS)
    name = f"w_{self.config.outer}"
    w_D = jnp.zeros(self.config.shape(name), jnp.float32)
    head = {name: w_D, "b": jnp.zeros((), jnp.float32)}
    if kind == "shared":
      return {"head": head}
    return {"trunk": jax.tree.map(jnp.copy, policy["trunk"]), "head": head}

  def init_scorer(self, policy: Params, key: jax.Array) -> Params:
    """A classifier: a copy of the policy's trunk, and a new head.

    As in transformers, the head has normal weights and no bias.
    """
    name = f"score_{self.config.outer}C"
    normal_DC = jax.random.normal(key, self.config.shape(name))
    return {
      "trunk": jax.tree.map(jnp.copy, policy["trunk"]),
      name: self.config.init_scale * normal_DC,
    }

  def hidden(
    self, trunk: Params, tokens_BS: jax.Array, lengths_B: jax.Array
  ) -> jax.Array:
    """hidden_BSD after the final norm; rows are padded on the right."""
    return self._trunk.apply({"params": trunk}, tokens_BS, lengths_B)

  def logits(self, policy: Params, hidden_xD: jax.Array) -> jax.Array:
    """fp32 next-token logits_xV; x is any number of leading axes.

    `policy` may be published. Products are in the compute dtype, their sums in
    fp32.
    """
    config = self.config
    if config.tied_head:
      name, weight = config.embed_name, policy["trunk"][config.embed_name]
    else:
      name, weight = config.head_name, policy[config.head_name]
    logits_xV = jnp.einsum(
      f"...{config.outer},{configs.letters(name)}->...V",
      hidden_xD.astype(self.compute_dtype),
      partition.gather(name, weight, self.compute_dtype),
      preferred_element_type=jnp.float32,
    )
    if config.head_bias:
      bias_V = policy["lm_bias_V"].astype(jnp.float32)
      logits_xV += jnp.broadcast_to(bias_V, logits_xV.shape)
    if config.logit_cap is not None:
      logits_xV = layers.soft_cap(logits_xV, config.logit_cap)
    return logits_xV

  def values(self, head: Params, hidden_xD: jax.Array) -> jax.Array:
    """fp32 values_x, w . hidden + b; x is any number of leading axes."""
    values_x = jnp.einsum(
      "...D,D->...",
      hidden_xD.astype(jnp.float32),
      head[f"w_{self.config.outer}"],
      precision=jax.lax.Precision.HIGHEST,
    )
    return values_x + head["b"]

  def class_logits(self, scorer: Params, hidden_xD: jax.Array) -> jax.Array:
    """fp32 logits_xC of configs.CLASSES; x is any number of leading axes."""
    name = f"score_{self.config.outer}C"
    return jnp.einsum(
      "...D,DC->...C",
      hidden_xD.astype(jnp.float32),
      partition.gather(name, scorer[name]),
      precision=jax.lax.Precision.HIGHEST,
    )

  def working_copy(self, params: Any) -> Any:
    """The parameters that all passes of one optimizer step read.

    With gather="step", blocks are cast and all-gathered along "fsdp" once,
    whatever the number of micro-batches (ZeRO-2, Rajbhandari et al. 2020).
    Tables and heads are unchanged: their gradients add up in fp32.
    """
    if self.gather == "layer":
      return params

    def gather_block(path: tuple[Any, ...], master: jax.Array) -> jax.Array:
      if not any(getattr(key, "key", None) == "blocks" for key in path):
        return master
      return partition.gather(path[-1].key, master, self.compute_dtype)

    return jax.tree_util.tree_map_with_path(gather_block, params)

  def publish(self, policy: Params) -> Params:
    """The policy in the form that the sampler reads; the caller jits this.

    Adapters are merged and blocks unstacked to a tuple; then everything is cast
    to the compute dtype and all-gathered along "fsdp", once instead of at every
    token. All arrays are new: a published policy outlives the donation of its
    masters.
    """

    def merge_layer(index: int) -> Params:
      block = jax.tree.map(lambda w: w[index], policy["trunk"]["blocks"])
      return lora.merge(block, self.adapter_scale)

    def cast_and_gather(path: tuple[Any, ...], weight: jax.Array) -> jax.Array:
      return partition.gather(
        path[-1].key, jnp.array(weight, self.compute_dtype)
      )

    blocks = tuple(merge_layer(index) for index in range(self.config.layers))
    unstacked = {**policy, "trunk": {**policy["trunk"], "blocks": blocks}}
    return jax.tree_util.tree_map_with_path(cast_and_gather, unstacked)

  def prefill(
    self,
    published: Params,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    response_tokens: int,
  ) -> tuple[jax.Array, caches.KVCache]:
    """The forward pass of the prompts, which fills a cache.

    Args:
      published: what `publish` made of the policy.
      tokens_BP: prompts, padded on the right.
      lengths_B: their lengths, at least 1.
      response_tokens: T, the columns to allocate for the response.

    Returns:
      hidden_BD at each row's last prompt token, and the cache.
    """
    return transformer.prefill(
      self.config, published["trunk"], tokens_BP, lengths_B, response_tokens
    )

  def decode(
    self,
    published: Params,
    cache: caches.KVCache,
    token_B: jax.Array,
    step: jax.Array,
  ) -> tuple[jax.Array, caches.KVCache]:
    """The forward pass of one more response token of each row.

    Args:
      published: as for `prefill`.
      cache: of the prompt and the first `step` response tokens.
      token_B: response token number `step`.
      step: int32 scalar, the response column that all rows write to.

    Returns:
      hidden_BD at that token, and the updated cache.
    """
    return transformer.decode(
      self.config, published["trunk"], cache, token_B, step
    )


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
  if value not in choices:
    raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}.")
