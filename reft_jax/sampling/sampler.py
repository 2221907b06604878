"""The sampler: prompts -> Rollout.

Prefill runs once over the right-padded prompts. Then a jitted loop decodes a
chunk of tokens at a time into a donated cache and stops early when all rows
are done. The host looks at what a chunk made one chunk late, so the device
never waits for it: whether all rows are done, and which are, so that their
answers can be graded while the others go on. Layers are unrolled, keys and
values lie head-major in a prompt part and a response part with one shared
write column.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import types
from reft_jax.models import cache as cache_lib
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition, struct
from reft_jax.ops import sampling
from reft_jax.runtime import multihost


@struct.dataclass
class Progress:
  """What has been sampled up to now, for the host: no cache, no log-probs.

  Whole on every device, so that each process may look at all rows.
  """

  response_BT: chex.Array
  lengths_B: chex.Array
  ended_B: chex.Array


# Tokens decoded between two looks at the stop flag, unless a sampler is told
# otherwise.
CHUNK = 16

# Takes the rows that have ended since it was last called.
OnEnded = Callable[[Sequence[int], Progress], None]


@struct.dataclass
class _DecodeState:
  """Rows half sampled. `hidden_BD` predicts the token of column `step`."""

  step: chex.Array
  cache: cache_lib.KVCache
  hidden_BD: chex.Array
  keys_B: chex.Array
  response_BT: chex.Array
  logprobs_BT: chex.Array
  lengths_B: chex.Array
  ended_B: chex.Array


class Sampler:
  """Samples responses for batches of one shape.

  Args:
    networks: the pure functions of the model.
    response_tokens: T, the most tokens a response may have.
    eos_ids: a row is done once it emitted one of these.
    pad_id: what unused slots hold.
    temperature: divides the logits; 0 decodes greedily (its log-probs are
      those of temperature 1).
    top_k: draws from the likeliest tokens only; 0 draws from all.
    samples: responses a prompt; the prompt is prefilled once and its cache
      copied, and rows come out question by question.
    chunk: tokens decoded between two looks at the stop flag.

  Attributes:
    prefill: jitted, (published, prompts, key) to the rows before their first
      token.
    decode: jitted, (published, rows, upto) to the rows, which are donated, at
      column `upto` or when all have ended, and what the host may know of them.
  """

  def __init__(
    self,
    networks: networks_lib.Networks,
    *,
    response_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    samples: int = 1,
    chunk: int = CHUNK,
  ):
    self.samples = samples
    self._response_tokens = response_tokens
    self._chunk = chunk
    self.prefill = jax.jit(
      functools.partial(
        _prefill,
        networks=networks,
        response_tokens=response_tokens,
        pad_id=pad_id,
        samples=samples,
      )
    )
    self.decode = jax.jit(
      functools.partial(
        _decode_chunk,
        networks=networks,
        eos_ids=eos_ids,
        temperature=temperature,
        top_k=top_k,
      ),
      donate_argnums=1,
    )

  def __call__(
    self,
    published: Any,
    prompts: types.Prompts,
    key: jax.Array,
    on_ended: OnEnded | None = None,
  ) -> types.Rollout:
    """Samples from published parameters; `key` is this step's.

    `on_ended` gets rows that have ended while others go on; not those that
    end, or are cut at the length limit, at the very last.
    """
    state = self.prefill(published, prompts, key)
    # Filler rows end before they start, and are not reported.
    reported_B = ~np.repeat(multihost.allgather(prompts.real_B), self.samples)
    before = None
    for start in range(0, self._response_tokens, self._chunk):
      upto = min(start + self._chunk, self._response_tokens)
      state, now = self.decode(published, state, upto)
      if before is not None:
        ended_B = jax.device_get(before.ended_B)
        if on_ended is not None and np.any(ended_B & ~reported_B):
          on_ended(np.flatnonzero(ended_B & ~reported_B).tolist(), before)
        reported_B = ended_B
        if ended_B.all():
          break
      before = now
    repeat = functools.partial(jnp.repeat, repeats=self.samples, axis=0)
    return types.Rollout(
      prompt_BP=repeat(jnp.asarray(prompts.tokens_BP)),
      prompt_lengths_B=repeat(jnp.asarray(prompts.lengths_B)),
      response_BT=state.response_BT,
      response_lengths_B=state.lengths_B,
      ended_B=state.ended_B,
      logprobs_BT=state.logprobs_BT,
    )


def _prefill(
  published: Any,
  prompts: types.Prompts,
  key: jax.Array,
  *,
  networks: networks_lib.Networks,
  response_tokens: int,
  pad_id: int,
  samples: int,
) -> _DecodeState:
  """Rows before their first token, `samples` for each prompt."""
  hidden_BD, cache = networks.prefill(
    published, prompts.tokens_BP, prompts.lengths_B, response_tokens
  )
  requests_B, real_B = prompts.requests_B, prompts.real_B
  if samples > 1:
    # A prompt is read once; its samples start from copies of its cache.
    hidden_BD = jnp.repeat(hidden_BD, samples, axis=0)
    real_B = jnp.repeat(real_B, samples, axis=0)
    cache = cache_lib.repeat(cache, samples)
    # Each sample has a random stream of its own, wherever its row lies.
    requests_B = (
      requests_B[:, None] * samples
      + jnp.arange(samples, dtype=requests_B.dtype)[None, :]
    ).reshape(-1)
  rows = requests_B.shape[0]
  state = _DecodeState(
    step=jnp.int32(0),
    cache=cache,
    hidden_BD=hidden_BD,
    keys_B=sampling.row_keys(key, requests_B),
    response_BT=jnp.full((rows, response_tokens), pad_id, jnp.int32),
    logprobs_BT=jnp.zeros((rows, response_tokens), jnp.float32),
    lengths_B=jnp.zeros(rows, jnp.int32),
    ended_B=~real_B,  # Filler rows keep no chunk from ending early.
  )
  return _pinned(state)


def _decode_chunk(
  published: Any,
  state: _DecodeState,
  upto: jax.Array,
  *,
  networks: networks_lib.Networks,
  eos_ids: tuple[int, ...],
  temperature: float,
  top_k: int,
) -> tuple[_DecodeState, Progress]:
  """Decodes until column `upto` or until every row has emitted EOS."""

  def unfinished(state: _DecodeState) -> jax.Array:
    return (state.step < upto) & ~jnp.all(state.ended_B)

  def decode_token(state: _DecodeState) -> _DecodeState:
    # The head runs first and the trunk last: a row's hidden state always
    # predicts the next column, so prefill and decoding share one invariant.
    logits_BV = networks.logits(published, state.hidden_BD)
    scaled_BV = logits_BV / (temperature or 1.0)
    if top_k:
      scaled_BV = sampling.likeliest(scaled_BV, top_k)
    if temperature:
      # One uniform number a row, where Gumbel-argmax would need V.
      uniforms_B = sampling.uniforms(state.keys_B, state.step)
      token_B = sampling.inverse_cdf(scaled_BV, uniforms_B)
    else:
      token_B = jnp.argmax(scaled_BV, axis=-1).astype(jnp.int32)
    logprob_B = jnp.take_along_axis(
      jax.nn.log_softmax(scaled_BV), token_B[:, None], axis=-1
    )[:, 0]
    hidden_BD, cache = networks.decode(
      published, state.cache, token_B, state.step
    )
    running_B = ~state.ended_B
    is_eos_B = jnp.isin(token_B, jnp.asarray(eos_ids, jnp.int32))

    def write(array_BT: jax.Array, value_B: jax.Array) -> jax.Array:
      # All rows write the same column; rows that have ended keep theirs.
      kept_B = jnp.where(running_B, value_B, array_BT[:, state.step])
      return array_BT.at[:, state.step].set(kept_B)

    return dataclasses.replace(
      state,
      step=state.step + 1,
      cache=cache,
      hidden_BD=hidden_BD,
      response_BT=write(state.response_BT, token_B),
      logprobs_BT=write(state.logprobs_BT, logprob_B),
      lengths_B=state.lengths_B + running_B,
      ended_B=state.ended_B | is_eos_B,
    )

  state = jax.lax.while_loop(unfinished, decode_token, state)
  state = _pinned(state)
  progress = Progress(
    response_BT=state.response_BT,
    lengths_B=state.lengths_B,
    ended_B=state.ended_B,
  )
  return state, jax.tree.map(partition.replicate, progress)


def _pinned(state: _DecodeState) -> _DecodeState:
  """Rows spread over the devices that share them, heads over the others."""
  cache = cache_lib.pinned(state.cache)
  pinned = jax.tree.map(partition.pin, state)
  return dataclasses.replace(pinned, cache=cache)
