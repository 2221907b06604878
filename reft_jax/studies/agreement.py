"""How well raters agree. Numpy only.

`ratings_UR` has a row for each rated unit and a column for each rater; nan is a
missing rating.
"""

import numpy as np


def equal_pairs(ratings_UR: np.ndarray) -> float | None:
  """The share of equal pairs among all pairs of ratings of one unit.

  None if no unit has two ratings.
  """
  counts_UC = _counts(ratings_UR)
  raters_U = counts_UC.sum(1)
  pairs = (raters_U * (raters_U - 1)).sum()
  equal = (counts_UC * (counts_UC - 1)).sum()
  return float(equal / pairs) if pairs else None


def ordinal_alpha(ratings_UR: np.ndarray) -> float | None:
  """Krippendorff's alpha for ordinal ratings: 1 - observed / expected.

  1 is perfect agreement, 0 is chance. Two ratings disagree by the square of the
  number of ratings between them, with half of their own counted (Krippendorff
  2011, "Computing Krippendorff's Alpha-Reliability"). None if no unit has two
  ratings, or if all ratings are equal: chance would then agree too.
  """
  counts_UC = _counts(ratings_UR)
  counts_UC = counts_UC[counts_UC.sum(1) > 1]
  shares_UC = counts_UC / (counts_UC.sum(1, keepdims=True) - 1)
  # How often one rater gave the row's rating and another the column's.
  together_CC = shares_UC.T @ counts_UC - np.diag(shares_UC.sum(0))
  total_C = counts_UC.sum(0)
  middle_C = np.cumsum(total_C) - total_C / 2
  distance_CC = (middle_C[:, None] - middle_C[None, :]) ** 2
  apart_CC = total_C[:, None] * total_C[None, :] / max(total_C.sum() - 1, 1)
  expected = (apart_CC * distance_CC).sum()
  if not expected:
    return None
  return float(1 - (together_CC * distance_CC).sum() / expected)


def _counts(ratings_UR: np.ndarray) -> np.ndarray:
  """How often each unit has each rating, in ascending order of ratings."""
  ratings_UR = np.asarray(ratings_UR, float)
  values_C = np.unique(ratings_UR[~np.isnan(ratings_UR)])
  return (ratings_UR[:, :, None] == values_C[None, None, :]).sum(1)
