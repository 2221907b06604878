import math

import matplotlib.axes
import matplotlib.image
import pytest

from reft_jax.runtime import plots

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


@pytest.mark.parametrize("count", [1, 2, 4])
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


def line(places, spread=0.1):
  return {place: [place / 100, place / 100 + spread] for place in places}


@pytest.mark.parametrize("dense", [True, False])
def test_lines_of_several_runs(tmp_path, dense):
  path = tmp_path / "lines.png"
  some = {"SFT": line((1, 4, 16)), "ReFT": line((1, 4)), "no": {}}
  plots.lines(some, path, title="Accuracy", x="samples", dense=dense)
  assert colours(path) > 5


def test_every_one_of_many_lines_is_drawn_and_looks_different(tmp_path):
  seen = []

  def spy(self, *args, **style):
    seen.append((style["color"], style["linestyle"], style["label"]))
    return plot(self, *args, **style)

  plot = matplotlib.axes.Axes.plot
  some = {str(number): line((1, 2)) for number in range(25)}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(matplotlib.axes.Axes, "plot", spy)
    plots.lines(some, tmp_path / "lines.png", title="", x="")
  assert [label for _, _, label in seen] == list(some)
  assert len({look[:2] for look in seen}) == 25


def test_a_range_is_seen(tmp_path):
  wide, narrow = tmp_path / "wide.png", tmp_path / "narrow.png"
  for path, spread in ((wide, 0.2), (narrow, 0.0)):
    some = {"SFT": line((1, 50), spread), "top": line((90,), 0.0)}
    plots.lines(some, path, title="", x="", dense=True)
  blank = matplotlib.image.imread(narrow)[..., :3].min(axis=-1) > 0.99
  band = matplotlib.image.imread(wide)[..., :3].min(axis=-1) > 0.99
  assert (~band).sum() > 1.5 * (~blank).sum()


def test_no_lines_write_nothing(tmp_path):
  plots.lines({"no": {}}, tmp_path / "none.png", title="", x="")
  assert not (tmp_path / "none.png").exists()
