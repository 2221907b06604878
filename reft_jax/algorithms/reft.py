"""Reinforced fine-tuning (paper section 3.2, algorithm 1): PPO on answers."""

from reft_jax.learning import ppo
from reft_jax.run import context
from reft_jax.run import loop as loop_lib
from reft_jax.sampling import grading, rollouts


def train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """Improves a warmed-up policy on the training questions.

  Each step samples solutions, grades their final answers, turns rewards into
  advantages and updates the policy and the critic. The warmed-up policy stays
  beside it as the reference of the KL penalty. The questions' own chains of
  thought are not used.
  """
  return loop_lib.sweep(run, stage, _train_at)


def _train_at(run: context.Run, stage: context.StageRun) -> context.Trained:
  config = stage.config
  rollout_source = rollouts.Rollouts(run.engine, run.train, stage.name, config)
  steps = rollout_source.steps
  learner = ppo.PPOLearner(
    *run.learner_arguments(),
    name=stage.name,
    policy=stage.start_policy(),
    reft=config,
    optimizer=config.optimizer,
    updates=steps * config.ppo_epochs * (config.batch_size // config.minibatch),
  )
  with loop_lib.Loop(
    run, stage, learner, steps=steps, evaluate_every=config.evaluate_every
  ) as loop:
    for step in loop:
      rollout = rollout_source.sample(learner.model(), step)
      # The device reads the rollout while the host grades the last of it.
      assessment = learner.assess(rollout.tokens)
      answers = rollout.answers()
      rewards_B = grading.rewards(answers, config)
      experience, scored = learner.score(rollout.tokens, assessment, rewards_B)
      updated = learner.update(experience, step)
      verdicts = grading.verdict_metrics(answers, config)
      loop.end_step(step, scored | updated | verdicts, answers)
    return loop.result()
