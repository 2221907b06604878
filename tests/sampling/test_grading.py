"""Completions to answers, answers to rewards, votes and metrics."""

import json
import math

import numpy as np
import pytest
import tiny

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.run import context
from reft_jax.sampling import grading as grading_lib
from reft_jax.sampling import sampler as sampler_lib
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers import grade as grade_lib
from reft_jax.tasks.answers.grade import Verdict
from reft_jax.tasks.grader import Grader
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import results


@pytest.fixture(scope="module")
def run() -> context.Run:
  return tiny.run(embedded.problems(1, seed=0))


def replies(run, texts) -> types.Rollout:
  """A rollout of these texts: the first ends, the others are cut."""
  ids = [run.engine.tokenizer.encode(text) for text in texts]
  ids[0].append(run.engine.tokenizer.eos_ids[0])
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


@pytest.mark.parametrize("mode", grade_lib.MODES)
def test_rows_are_graded_by_the_mode_of_the_run(run, mode):
  example = run.test[0]
  right = prompts.target(example.problem)
  wrong = f"We get 1 + 1 = 2.{prompts.ANSWER_TRIGGER}98"
  bare = f" {example.problem.answer}"
  grades = grading_lib.PendingGrades(
    Grader(mode=mode),
    run.engine.tokenizer,
    [example] * 3,  # The fourth row pads the batch.
  )
  sampled = replies(run, [right, wrong, bare, right])
  # One row ends before the others, is started twice, and a padding row is too.
  progress = sampler_lib.Progress(
    response_BT=sampled.response_BT,
    lengths_B=sampled.response_lengths_B,
    ended_B=sampled.ended_B,
  )
  grades.start([1, 3], progress)
  grades.start([1], progress)
  graded = grades.answers(sampled)
  lenient = Verdict.CORRECT if mode == "official" else Verdict.NONE
  assert [each.grade.verdict for each in graded] == [
    Verdict.CORRECT,
    Verdict.WRONG,
    lenient,
  ]
  assert [each.completion for each in graded] == [right, wrong, bare]
  assert [each.ended for each in graded] == [True, False, False]
  assert grading_lib.accuracy(graded) == (2 if mode == "official" else 1) / 3
  assert graded[1].row() == {
    "uid": example.problem.uid,
    "question": example.problem.question,
    "completion": wrong,
    "verdict": "wrong",
    "value": 98.0,
    "reached": None,
    "supported": None,
    "answer": example.problem.answer,
    "ended": False,
  }


@pytest.mark.parametrize(
  ("grade", "result"),
  [
    (grade_lib.Grade(Verdict.CORRECT, 7.0), None),
    (grade_lib.Grade(Verdict.NONE, None), None),
    (grade_lib.Grade(Verdict.WRONG, math.inf), None),
    (grade_lib.Grade(Verdict.WRONG, "\ud800"), None),
    (
      grade_lib.Grade(Verdict.WRONG, "c", reached=0.1 + 0.2, supported=False),
      None,
    ),
    (
      grade_lib.Grade(Verdict.NONE, None),
      results.Result(results.Status.TIMED_OUT, "cpython", reason="CPU time"),
    ),
  ],
)
def test_an_answer_is_recalled_from_json(run, grade, result):
  answer = grading_lib.Answer(run.test[0], "7 \u2028 \n", grade, True, result)
  kept = json.loads(json.dumps(answer.to_json()))
  assert answer == grading_lib.Answer.from_json(
    answer.example, answer.completion, answer.ended, kept
  )


def example(task, answer) -> encode.Example:
  question = "Which?\na ) 38 , b ) 27.675 , c ) 30 , d ) none of these"
  return encode.Example(Problem("x_0", task, question, None, answer), (), None)


def answered(*values) -> list[grading_lib.Answer]:
  """Answers to a question whose answer is 7; None is no answer."""
  return [
    grading_lib.Answer(
      example("embedded", "7"),
      "",
      grade_lib.Grade(verdict(value, 7), value),
      True,
    )
    for value in values
  ]


def chosen(*letters) -> list[grading_lib.Answer]:
  """Answers to a choice whose answer is b: letters, and if they are reached."""
  return [
    grading_lib.Answer(
      example("mathqa", "b"),
      "",
      grade_lib.Grade(verdict(letter, "b"), letter, supported=supported),
      True,
    )
    for letter, supported in letters
  ]


def verdict(value, truth) -> Verdict:
  if value is None:
    return Verdict.NONE
  return Verdict.CORRECT if value == truth else Verdict.WRONG


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
  assert grading_lib.majority_accuracy([answered(*votes)]) == right


def test_shares_of_questions():
  groups = [answered(7, 7, 8), answered(8, 8, 7), answered(None, 7, None)]
  assert grading_lib.majority_accuracy(groups) == 2 / 3
  assert grading_lib.accuracy([each for group in groups for each in group]) == (
    4 / 9
  )
  assert math.isnan(grading_lib.majority_accuracy([]))
  assert math.isnan(grading_lib.accuracy([]))


def test_scores_and_what_they_consist_of():
  graded = answered(7, 8, None, 9, 7, None, None, 8)
  config = schema.ReftConfig(partial_reward=0.1)
  scores_B = grading_lib.rewards(graded, config)
  assert scores_B.dtype == np.float32
  np.testing.assert_array_equal(
    scores_B, np.float32([1, 0.1, 0, 0.1, 1, 0, 0, 0.1])
  )
  # Also where no score is a whole number, or every one is.
  np.testing.assert_array_equal(
    grading_lib.rewards(answered(8, 8), config), np.float32([0.1, 0.1])
  )
  np.testing.assert_array_equal(
    grading_lib.rewards(answered(None), config), [0]
  )

  shares = {
    name: mean.value()
    for name, mean in grading_lib.verdict_metrics(graded, config).items()
  }
  assert shares == pytest.approx(
    {
      "verdict/correct": 2 / 8,
      "verdict/wrong": 3 / 8,
      "verdict/none": 3 / 8,
      "reward/partial": 0.3 / 2.3,
    }
  )
  none = grading_lib.verdict_metrics(answered(None, None), config)
  assert math.isnan(none["reward/partial"].value())
  strict = schema.ReftConfig(partial_reward=0.0)
  assert grading_lib.rewards(graded, strict).sum() == 2
  assert (
    grading_lib.verdict_metrics(graded, strict)["reward/partial"].value() == 0
  )


CHOICES = (
  ("b", True),
  ("b", False),
  ("b", None),  # Such as of a program that returns the letter.
  ("c", True),
  ("c", False),
  (None, None),
)


@pytest.mark.parametrize(
  ("choice_reward", "scores"),
  [("letter", [1, 1, 1, 0.1, 0.1, 0]), ("value", [1, 0.1, 0.1, 0.1, 0.1, 0])],
)
def test_a_letter_may_have_to_be_reached(choice_reward, scores):
  graded = chosen(*CHOICES)
  config = schema.ReftConfig(choice_reward=choice_reward)
  scores_B = grading_lib.rewards(graded, config)
  np.testing.assert_array_equal(scores_B, np.float32(scores))
  shares = grading_lib.verdict_metrics(graded, config)
  # Of the three right letters one cannot be told, and one was not reached.
  assert shares["choice/unreached"].value() == 1 / 2
  partial = sum(score for score in scores if score < 1) / sum(scores)
  assert shares["reward/partial"].value() == pytest.approx(partial)


def test_a_letter_without_a_value_is_paid_as_it_is():
  config = schema.ReftConfig(choice_reward="value")
  question = example("mathqa", "d").problem
  right = grade_lib.Grade(Verdict.CORRECT, "d", reached=5.0)
  assert grading_lib.reward(question, right, config) == 1


def test_numbers_are_paid_alike_however_choices_are():
  graded = answered(7, 8, None)
  config = schema.ReftConfig(choice_reward="value")
  scores_B = grading_lib.rewards(graded, config)
  np.testing.assert_array_equal(scores_B, np.float32([1, 0.1, 0]))
  assert "choice/unreached" not in grading_lib.verdict_metrics(graded, config)
