import math

import matplotlib.image
import pytest

from reft_jax import plots

METRICS = ["dev/accuracy", "reward/mean", "kl", "response/length"]


def rows(metrics, stages=("warmup", "sft", "reft")):
  return [
    {"stage": stage, "step": step, **dict.fromkeys(metrics, step / 10)}
    for stage in stages
    for step in range(9)
  ]


def colours(path):
  """How many different colours a picture has: a blank one has one."""
  picture = matplotlib.image.imread(path)
  return len({tuple(pixel) for line in picture[::3] for pixel in line[::3]})


@pytest.mark.parametrize("count", range(1, 5))
def test_draws_the_metrics_there_are(tmp_path, count):
  path = tmp_path / "curves.png"
  plots.learning_curves(rows(METRICS[:count]), path)
  assert colours(path) > 5
  height, width = matplotlib.image.imread(path).shape[:2]
  assert (width > 1000) == (count > 1)
  assert (height > 800) == (count > 2)


def test_values_that_are_not_numbers_are_left_out(tmp_path):
  broken = rows(METRICS)
  for row in broken[::2]:
    row["kl"] = math.nan
    del row["reward/mean"]
  plots.learning_curves(broken, tmp_path / "curves.png")
  assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("unplottable", [[], rows(["loss"])])
def test_nothing_to_draw_writes_nothing(tmp_path, unplottable):
  plots.learning_curves(unplottable, tmp_path / "curves.png")
  assert not (tmp_path / "curves.png").exists()


def test_smoothing_keeps_length_and_constants():
  assert plots._smooth([2.0] * 50) == [2.0] * 50
  assert plots._smooth([1.0, 5.0]) == [1.0, 5.0]
