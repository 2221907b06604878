"""Reinforced fine-tuning (paper section 3.2, algorithm 1): PPO on answers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import optim, steps
from reft_jax.models import lora
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import grading
from reft_jax.sampling import rollouts as rollouts_lib


def train(
  run: Run,
  name: str,
  policy: Callable[[], Any],
  config: schema.ReftConfig,
  evaluate_fn: loop_lib.EvaluateFn | None,
) -> loop_lib.Trained:
  """Improves a warmed-up policy on the training questions.

  Each step samples solutions, grades their final answers, turns the grades
  into advantages and updates the policy and the critic. The warmed-up policy
  stays beside it as the reference of the KL penalty. The questions' own
  chains of thought are not used. With several learning rates, the best on dev
  stays.
  """
  train_at = functools.partial(_train_at, run, name, policy, evaluate_fn)
  return loop_lib.sweep(run, name, config, train_at)


def _train_at(run, name, policy, evaluate_fn, part, config) -> loop_lib.Trained:
  """Improves it at one learning rate; all of them draw by the same keys."""
  rollouts = rollouts_lib.Rollouts(run, name, config)
  ppo = dataclasses.replace(
    ppo_numbers(config), response_slots=run.config.data.max_response_tokens
  )
  minibatches = config.batch_size // ppo.minibatch_size
  updates = rollouts.steps * config.ppo_epochs * minibatches
  optimizer = optim.build(config.optimizer, updates)
  schedule = optim.schedule(config.optimizer, updates)
  logit_chunk = run.config.model.logit_chunk

  frozen, learnt = run.split_trainable(policy(), name)
  params = {"policy": learnt}
  if ppo.critic:
    init = functools.partial(
      run.networks.init_value, kind=run.config.model.value
    )
    params["value"] = run.init_sharded(init, learnt)
  base = lora.frozen_base(frozen, params)
  whole = functools.partial(lora.join, base)
  # With LoRA the same weights again, beside an adapter that adds 0.
  reference = whole({"policy": learnt})["policy"]

  assess = steps.assess(run.networks, ppo, logit_chunk=logit_chunk)
  score = steps.score(ppo)
  update = steps.ppo_update(
    run.networks, optimizer, ppo, logit_chunk=logit_chunk
  )

  with loop_lib.Loop(
    run,
    part,
    steps=rollouts.steps,
    evaluate_every=config.evaluate_every,
    evaluate_fn=evaluate_fn,
    base=base,
  ) as loop:
    state, start = loop.restore(run.start(params, optimizer, ppo.kl_coef))
    del params  # The state has its own.
    for step in range(start, rollouts.steps):
      current = whole(state.params)
      sampled, _, verdicts = rollouts(current["policy"], step)
      # The device reads the rollout while the host grades the last of it.
      assessment = assess(current, reference, sampled)
      del current  # The update takes its arrays.
      answered = verdicts.answers(sampled)
      scores_B = mesh_lib.put_batch(run.mesh, grading.rewards(answered, config))
      experience, metrics = score(sampled, assessment, scores_B, state.kl_coef)
      rate = schedule(state.step)
      key = run.key(name, "update", step)
      state, learned = update(state, experience, key, base=base)
      metrics |= learned | grading.verdict_metrics(answered, config)
      metrics["learning_rate"] = types.Mean.of(rate)
      loop.end_step(step + 1, state, metrics, answered)
    return loop.result(state, config.optimizer.learning_rate)


def ppo_numbers(config: schema.ReftConfig) -> steps.PPO:
  """The objective's numbers, with those that follow from others."""
  minibatch = config.minibatch_size or config.batch_size
  usual = {"reward": "k1", "loss": "k3"}[config.kl_in]
  resolved = {
    "minibatch_size": minibatch,
    "micro_batch_size": config.micro_batch_size or minibatch,
    "kl_estimator": config.kl_estimator or usual,
  }
  names = {field.name for field in dataclasses.fields(steps.PPO)}
  names.remove("response_slots")  # The data's.
  return steps.PPO(
    **resolved,
    **{name: getattr(config, name) for name in names - resolved.keys()},
  )
