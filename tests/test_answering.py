"""From questions to graded answers, votes, scores and their shares."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest
import tiny

from reft_jax import batching, types
from reft_jax import config as configs
from reft_jax import tokenizer as tokenizers
from reft_jax.methods import answering, reft
from reft_jax.methods import run as run_lib
from reft_jax.models import networks
from reft_jax.tasks import answers, embedded, prompts
from reft_jax.tasks.answers import Verdict

QUESTIONS, RESPONSE_SLOTS = 7, 8


@pytest.fixture(scope="module")
def run() -> run_lib.Run:
  """Seven questions and a model that says something else to each."""
  tokenizer = tokenizers.wrap(embedded.tokenizer())
  config = configs.load(
    ["embedded"],
    [f"data.max_response_tokens={RESPONSE_SLOTS}", "evaluation.batch_size=5"],
  )
  examples = batching.encode(
    embedded.problems(QUESTIONS, seed=0),
    tokenizer,
    reasoning="nl",
    add_bos=False,
    max_prompt_tokens=40,
    max_response_tokens=32,
  ).examples
  return run_lib.Run(
    config=config,
    directory=pathlib.Path(),
    mesh=tiny.mesh((1, 2, 1)),
    networks=networks.Networks(
      dataclasses.replace(
        tiny.CONFIG, vocab_size=tokenizer.vocab_size, layers=1
      )
    ),
    tokenizer=tokenizer,
    train=(),
    dev=(),
    test=examples,
    recorder=None,
    terminal=None,
  )


@pytest.fixture(scope="module")
def policy(run):
  return jax.jit(run.networks.init)(jax.random.key(0))


def answerer(run, *, rows, samples=1, temperature=0.0):
  """One that answers at most so many rows at once; as a function."""
  evaluation = dataclasses.replace(run.config.evaluation, batch_size=rows)
  config = dataclasses.replace(run.config, evaluation=evaluation)
  answer = answering.Answerer(
    dataclasses.replace(run, config=config),
    samples=samples,
    temperature=temperature,
  )

  def call(policy, examples):
    with jax.set_mesh(run.mesh):
      return answer(policy, examples, run.key("here"))

  return call


def test_every_question_is_answered_once_and_in_order(run, policy):
  answer = answerer(run, rows=5)  # Two devices share four of them.
  groups = answer(policy, run.test)
  assert [[each.example for each in group] for group in groups] == [
    [example] for example in run.test
  ]
  assert len({group[0].completion for group in groups}) > 1
  assert groups == answer(policy, run.test[:4]) + answer(policy, run.test[4:])
  assert groups[::-1] == answer(policy, run.test[::-1])
  assert answer(policy, []) == []


def test_samples_do_not_depend_on_how_many_fit_a_batch(run, policy):
  # A question's two samples side by side, or one after the other.
  together = answerer(run, rows=4, samples=2, temperature=1.0)
  groups = together(policy, run.test)
  assert [[each.example for each in group] for group in groups] == [
    [example] * 2 for example in run.test
  ]
  assert all(a.completion != b.completion for a, b in groups)
  assert groups[:3] == together(policy, run.test[:3])
  apart = answerer(run, rows=3, samples=2, temperature=1.0)
  assert groups == apart(policy, run.test)


def replies(run, texts) -> types.Rollout:
  """A rollout of these texts: the first ends, the others are cut."""
  ids = [run.tokenizer.encode(text) for text in texts]
  ids[0].append(run.tokenizer.eos_ids[0])
  lengths_B = np.array([len(row) for row in ids], np.int32)
  # What lies behind a row's end would spoil its answer.
  response_BT = np.full((len(ids), lengths_B.max() + 1), ids[0][0], np.int32)
  for row, tokens in enumerate(ids):
    response_BT[row, : len(tokens)] = tokens
  return types.Rollout(
    prompt_BP=np.zeros((len(ids), 1), np.int32),
    prompt_lengths_B=np.ones(len(ids), np.int32),
    response_BT=response_BT,
    response_lengths_B=lengths_B,
    ended_B=np.arange(len(ids)) == 0,
    logprobs_BT=np.zeros(response_BT.shape, np.float32),
  )


@pytest.mark.parametrize("mode", answers.MODES)
def test_rows_are_graded_by_the_mode_of_the_run(run, mode):
  example = run.test[0]
  right = prompts.target(example.problem)
  wrong = f"We get 1 + 1 = 2.{prompts.ANSWER_TRIGGER}98"
  bare = f" {example.problem.answer}"
  data = dataclasses.replace(run.config.data, answers=mode)
  graded = answering.grade(
    dataclasses.replace(run, config=dataclasses.replace(run.config, data=data)),
    [example] * 3,  # The fourth row fills the batch up.
    replies(run, [right, wrong, bare, right]),
  )
  lenient = Verdict.CORRECT if mode == "official" else Verdict.NONE
  assert [each.grade.verdict for each in graded] == [
    Verdict.CORRECT,
    Verdict.WRONG,
    lenient,
  ]
  assert [each.completion for each in graded] == [right, wrong, bare]
  assert [each.ended for each in graded] == [True, False, False]
  assert answering.accuracy(graded) == (2 if mode == "official" else 1) / 3
  assert graded[1].row() == {
    "uid": example.problem.uid,
    "question": example.problem.question,
    "completion": wrong,
    "verdict": "wrong",
    "value": 98.0,
    "answer": example.problem.answer,
    "ended": False,
  }


def answered(*values) -> list[answering.Answer]:
  """Answers to a question whose answer is 7; None is no answer."""

  def verdict(value):
    if value is None:
      return Verdict.NONE
    return Verdict.CORRECT if value == 7 else Verdict.WRONG

  return [
    answering.Answer(None, "", answers.Grade(verdict(value), value), True)
    for value in values
  ]


@pytest.mark.parametrize(
  ("votes", "right"),
  [
    ((7, 8, 7), True),
    ((8, 7, 8), False),
    ((None, None, 7), True),
    ((None, None, 8), False),
    ((None, None, None), False),
    ((7, 8), True),  # Of two alike, the first.
    ((8, 7), False),
    ((8, 9, 7, 7), True),
  ],
)
def test_a_vote(votes, right):
  assert answering.majority_accuracy([answered(*votes)]) == right


def test_shares_of_questions():
  groups = [answered(7, 7, 8), answered(8, 8, 7), answered(None, 7, None)]
  assert answering.majority_accuracy(groups) == 2 / 3
  assert answering.accuracy([each for group in groups for each in group]) == (
    4 / 9
  )
  assert math.isnan(answering.majority_accuracy([]))
  assert math.isnan(answering.accuracy([]))


def test_scores_and_what_they_consist_of():
  graded = answered(7, 8, None, 9, 7, None, None, 8)
  config = configs.ReftConfig(partial_reward=0.1)
  scores_B = reft.rewards(graded, config)
  assert scores_B.dtype == np.float32
  np.testing.assert_array_equal(
    scores_B, np.float32([1, 0.1, 0, 0.1, 1, 0, 0, 0.1])
  )
  # Also where no score is a whole number, or every one is.
  np.testing.assert_array_equal(
    reft.rewards(answered(8, 8), config), np.float32([0.1, 0.1])
  )
  np.testing.assert_array_equal(reft.rewards(answered(None), config), [0])

  shares = {
    name: mean.value() for name, mean in reft.verdicts(graded, config).items()
  }
  assert shares == pytest.approx(
    {
      "verdict/correct": 2 / 8,
      "verdict/wrong": 3 / 8,
      "verdict/none": 3 / 8,
      "accuracy": 2 / 8,
      "reward/partial": 0.3 / 2.3,
    }
  )
  none = reft.verdicts(answered(None, None), config)
  assert math.isnan(none["reward/partial"].value())
  strict = configs.ReftConfig(partial_reward=0.0)
  assert reft.rewards(graded, strict).sum() == 2
  assert reft.verdicts(graded, strict)["reward/partial"].value() == 0
