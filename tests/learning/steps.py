"""One update of each learner, on a tiny model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import ppo as ppo_lib
from reft_jax.learning import supervised as supervised_lib

ROWS = 8
PPO = schema.ReftConfig(
  minibatch_size=ROWS, micro_batch_size=ROWS, vf_coef=0.7, kl_coef=0.1
)
NETWORK, DESCENT = tiny.make(), optax.sgd(0.1)
SCORES = np.float32([1, 0, 0.1, 1, 0.1, 0, 1, 0.1])


def params_of(kind="shared"):
  policy = tiny.policy()
  if kind is None:
    return {"policy": policy}
  value = tiny.make().init_value(policy, kind)
  # A critic that says something.
  head = {"w_D": jnp.linspace(-0.3, 0.3, 16), "b": jnp.float32(0.2)}
  return {"policy": policy, "value": {**value, "head": head}}


@functools.cache
def compiled(network, ppo, optimizer, response_slots=None):
  """A step's three functions, the same for all tests that learn alike."""
  return (
    ppo_lib.make_assess(network, ppo, logit_chunk=16),
    ppo_lib.make_score(ppo),
    ppo_lib.make_update(
      network,
      optimizer,
      ppo,
      response_slots=response_slots,
      logit_chunk=16,
    ),
  )


def started(params, optimizer, kl_coef=0.0):
  """A state that may be donated: `params` and its like stay whole."""
  state = learner_lib.init_state(params, optimizer, kl_coef)
  return jax.tree.map(jnp.copy, state)


def learn(
  params,
  rollout,
  *,
  reference=None,
  ppo=PPO,
  scores=SCORES,
  network=NETWORK,
  optimizer=DESCENT,
  response_slots=None,
  key=0,
):
  """One ReFT step after sampling; returns experience, state and metrics."""
  assess, score, update = compiled(network, ppo, optimizer, response_slots)
  reference = params["policy"] if reference is None else reference
  assessment = assess(params, reference, rollout)
  state = started(params, optimizer, ppo.kl_coef)
  experience, metrics = score(
    rollout, assessment, jnp.asarray(scores), state.kl_coef
  )
  state, learned = update(state, experience, jax.random.key(key))
  means = {k: v.value() for k, v in jax.device_get(metrics | learned).items()}
  return experience, state, means


def imitation(rows=6, slots=9, seed=0):
  rng = np.random.default_rng(seed)
  lengths_B = rng.integers(3, slots + 1, rows).astype(np.int32)
  start_B = rng.integers(1, 3, rows)
  at = np.arange(slots)[None]
  return types.SupervisedBatch(
    tokens_BS=rng.integers(0, tiny.CONFIG.vocab_size, (rows, slots)).astype(
      np.int32
    ),
    lengths_B=lengths_B,
    targets_BS=(at >= start_B[:, None]) & (at < lengths_B[:, None]),
  )


@functools.cache
def compiled_imitation(optimizer, micro):
  return supervised_lib.make_update(
    NETWORK, optimizer, micro_batch=micro, logit_chunk=7
  )


def imitate(batch, micro=6, policy=None):
  """Loss of a batch, and the parameters after one update."""
  params = {"policy": tiny.policy() if policy is None else policy}
  state = started(params, DESCENT)
  state, metrics = compiled_imitation(DESCENT, micro)(state, batch)
  return metrics["loss"].value(), jax.device_get(state.params)
