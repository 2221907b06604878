"""Which samples are imitated."""

import dataclasses

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.algorithms import offline_st
from reft_jax.config import schema
from reft_jax.sampling import grading
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers import grade as grade_lib

TEXTS = st.lists(st.sampled_from("abcdefgh"), max_size=30)


def offline(**changes) -> schema.OfflineConfig:
  return dataclasses.replace(schema.OfflineConfig(), **changes)


@given(TEXTS, st.sampled_from([None, *"abcdefgh"]), st.integers(1, 10))
def test_selected_samples_are_distinct_new_and_few(right, annotation, keep):
  texts = offline_st.selected(right, annotation, offline(keep=keep), "seed")
  assert len(set(texts)) == len(texts) <= keep
  new = set(right) - {annotation}
  assert set(texts) <= new
  assert len(texts) == min(keep, len(new))


@given(TEXTS, st.integers(1, 10))
def test_official_keeps_the_first_and_the_annotation_again(right, keep):
  texts = offline_st.selected(
    right, "a", offline(keep=keep, choose="official"), "seed"
  )
  first = list(dict.fromkeys(right))[:keep]
  assert texts == (first if "a" in first else [*first, "a"])


def test_the_choice_follows_from_the_seed():
  right = [str(number) for number in range(100)]
  config = offline(keep=10)
  first = offline_st.selected(right, None, config, "0 question")
  assert first == offline_st.selected(right, None, config, "0 question")
  assert first != offline_st.selected(right, None, config, "1 question")
  assert first != right[:10]


@pytest.mark.parametrize("reasoning", prompts.REASONINGS)
def test_samples_become_rows_beside_the_annotation(reasoning):
  """Alike samples once, wrong ones never, whatever space is around them."""
  problems = embedded.problems(2, seed=3, reasoning=reasoning)
  run = tiny.run(
    problems, f"data.reasoning={reasoning}", "embedded.programs=0.5"
  )
  run = dataclasses.replace(run, train=run.test)
  first, second = run.train
  gold = prompts.target(first.problem, reasoning)
  other = prompts.target(second.problem, reasoning)
  correct, wrong = grade_lib.Verdict.CORRECT, grade_lib.Verdict.WRONG

  def answer(text, verdict):
    grade = grade_lib.Grade(verdict, 1.0)
    return grading.Answer(first, text, grade, True)

  collected = [
    [
      answer(f"{gold}\n", correct),
      answer(other, correct),
      answer(f"\n{other} ", correct),
      answer(prompts.target(embedded.problems(3, seed=4)[2]), wrong),
    ],
    [],
  ]
  rows = offline_st.training_rows(run, offline(), collected)
  assert rows == [
    (first.prompt, first.target),
    (first.prompt, second.target),
    (second.prompt, second.target),
  ]
  official = offline_st.training_rows(
    run, offline(choose="official"), collected
  )
  assert official == [
    rows[0],
    rows[0],
    rows[1],
    rows[2],
    rows[2],
  ]
