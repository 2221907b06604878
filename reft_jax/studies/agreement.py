"""How far raters agree. Numpy only.

`ratings_UR` has a row for each unit that was judged and a column for each
rater; nan is a rating that was not given.
"""

import numpy as np


def equal_pairs(ratings_UR: np.ndarray) -> float | None:
  """Share of two raters' ratings of one unit that are equal.

  None where no unit has two ratings.
  """
  counts_UC = _counts(ratings_UR)
  raters_U = counts_UC.sum(1)
  pairs = (raters_U * (raters_U - 1)).sum()
  equal = (counts_UC * (counts_UC - 1)).sum()
  return float(equal / pairs) if pairs else None


def ordinal_alpha(ratings_UR: np.ndarray) -> float | None:
  """Krippendorff's alpha for ordinal ratings: 1 - observed / expected.

  1 is perfect agreement, 0 that of raters who draw from one urn. Two ratings
  disagree by the square of how many ratings lie between them, half of their
  own counted (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").
  None where no unit has two ratings, or all ratings are equal: then nothing
  can be told from chance.
  """
  counts_UC = _counts(ratings_UR)
  counts_UC = counts_UC[counts_UC.sum(1) > 1]
  shares_UC = counts_UC / (counts_UC.sum(1, keepdims=True) - 1)
  # How often one rater gave the one and another the other.
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
  """How often each unit has each of the ratings that occur, in their order."""
  ratings_UR = np.asarray(ratings_UR, float)
  values_C = np.unique(ratings_UR[~np.isnan(ratings_UR)])
  return (ratings_UR[:, :, None] == values_C[None, None, :]).sum(1)
