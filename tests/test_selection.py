"""The vote among several samples."""

import hypothesis
import pytest
from hypothesis import strategies as st

from reft_jax import selection

# Whole numbers: no two of them are almost equal.
VALUES = st.one_of(
  st.none(), st.integers(-5, 5).map(float), st.sampled_from("abc")
)
VOTES = st.lists(VALUES, max_size=30)


@hypothesis.given(VOTES)
def test_no_answer_has_more_votes_and_ties_go_to_the_first(values):
  given = [value for value in values if value is not None]
  chosen = selection.majority(values)
  if not given:
    assert chosen is None
  else:
    most = max(map(given.count, given))
    assert chosen == next(v for v in given if given.count(v) == most)


@hypothesis.given(VOTES, st.integers(0, 50))
def test_samples_without_an_answer_never_count(values, more):
  alone = selection.majority(values)
  assert selection.majority([None] * more + values) == alone
  assert selection.majority(values + [None] * more) == alone


def test_sixty_without_an_answer_lose_to_forty_with_one():
  assert selection.majority([None] * 60 + [18.0] * 40) == 18.0


@pytest.mark.parametrize("values", [[], [None], [None] * 7])
def test_nobody_answers(values):
  assert selection.majority(values) is None


def test_almost_equal_numbers_are_one_answer():
  third = 1 / 3
  values = [7.0, third, 7.0, third + 1e-9, third - 1e-9]
  assert selection.majority(values) == third
  assert selection.majority([1e9, 2.0, 2.0, 1e9 + 1, 1e9 + 2]) == 1e9


def test_different_numbers_are_not():
  assert selection.majority([100.0, 100.01, 100.01]) == 100.01
  assert selection.majority([0.0, 1e-9, 1e-9]) == 1e-9


def test_the_released_vote_counts_exact_numbers():
  third = 1 / 3
  values = [7.0, third, 7.0, third + 1e-9, third - 1e-9]
  assert selection.majority(values, "official") == 7.0
  assert not selection.same(third, third + 1e-9, "official")
  assert selection.same(third, 1 / 3, "official")


def test_the_released_vote_counts_single_letters_only():
  values = ["none", "none", "", "", "30", "30", "30", "b", None]
  assert selection.majority(values, "official") == "b"
  assert selection.majority(values[:-2], "official") is None
  assert selection.majority(values) == "30"


def test_letters_and_numbers_can_stand_in_one_vote():
  assert selection.majority(["b", "a", "c", "a", None]) == "a"
  assert selection.majority(["a", "b", "b", "a"]) == "a"
  assert selection.majority(["1", 1.0, 1.0]) == 1.0
  assert selection.majority([1.0, "1", "1"]) == "1"


@hypothesis.given(VALUES, VALUES)
def test_same_is_symmetric_and_never_holds_for_no_answer(a, b):
  assert selection.same(a, b) == selection.same(b, a)
  assert selection.same(a, a) == (a is not None)
  assert not selection.same(a, None)
