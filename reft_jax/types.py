"""The data on devices: batches, rollouts, experience.

Letters in names are axes: B sequences, P prompt slots, T response slots,
S = P + T, V vocabulary, D width. Rows are right-padded. Masks come from
lengths, never from pad ids, so a sampled pad id is a token like any other.

Arrays of a response are indexed by action: at index t the state is the prompt
and response[:t], and the action is response[t].
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.models import struct


@struct.dataclass
class Mean:
  """A metric that stays a sum until it is read, so means merge by adding."""

  total: chex.Numeric
  count: chex.Numeric

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(total=self.total + other.total, count=self.count + other.count)

  @classmethod
  def of(cls, total: float, count: float = 1) -> "Mean":
    """A mean of host numbers, in float32 like those from devices."""
    return cls(total=np.float32(total), count=np.float32(count))

  def value(self) -> float:
    """The mean on the host; nan if nothing was counted."""
    count = float(self.count)
    return float(self.total) / count if count else float("nan")


@struct.dataclass
class SupervisedBatch:
  """Supervised training rows: prompt, answer, EOS, padding.

  `targets_BS` is true at the tokens to predict: the answer and its EOS. Filler
  rows have no targets and do not count.
  """

  tokens_BS: chex.Array
  lengths_B: chex.Array
  targets_BS: chex.Array

  def masked_out(self) -> "SupervisedBatch":
    """The same rows as filler."""
    return dataclasses.replace(self, targets_BS=jnp.zeros_like(self.targets_BS))


@struct.dataclass
class LabelledBatch:
  """Reward model rows: prompt, solution without EOS, padding.

  `labels_B` is the index of the row's class in models.config.CLASSES: 1 if the
  solution is correct. Rows that are not real are filler: they have one token,
  so that they can be read, and do not count.
  """

  tokens_BS: chex.Array
  lengths_B: chex.Array
  labels_B: chex.Array
  real_B: chex.Array

  def masked_out(self) -> "LabelledBatch":
    """The same rows as filler."""
    return dataclasses.replace(self, real_B=jnp.zeros_like(self.real_B))


@struct.dataclass
class Prompts:
  """Questions to answer.

  `requests_B` selects each row's random stream, so a response does not depend
  on its place in the batch. Rows that are not real are filler: they have one
  token, so that they can be read, and are done before the first sample.
  """

  tokens_BP: chex.Array
  lengths_B: chex.Array
  requests_B: chex.Array
  real_B: chex.Array


@struct.dataclass
class Rollout:
  """Prompts with one sampled response each.

  `response_lengths_B` counts the actions, including the one that emits EOS;
  `ended_B` is false for rows cut at the length limit. `logprobs_BT` are the
  sampler's, of the distribution that it samples from.
  """

  prompt_BP: chex.Array
  prompt_lengths_B: chex.Array
  response_BT: chex.Array
  response_lengths_B: chex.Array
  ended_B: chex.Array
  logprobs_BT: chex.Array

  @property
  def mask_BT(self) -> jax.Array:
    """True at the actions taken."""
    slots_T = jnp.arange(self.response_BT.shape[1])
    return slots_T[None, :] < self.response_lengths_B[:, None]

  @property
  def lengths_B(self) -> jax.Array:
    """The tokens of prompt and response."""
    return self.prompt_lengths_B + self.response_lengths_B

  def masked_out(self) -> "Rollout":
    """The same prompts without a response."""
    return dataclasses.replace(
      self, response_lengths_B=jnp.zeros_like(self.response_lengths_B)
    )


@struct.dataclass
class Experience:
  """A scored rollout, the data of a PPO update.

  Made once and never mutated; epochs and minibatches index it. Values and
  returns are None without a critic. `counts_B` is false for rows that are left
  out of the loss and of all means.
  """

  rollout: Rollout
  logprobs_BT: chex.Array
  reference_logprobs_BT: chex.Array
  values_BT: chex.Array | None
  advantages_BT: chex.Array
  returns_BT: chex.Array | None
  counts_B: chex.Array

  @property
  def mask_BT(self) -> jax.Array:
    """True at the actions in the loss."""
    return self.rollout.mask_BT & self.counts_B[:, None]

  def masked_out(self) -> "Experience":
    """The same rows, left out of the loss."""
    return dataclasses.replace(
      self,
      rollout=self.rollout.masked_out(),
      counts_B=jnp.zeros_like(self.counts_B),
    )


@struct.dataclass
class TrainState:
  """Everything that a training step changes.

  `step` counts optimizer updates; `kl_coef` is the present coefficient of the
  KL penalty, 0 without one.
  """

  step: chex.Array
  params: Any
  opt_state: Any
  kl_coef: chex.Array
