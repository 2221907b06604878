"""Reinforced fine-tuning (paper section 3.2, algorithm 1): PPO on answers."""

import dataclasses
from typing import Any

from reft_jax import batching, devices, optim, rollout, steps, types
from reft_jax import config as config_lib
from reft_jax.methods import answering
from reft_jax.methods import loop as loop_lib
from reft_jax.methods.run import Run


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

  reference = devices.put(run.mesh, policy)
  value = run.networks.init_value(policy, run.config.model.value)

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
    params = {"policy": policy, "value": value}
    state, start = loop.restore(run.start(params, optimizer))
    for step in range(start, total):
      requests = batching.stream_requests(
        len(run.train), seed=run.config.seed, step=step, batch=questions
      )
      examples = [run.train[number % len(run.train)] for number in requests]
      prompts = run.prompts(examples, requests, questions)
      repeated = [
        each for each in examples for _ in range(config.samples_per_question)
      ]
      grading = answering.Grading(run, repeated)
      sampled = sample(
        run.publish(state.params["policy"]),
        prompts,
        run.key(name, "sample", step),
        on_ended=grading,
      )
      # The device reads the rollout while the host grades the last of it.
      assessment = assess(state.params, reference, sampled)
      answered = grading.answers(sampled)
      scores_B = devices.put_batch(
        run.mesh, answering.rewards(answered, config)
      )
      experience, metrics = score(sampled, assessment, scores_B)
      rate = schedule(state.step)
      state, learned = update(state, experience, run.key(name, "update", step))
      metrics |= learned | answering.shares(answered, config)
      metrics["learning_rate"] = types.Mean.of(rate)
      loop.end_step(step + 1, state, metrics, answered)
    return loop.result(state, config.optimizer.learning_rate)


def ppo_numbers(config: config_lib.ReftConfig) -> steps.PPO:
  """The objective's numbers, with the sizes that follow from others."""
  minibatch = config.minibatch_size or config.batch_size
  sizes = {
    "minibatch_size": minibatch,
    "micro_batch_size": config.micro_batch_size or minibatch,
  }
  names = {field.name for field in dataclasses.fields(steps.PPO)}
  return steps.PPO(
    **sizes, **{name: getattr(config, name) for name in names - sizes.keys()}
  )
