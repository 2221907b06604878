"""One answer out of several samples: votes, reranking, pass@k, intervals."""

import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from reft_jax.evaluation import votes

# Whole numbers: no two of them are almost equal.
VALUES = st.one_of(
  st.none(), st.integers(-5, 5).map(float), st.sampled_from("abc")
)
NAN, INF, THIRD = math.nan, math.inf, 1 / 3
VOTES = st.lists(VALUES, max_size=30)


@hypothesis.given(VOTES)
def test_no_answer_has_more_votes_and_ties_go_to_the_first(values):
  given = [value for value in values if value is not None]
  chosen = votes.majority(values)
  if not given:
    assert chosen is None
  else:
    most = max(map(given.count, given))
    assert chosen == next(v for v in given if given.count(v) == most)


@hypothesis.given(VALUES, VALUES)
def test_same_is_symmetric_and_never_holds_for_no_answer(a, b):
  assert votes.same(a, b) == votes.same(b, a)
  assert votes.same(a, a) == (a is not None)
  assert not votes.same(a, None)


@pytest.mark.parametrize(
  ("values", "strict", "official"),
  [
    # Numbers: the most frequent, the first of two alike.
    ([1.0, 2.0, 2.0], 2.0, 2.0),
    ([2.0, 1.0, 1.0, 2.0], 2.0, 2.0),
    ([None, 3.0, None], 3.0, 3.0),
    ([0.1 + 0.2, 0.5, 0.3, 0.5], 0.1 + 0.2, 0.5),
    ([-1.0, 1.0, 1.0], 1.0, 1.0),
    ([0.0, -0.0, 5.0], 0.0, 0.0),
    # Letters, and what is none.
    (["a", "b", "b"], "b", "b"),
    (["none", "none", "a"], "none", "a"),
    (["", "", "c"], "", "c"),
    (["none", None], "none", None),
    (["none", "none", "", "", "30", "30", "30", "b", None], "30", "b"),
    (["none", "none", "", "30", "30", "30"], "30", None),
    (["b", "a", "c", "a", None], "a", "a"),
    # Letters and numbers in one vote.
    (["1", 1.0, 1.0], 1.0, 1.0),
    ([1.0, "1", "1"], "1", "1"),
    # Almost equal numbers are one answer, different ones are not.
    ([7.0, THIRD, 7.0, THIRD + 1e-9, THIRD - 1e-9], THIRD, 7.0),
    ([1e9, 2.0, 2.0, 1e9 + 1, 1e9 + 2], 1e9, 2.0),
    ([100.0, 100.01, 100.01], 100.01, 100.01),
    ([0.0, 1e-9, 1e-9], 1e-9, 1e-9),
    ([5.0, 0.0, 0.3 - 0.1 * 3, 5.0, 0.0], 0.0, 5.0),
    # As released, nan differs from itself, and inf is one like any other.
    ([NAN, 1.0, NAN, 1.0], 1.0, 1.0),
    ([INF, INF, 1.0], 1.0, INF),
    ([-INF, INF, INF], None, INF),
    # Nothing valid.
    ([], None, None),
    ([None] * 7, None, None),
    ([None] * 60 + [18.0] * 40, 18.0, 18.0),
    (["", "none"], "", None),
  ],
)
def test_votes(values, strict, official):
  assert votes.majority(values) == strict
  assert votes.majority(values, "official") == official


@pytest.mark.parametrize(
  ("values", "probabilities", "strict", "official"),
  [
    # The highest, wherever it stands.
    ([1.0, 2.0, 3.0], [0.1, 0.9, 0.5], 1, 1),
    ([1.0], [0.0], 0, 0),
    # Whoever has no answer does not stand, however well it is thought of.
    ([None, 2.0, None], [0.99, 0.01, 0.98], 1, 1),
    ([None, None], [0.9, 0.8], None, None),
    ([], [], None, None),
    # Ties: the first that stands.
    ([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], 0, 0),
    ([None, 2.0, 3.0], [0.5, 0.5, 0.5], 1, 1),
    ([1.0, 2.0, 2.0], [0.2, 0.7, 0.7], 1, 1),
    # Letters; official ones have one character.
    (["a", "b"], [0.3, 0.4], 1, 1),
    (["none", "b"], [0.9, 0.4], 0, 1),
    (["", "30", "c"], [0.9, 0.8, 0.1], 0, 2),
    (["none", ""], [0.9, 0.8], 0, None),
    # A probability that is no number.
    ([1.0, 2.0, 3.0], [NAN, 0.2, 0.1], 1, 1),
    ([1.0, 2.0], [0.2, NAN], 0, 0),
    ([1.0, 2.0], [NAN, NAN], None, None),
    ([None, 2.0], [0.9, NAN], None, None),
    # Values that are no numbers stand as released.
    ([NAN, 2.0], [0.6, 0.4], 1, 0),
    ([INF, 2.0], [0.6, 0.4], 1, 0),
    ([-INF, NAN], [0.6, 0.4], None, 0),
    ([0.0, 1.0], [0.6, 0.4], 0, 0),
  ],
)
def test_reranking(values, probabilities, strict, official):
  assert votes.rerank(values, probabilities) == strict
  assert votes.rerank(values, probabilities, "official") == official


def test_every_answer_needs_its_probability():
  with pytest.raises(ValueError):
    votes.rerank([1.0, 2.0], [0.5])


@hypothesis.given(
  st.lists(st.tuples(VALUES, st.floats(0, 1) | st.just(NAN))),
  st.sampled_from(["strict", "official"]),
)
def test_no_candidate_beats_the_one_that_is_chosen(pairs, mode):
  values, probabilities = [v for v, _ in pairs], [p for _, p in pairs]
  index = votes.rerank(values, probabilities, mode)
  valid = [
    each
    for each, (value, probability) in enumerate(pairs)
    if value is not None and not math.isnan(probability)
  ]
  if not valid:
    assert index is None
  else:
    best = max(probabilities[each] for each in valid)
    assert index == next(e for e in valid if probabilities[e] == best)


def brute_force(samples: int, correct: int, k: int) -> float:
  """The share of all choices of k samples that hold a correct one."""
  marks = [True] * correct + [False] * (samples - correct)
  chosen = list(itertools.combinations(marks, k))
  return sum(map(any, chosen)) / len(chosen)


@hypothesis.given(st.data())
def test_pass_at_k_is_the_share_of_all_choices(data):
  samples = data.draw(st.integers(1, 10))
  correct = data.draw(st.integers(0, samples))
  k = data.draw(st.integers(1, samples))
  assert votes.pass_at_k(samples, correct, k) == pytest.approx(
    brute_force(samples, correct, k), abs=1e-12
  )


@pytest.mark.parametrize(
  ("samples", "correct", "k", "expected"),
  [
    (5, 2, 2, 0.7),
    (200, 1, 100, 0.5),
    (10_000, 10_000, 1, 1.0),
    (1_000_000, 1, 1, 1e-6),  # Products of floats would be off.
  ],
)
def test_pass_at_k_by_hand(samples, correct, k, expected):
  found = votes.pass_at_k(samples, correct, k)
  assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
  ("samples", "correct", "k"), [(4, 1, 5), (4, 5, 1), (4, 1, 0), (4, -1, 1)]
)
def test_no_more_than_there_are(samples, correct, k):
  with pytest.raises(ValueError):
    votes.pass_at_k(samples, correct, k)


@hypothesis.given(st.integers(1, 60), st.integers(1, 60))
def test_blocks_are_whole_and_disjoint(samples, k):
  drawn = list(range(samples))
  parts = [drawn[block] for block in votes.blocks(samples, k)]
  assert len(parts) == samples // k
  assert [each for part in parts for each in part] == drawn[: samples // k * k]


@hypothesis.given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_an_interval_lies_within_the_scores_and_repeats(scores):
  low, high = votes.bootstrap(scores, 50, seed=1)
  assert min(scores) - 1e-12 <= low <= high <= max(scores) + 1e-12
  assert votes.bootstrap(scores, 50, seed=1) == (low, high)


def test_an_interval_is_the_normal_one_for_many_questions():
  scores = np.random.default_rng(0).random(2000) < 0.3
  mean = scores.mean()
  reach = 1.96 * math.sqrt(mean * (1 - mean) / 2000)
  low, high = votes.bootstrap(scores, 4000, seed=0)
  assert low == pytest.approx(mean - reach, abs=0.002)
  assert high == pytest.approx(mean + reach, abs=0.002)


def test_two_scores_of_the_same_questions_are_drawn_alike():
  scores = np.random.default_rng(0).random(50)
  low, high = votes.bootstrap(scores, 100, seed=0)
  shifted = votes.bootstrap(scores + 1, 100, seed=0)
  assert shifted == pytest.approx((low + 1, high + 1))


def test_no_questions_no_interval():
  assert all(map(math.isnan, votes.bootstrap([], 100, seed=0)))
