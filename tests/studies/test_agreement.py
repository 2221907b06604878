"""Agreement of raters, beside its definition over single pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reft_jax.studies import agreement

NAN = np.nan
# Krippendorff (2011): 12 units, 4 observers; ordinal alpha is .815 there.
PUBLISHED_UR = np.array(
  [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
  ]
).T

RATINGS = hnp.arrays(
  float,
  st.tuples(st.integers(1, 6), st.integers(2, 4)),
  elements=st.sampled_from([0, 0.5, 1, NAN]),
)


def by_pairs(ratings_UR) -> float | None:
  """Alpha as it is defined: over all pairs of ratings, one by one."""
  units = [unit[~np.isnan(unit)] for unit in ratings_UR]
  units = [unit for unit in units if len(unit) > 1]
  every = sorted(rating for unit in units for rating in unit)

  def disagreement(a, b) -> float:
    low, high = min(a, b), max(a, b)
    between = sum(low <= rating <= high for rating in every)
    return (between - (every.count(a) + every.count(b)) / 2) ** 2

  expected = sum(
    itertools.starmap(disagreement, itertools.permutations(every, 2))
  )
  if not expected:
    return None
  observed = sum(
    disagreement(a, b) / (len(unit) - 1)
    for unit in units
    for a, b in itertools.permutations(unit, 2)
  )
  return 1 - observed * (len(every) - 1) / expected


def equal_by_pairs(ratings_UR) -> float | None:
  units = [unit[~np.isnan(unit)] for unit in ratings_UR]
  pairs = [pair for unit in units for pair in itertools.combinations(unit, 2)]
  return np.mean([a == b for a, b in pairs]) if pairs else None


def test_the_published_example():
  assert agreement.ordinal_alpha(PUBLISHED_UR) == pytest.approx(0.815, abs=5e-4)


@given(RATINGS)
@example(np.array([[0, 0], [1, 1], [0.5, 0.5]]))  # Perfect agreement.
@example(np.array([[0, 1], [1, 0]]))  # Below chance.
@example(np.ones((3, 2)))  # Nothing to tell from chance.
@example(np.array([[0, 0, 1], [NAN, 0.5, 0.5]]))
@example(np.ones((3, 1)))  # One rating a unit tells nothing.
@example(np.full((2, 2), NAN))
@example(np.ones((0, 2)))
def test_agreement_is_its_definition(ratings_UR):
  for measure, define in (
    (agreement.ordinal_alpha, by_pairs),
    (agreement.equal_pairs, equal_by_pairs),
  ):
    found, expected = measure(ratings_UR), define(ratings_UR)
    assert found == (None if expected is None else pytest.approx(expected))
