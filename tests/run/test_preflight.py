"""Reference answers must earn what the policy is to earn."""

import dataclasses

import pytest
import tiny

from reft_jax import errors
from reft_jax.data import encode
from reft_jax.run import preflight
from reft_jax.tasks import embedded
from reft_jax.tasks.answers.grade import Verdict
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import executor


@pytest.fixture(scope="module")
def programs():
  with executor.Executor(isolation="monty", workers=1) as running:
    yield running


def check(problems, *settings, programs=None):
  run = tiny.run(problems, *settings, executor=programs)
  splits = {"test": encode.Encoded(run.test, 0, 0)}
  return preflight.check_reference_answers(
    run.engine.grader, run.engine.tokenizer, splits, run.config.reft
  )


@pytest.mark.parametrize("mode", ["strict", "official"])
@pytest.mark.parametrize("choice", [False, True])
def test_annotations_earn_1(mode, choice):
  problems = embedded.problems(20, seed=1, choice=choice)
  settings = (f"data.answers={mode}", "embedded.choices=1")
  assert check(problems, *settings) == []


PYTHON = ("data.reasoning=python", "embedded.programs=1")


@pytest.mark.parametrize("choice", [False, True])
def test_annotated_programs_earn_1(programs, choice):
  problems = embedded.problems(20, seed=1, reasoning="python", choice=choice)
  settings = (*PYTHON, "embedded.choices=1")
  assert check(problems, *settings, programs=programs) == []


def bare(task, answer, question="How many?") -> Problem:
  return Problem(f"{task}_0", task, question, None, answer)


ANSWERS = (
  bare("gsm8k", "70000"),
  bare("gsm8k", "1,250"),
  bare("svamp", "203.0"),
  bare("svamp", "-3"),
  bare("mathqa-numeric", "0.0045"),
  bare("mathqa", "b", "What?\na ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) none"),
  bare("mathqa", "e", "What?\na ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) none"),
)


@pytest.mark.parametrize("problem", ANSWERS)
def test_bare_answers_earn_1(problem, programs):
  assert check([problem]) == []
  assert check([problem], *PYTHON, programs=programs) == []


def test_an_answer_that_the_tokenizer_loses_is_listed():
  problems = embedded.problems(4, seed=2)
  problems[1] = dataclasses.replace(problems[1], answer="1234")
  (failure,) = check(problems)  # No token stands for so large a number.
  assert failure.row()["uid"] == problems[1].uid
  assert failure.grade.verdict is Verdict.NONE


def test_a_program_that_returns_something_else_is_listed(programs):
  problems = embedded.problems(4, seed=2, reasoning="python")
  right = float(problems[1].answer)
  problems[1] = dataclasses.replace(problems[1], answer="98")
  problems[3] = dataclasses.replace(
    problems[3], rationale="def solution():\n    return how"
  )
  wrong, failed = check(problems, *PYTHON, programs=programs)
  assert wrong.grade.verdict is Verdict.WRONG
  assert wrong.row() == {
    "split": "test",
    "uid": problems[1].uid,
    "question": problems[1].question,
    "completion": wrong.completion,
    "answer": "98",
    "verdict": "wrong",
    "value": right,
  }
  assert failed.grade.verdict is Verdict.NONE
  assert f"{right!r} was found" in str(wrong)
  assert "no answer was found" in str(failed)


def test_an_annotation_that_does_not_reach_its_letter_is_listed():
  problems = embedded.problems(4, seed=2, choice=True)
  spoiled = problems[1].rationale.rpartition("= ")[0] + "= 99."
  problems[1] = dataclasses.replace(problems[1], rationale=spoiled)
  settings = ("embedded.choices=1", "reft.choice_reward=value")
  (failure,) = check(problems, *settings)
  assert failure.problem.uid == problems[1].uid
  assert "but the value reached is 99.0" in str(failure)
  assert check(problems, settings[0]) == []  # The letter itself is right.


def test_a_split_without_a_right_answer_is_refused():
  problems = [
    dataclasses.replace(each, task="mathqa", answer="z")
    for each in embedded.problems(3, seed=3)
  ]
  with pytest.raises(errors.UserError, match="no reference answer of the test"):
    check(problems)
