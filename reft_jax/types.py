"""What flows through the program on devices: batches, rollouts, experience.

Letters in names are axes: B sequences, P prompt slots, T response slots,
S = P + T, V vocabulary, D width. Rows are right-padded and lengths define the
masks, never pad ids, so a sampled pad id is a token like any other.

Everything about a response is indexed by action: at index t the state is the
prompt and response[:t], the action is response[t].
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


@chex.dataclass(frozen=True)
class Mean:
  """A metric that stays a sum until it is read: merged by adding."""

  total: chex.Numeric
  count: chex.Numeric

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(total=self.total + other.total, count=self.count + other.count)

  @classmethod
  def of(cls, total: float, count: float = 1) -> "Mean":
    """One from host numbers, in float32 like those from devices."""
    return cls(total=np.float32(total), count=np.float32(count))

  def value(self) -> float:
    """The mean on the host; nan where nothing was counted."""
    count = float(self.count)
    return float(self.total) / count if count else float("nan")


@chex.dataclass(frozen=True)
class SupervisedBatch:
  """Texts to imitate. One row is prompt, answer, EOS, then padding.

  `targets_BS` is true at the tokens to be predicted (the answer and its EOS);
  a filler row has none and counts for nothing.
  """

  tokens_BS: chex.Array
  lengths_B: chex.Array
  targets_BS: chex.Array

  def masked_out(self) -> "SupervisedBatch":
    """The same rows as filler."""
    return self.replace(targets_BS=jnp.zeros_like(self.targets_BS))


@chex.dataclass(frozen=True)
class LabelledBatch:
  """Solutions to judge. One row is prompt, solution without EOS, then padding.

  `labels_B` is the index of the row's class in models.config.CLASSES: 1 where
  the solution is correct. A filler row is one that is not real: it has a
  token, so that it can be read, and counts for nothing.
  """

  tokens_BS: chex.Array
  lengths_B: chex.Array
  labels_B: chex.Array
  real_B: chex.Array

  def masked_out(self) -> "LabelledBatch":
    """The same rows as filler."""
    return self.replace(real_B=jnp.zeros_like(self.real_B))


@chex.dataclass(frozen=True)
class Prompts:
  """Questions to answer. `requests_B` names each row's random stream.

  What is sampled for a request depends on its number and not on its place in
  the batch. A filler row is one that is not real: it has a token, so that it
  can be read, and is done before anything is sampled.
  """

  tokens_BP: chex.Array
  lengths_B: chex.Array
  requests_B: chex.Array
  real_B: chex.Array


@chex.dataclass(frozen=True)
class Rollout:
  """One sampled response a row, with its prompt.

  `response_lengths_B` counts the actions up to and including the one that
  emits EOS; `ended_B` is false where the row was cut at the length limit.
  `logprobs_BT` are the sampler's own, of the distribution sampled from.
  """

  prompt_BP: chex.Array
  prompt_lengths_B: chex.Array
  response_BT: chex.Array
  response_lengths_B: chex.Array
  ended_B: chex.Array
  logprobs_BT: chex.Array

  @property
  def mask_BT(self) -> jax.Array:
    """True at the actions that were taken."""
    slots_T = jnp.arange(self.response_BT.shape[1])
    return slots_T[None, :] < self.response_lengths_B[:, None]

  @property
  def lengths_B(self) -> jax.Array:
    """Tokens of prompt and response together."""
    return self.prompt_lengths_B + self.response_lengths_B

  def masked_out(self) -> "Rollout":
    """The same prompts without a response."""
    return self.replace(
      response_lengths_B=jnp.zeros_like(self.response_lengths_B)
    )


@chex.dataclass(frozen=True)
class Experience:
  """A rollout scored: what the PPO update learns from, by action.

  Made once and never mutated; epochs and minibatches index it. Values and
  returns are None without a critic. `counts_B` is false in rows that are left
  out: their loss is 0, and no mean is over them.
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
    """True at the actions that are learnt from."""
    return self.rollout.mask_BT & self.counts_B[:, None]

  def masked_out(self) -> "Experience":
    """The same rows, left out."""
    return self.replace(
      rollout=self.rollout.masked_out(), counts_B=jnp.zeros_like(self.counts_B)
    )


@chex.dataclass(frozen=True)
class TrainState:
  """Everything a step changes.

  `step` counts optimizer updates; `kl_coef` is the present cost of drifting
  from the reference, 0 where there is none.
  """

  step: chex.Array
  params: Any
  opt_state: Any
  kl_coef: chex.Array
