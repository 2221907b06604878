"""Joining prompt and response, and the one shift from states to actions."""

import chex
import jax
import jax.numpy as jnp


def join(
  prompt_BP: jax.Array,
  prompt_lengths_B: jax.Array,
  response_BT: jax.Array,
  response_lengths_B: jax.Array,
) -> jax.Array:
  """Rows tokens_BS of prompt, response and zeros; S = P + T.

  Training uses the sampled ids themselves: nothing is decoded in between.
  """
  prompt_slots, response_slots = prompt_BP.shape[1], response_BT.shape[1]
  slots_1S = jnp.arange(prompt_slots + response_slots)[None, :]
  action_BS = slots_1S - prompt_lengths_B[:, None]
  in_prompt_BS = action_BS < 0
  in_response_BS = ~in_prompt_BS & (action_BS < response_lengths_B[:, None])
  from_prompt_BS = jnp.pad(prompt_BP, ((0, 0), (0, response_slots)))
  from_response_BS = jnp.take_along_axis(
    response_BT, jnp.clip(action_BS, 0, response_slots - 1), axis=1
  )
  return jnp.where(
    in_prompt_BS,
    from_prompt_BS,
    jnp.where(in_response_BS, from_response_BS, 0),
  )


def predicting(
  hidden_BSD: jax.Array, prompt_lengths_B: jax.Array, slots: int
) -> jax.Array:
  """The hidden states hidden_BTD that predict the response's actions.

  Action t is token prompt_length + t, predicted at the position before it.
  """
  chex.assert_rank(hidden_BSD, 3)
  source_BT = prompt_lengths_B[:, None] - 1 + jnp.arange(slots)[None, :]
  return jnp.take_along_axis(hidden_BSD, source_BT[:, :, None], axis=1)
