"""Pictures of a run, and of several runs together."""

import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker

_COLORS = {
  "base": "#9a9a9a",
  "warmup": "#8c6d46",
  "sft": "#3b6fb6",
  "offline_st": "#6b9080",
  "online_st": "#e09f3e",
  "reft": "#d1495b",
  "reward_model": "#7d5ba6",
}
_NAMES = {
  "warmup": "warm-up",
  "sft": "SFT",
  "offline_st": "offline ST",
  "online_st": "online ST",
  "reft": "ReFT",
  "reward_model": "reward model",
}
# Of lines that are no stages, or several of one: told apart in order.
_COLORS_IN_ORDER = (
  *("#3b6fb6", "#d1495b", "#6b9080", "#e09f3e", "#7d5ba6", "#8c6d46"),
  *("#1f9ea8", "#c06c9c", "#4a4a4a", "#9a9a9a"),
)
_STROKES = ("-", "--", ":", "-.")
# Metric, title; in the order of the panels.
_PANELS = (
  ("dev/accuracy", "Accuracy on dev problems"),
  ("reward/mean", "Mean reward of a rollout"),
  ("kl", "KL from the starting model, nats a response"),
  ("response/length", "Tokens in a response"),
  ("verdict/none", "Rollouts without an answer"),
  ("choice/unreached", "Right letters that come from another value"),
)


def learning_curves(
  rows: Sequence[Mapping], path: str | os.PathLike[str]
) -> None:
  """Draws how a run went, from its metrics' rows, as a PNG.

  Dev accuracy is drawn over the share of each stage that is done, so that
  stages of different lengths can be compared; the rest over steps. Metrics
  that were never logged have no panel; without any, nothing is written.
  """
  panels = [
    (metric, title)
    for metric, title in _PANELS
    if any(_curve(rows, stage, metric)[0] for stage in _stages(rows))
  ]
  if not panels:
    return
  columns = min(2, len(panels))
  lines = math.ceil(len(panels) / columns)
  figure = matplotlib.figure.Figure(
    figsize=(5.2 * columns, 3.4 * lines), dpi=150, layout="constrained"
  )
  axes = figure.subplots(lines, columns, squeeze=False).ravel()
  for ax, (metric, title) in zip(axes, panels, strict=False):
    _panel(ax, rows, metric, title)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  figure.savefig(path)


@dataclasses.dataclass(frozen=True)
class Line:
  """Several measurements at each place, drawn as their mean and range.

  Attributes:
    label: what the legend calls it.
    values: the measurements, such as one a seed, by place; none is empty.
  """

  label: str
  values: Mapping[float, Sequence[float]]


def lines(
  some: Sequence[Line],
  path: str | os.PathLike[str],
  *,
  title: str,
  x: str,
  share: bool = True,
  dense: bool = False,
) -> None:
  """Draws lines over a number as a PNG; without any, writes nothing.

  Args:
    some: the lines.
    path: the file.
    title: what is measured.
    x: what a place is.
    share: whether measurements are shares, shown in per cent.
    dense: whether places are many, as in a learning curve: ranges are then a
      band, not bars, and the axis is not logarithmic.
  """
  some = [line for line in some if line.values]
  if not some:
    return
  figure = matplotlib.figure.Figure(
    figsize=(6.4, 4.0), dpi=150, layout="constrained"
  )
  ax = figure.subplots()
  # Where the colours are used up, they begin again with another stroke.
  looks = itertools.cycle(itertools.product(_STROKES, _COLORS_IN_ORDER))
  for line, (stroke, color) in zip(some, looks, strict=False):
    places = sorted(line.values)
    means = [statistics.mean(line.values[place]) for place in places]
    low = [min(line.values[place]) for place in places]
    high = [max(line.values[place]) for place in places]
    style = {"color": color, "linestyle": stroke, "label": line.label}
    ax.plot(places, means, marker="o", markersize=3 if dense else 5, **style)
    if dense:
      ax.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    else:
      ax.vlines(places, low, high, color=color, linewidth=1.2)
  everywhere = sorted({place for line in some for place in line.values})
  if not dense:
    if everywhere[0] > 0 and everywhere[-1] >= 8 * everywhere[0]:
      ax.set_xscale("log", base=2)
    ax.set_xticks(everywhere, [f"{place:g}" for place in everywhere])
    ax.minorticks_off()
  _finish(ax, title, x)
  if share:
    ax.yaxis.set_major_formatter(_percent())
    ax.set_ylim(bottom=0)
  ax.legend(fontsize=8, frameon=False)
  figure.savefig(path)


def _panel(
  ax: matplotlib.axes.Axes, rows: Sequence[Mapping], metric: str, title: str
) -> None:
  """One metric of every stage that logged it."""
  accuracy = metric == "dev/accuracy"
  for stage in _stages(rows):
    steps, values = _curve(rows, stage, metric)
    if not steps:
      continue
    style = {
      "color": _COLORS.get(stage, "#555555"),
      "label": _NAMES.get(stage, stage),
    }
    if accuracy:
      last = max(row["step"] for row in rows if row["stage"] == stage)
      steps = [step / max(last, 1) for step in steps]
      ax.plot(steps, values, marker="o", markersize=3.5, **style)
    else:
      # The thin line is what was measured, the thick one its running mean.
      ax.plot(steps, values, linewidth=0.8, alpha=0.35, color=style["color"])
      ax.plot(steps, _smooth(values), linewidth=1.8, **style)
  _finish(ax, title, "share of the stage" if accuracy else "step")
  if accuracy:
    ax.xaxis.set_major_formatter(_percent())
    ax.yaxis.set_major_formatter(_percent())
    ax.set_xlim(0, 1.02)
  else:
    ax.xaxis.get_major_locator().set_params(integer=True)
  if metric in ("dev/accuracy", "response/length"):
    ax.set_ylim(bottom=0)
  if accuracy or len(ax.get_legend_handles_labels()[0]) > 1:
    ax.legend(fontsize=8, frameon=False)


def _finish(ax: matplotlib.axes.Axes, title: str, x: str) -> None:
  """What all axes look like."""
  ax.set_title(title, fontsize=10, loc="left")
  ax.set_xlabel(x, fontsize=9)
  ax.tick_params(labelsize=8)
  ax.grid(alpha=0.25, linewidth=0.6)
  ax.spines[["top", "right"]].set_visible(False)


def _percent() -> matplotlib.ticker.Formatter:
  """Shares as per cent; one for each axis, which it belongs to."""
  return matplotlib.ticker.PercentFormatter(1.0)


def _stages(rows: Sequence[Mapping]) -> list[str]:
  """The stages, in the order they ran."""
  return list(dict.fromkeys(row["stage"] for row in rows))


def _curve(
  rows: Sequence[Mapping], stage: str, metric: str
) -> tuple[list[int], list[float]]:
  """Steps and finite values of one metric in one stage."""
  points = [
    (row["step"], row[metric])
    for row in rows
    if row["stage"] == stage and math.isfinite(row.get(metric, math.nan))
  ]
  return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
  """Running mean over the tenth of the curve around each point."""
  reach = len(values) // 20
  windows = (
    values[max(0, i - reach) : i + reach + 1] for i in range(len(values))
  )
  return [sum(window) / len(window) for window in windows]
