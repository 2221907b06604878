"""Reinforced fine-tuning (paper section 3.2, algorithm 1): PPO on answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from reft_jax import batching, devices, optim, rollout, steps, types
from reft_jax import config as config_lib
from reft_jax.methods import answering
from reft_jax.methods import loop as loop_lib
from reft_jax.methods.run import Run
from reft_jax.tasks.answers import Verdict


def train(
  run: Run,
  name: str,
  policy: Any,
  config: config_lib.ReftConfig,
  examine: loop_lib.Examine | None,
) -> loop_lib.Trained:
  """Improves a warmed-up policy on the training questions.

  Each step samples solutions, grades their final answers, turns the grades
  into advantages and updates the policy and the critic. The warmed-up policy
  stays beside it as the reference of the KL penalty. The questions' own
  chains of thought are not used.
  """
  questions = config.batch_size // config.samples_per_question
  total = config.steps or config.epochs * -(-len(run.train) // questions)
  ppo = ppo_numbers(config)
  updates = total * config.ppo_epochs * config.batch_size // ppo.minibatch_size
  optimizer = optim.build(config.optimizer, updates)
  schedule = optim.schedule(config.optimizer, updates)
  logit_chunk = run.config.model.logit_chunk

  reference = run.place(policy)
  value = run.networks.init_value(policy, run.config.model.value)
  state = run.place(
    steps.init_state({"policy": policy, "value": value}, optimizer)
  )

  sample = rollout.Sampler(
    run.networks,
    response_tokens=run.config.data.max_response_tokens,
    eos_ids=run.tokenizer.eos_ids,
    pad_id=run.tokenizer.pad_id,
    temperature=config.temperature,
    samples=config.samples_per_question,
  )
  assess = steps.assess(run.networks, ppo, logit_chunk=logit_chunk)
  score = steps.score(ppo)
  update = steps.ppo_update(
    run.networks, optimizer, ppo, logit_chunk=logit_chunk
  )

  with loop_lib.Loop(
    run,
    name,
    steps=total,
    evaluate_every=config.evaluate_every,
    examine=examine,
  ) as loop:
    state, start = loop.restore(state)
    for step in range(start, total):
      chosen = batching.stream_rows(
        len(run.train), seed=run.config.seed, step=step, batch=questions
      )
      prompts = run.prompts([run.train[i] for i in chosen], chosen, questions)
      published = run.publish(state.params["policy"])
      sampled = sample(published, prompts, run.key(name, "sample", step))
      # The device reads the rollout while the host grades it.
      assessment = assess(state.params, reference, sampled)
      answered = answering.grade(
        run,
        [run.train[i] for i in np.repeat(chosen, config.samples_per_question)],
        sampled,
      )
      scores_B = devices.put_batch(run.mesh, rewards(answered, config))
      experience, metrics = score(sampled, assessment, scores_B)
      rate = schedule(state.step)
      state, learned = update(state, experience, run.key(name, "update", step))
      metrics |= learned | verdicts(answered, config)
      metrics["learning_rate"] = types.Mean(total=rate, count=1)
      loop.end_step(step + 1, state, metrics, answered)
    return loop.result(state, config.optimizer.learning_rate)


def ppo_numbers(config: config_lib.ReftConfig) -> steps.PPO:
  """The objective's numbers, with the sizes that follow from others."""
  names = {field.name for field in dataclasses.fields(steps.PPO)}
  numbers = {
    name: value for name, value in vars(config).items() if name in names
  }
  minibatch = config.minibatch_size or config.batch_size
  numbers["minibatch_size"] = minibatch
  numbers["micro_batch_size"] = config.micro_batch_size or minibatch
  return steps.PPO(**numbers)


def rewards(
  answered: Sequence[answering.Answer], config: config_lib.ReftConfig
) -> np.ndarray:
  """Terminal scores: 1 right, `partial_reward` wrong, 0 without an answer."""
  worth = {
    Verdict.CORRECT: 1.0,
    Verdict.WRONG: config.partial_reward,
    Verdict.NONE: 0.0,
  }
  return np.array([worth[a.grade.verdict] for a in answered], np.float32)


def verdicts(
  answered: Sequence[answering.Answer], config: config_lib.ReftConfig
) -> dict[str, types.Mean]:
  """Shares of each verdict, and of the reward that is partial credit."""
  rows = len(answered)
  count = {
    verdict: sum(a.grade.verdict is verdict for a in answered)
    for verdict in Verdict
  }
  partial = config.partial_reward * count[Verdict.WRONG]
  shares = {
    f"verdict/{verdict.value}": types.Mean(total=float(number), count=rows)
    for verdict, number in count.items()
  }
  return shares | {
    "accuracy": shares["verdict/correct"],
    "reward/partial": types.Mean(
      total=partial, count=count[Verdict.CORRECT] + partial
    ),
  }
