"""One forward pass over prompt and response, read by action."""

import dataclasses
import functools
from typing import Any

import jax

from reft_jax import types
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition
from reft_jax.ops import logprobs, sequences


def joined(rollout: types.Rollout) -> jax.Array:
  """tokens_BS: each prompt and its response as one row; S = P + T."""
  return sequences.join(
    rollout.prompt_BP,
    rollout.prompt_lengths_B,
    rollout.response_BT,
    rollout.response_lengths_B,
  )


def response_hidden(
  networks: networks_lib.Networks, trunk: Any, rollout: types.Rollout
) -> jax.Array:
  """hidden_BTD: the rows that predict the response.

  This is the one shift in the program: the LM head runs on response rows only.
  """
  hidden_BSD = networks.hidden(trunk, joined(rollout), rollout.lengths_B)
  return sequences.predicting(
    hidden_BSD, rollout.prompt_lengths_B, rollout.response_BT.shape[1]
  )


def response_logprobs(
  networks: networks_lib.Networks,
  policy: Any,
  hidden_BTD: jax.Array,
  rollout: types.Rollout,
  *,
  temperature: float,
  logit_chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """Log-probs_BT of the actions taken, and the policy's entropies_BT."""
  return logprobs.of_tokens(
    functools.partial(networks.logits, policy),
    hidden_BTD,
    rollout.response_BT,
    temperature=temperature,
    chunk=logit_chunk * partition.num_shards(),
  )


@functools.partial(jax.jit, static_argnums=1)
def trimmed(rollout: types.Rollout, slots: int) -> types.Rollout:
  """A rollout with its first `slots` response slots, if others are unused."""
  return dataclasses.replace(
    rollout,
    response_BT=partition.pin_or_replicate(rollout.response_BT[:, :slots]),
    logprobs_BT=partition.pin_or_replicate(rollout.logprobs_BT[:, :slots]),
  )
