"""Plots of one run, and of several runs."""

import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker

from reft_jax.config import stages as stages_lib

# For lines that are not stages, in order.
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
  """Draws the learning curves of a run as a PNG, a panel for each metric.

  The x axis of dev accuracy is the share of a stage that is done, so that
  stages of different lengths can be compared; otherwise it is the step. A
  metric that was never logged has no panel; without panels nothing is written.
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
  """Several measurements at each x, drawn as their mean and range.

  Attributes:
    label: in the legend.
    values: the measurements, such as one a seed, by x; none is empty.
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
  """Draws lines as a PNG; without any, writes nothing.

  Args:
    some: the lines.
    path: the file.
    title: what is measured.
    x: the label of the x axis.
    share: whether measurements are shares, shown in per cent.
    dense: whether there are many x, as in a learning curve: ranges are then a
      band, not bars, and the axis is never logarithmic.
  """
  some = [line for line in some if line.values]
  if not some:
    return
  figure = matplotlib.figure.Figure(
    figsize=(6.4, 4.0), dpi=150, layout="constrained"
  )
  ax = figure.subplots()
  # After the last colour, they begin again with another stroke.
  looks = itertools.cycle(itertools.product(_STROKES, _COLORS_IN_ORDER))
  for line, (stroke, color) in zip(some, looks, strict=False):
    xs = sorted(line.values)
    means = [statistics.mean(line.values[at]) for at in xs]
    low = [min(line.values[at]) for at in xs]
    high = [max(line.values[at]) for at in xs]
    style: dict[str, Any] = {"color": color, "linestyle": stroke}
    style["label"] = line.label
    ax.plot(xs, means, marker="o", markersize=3 if dense else 5, **style)
    if dense:
      ax.fill_between(xs, low, high, color=color, alpha=0.18, linewidth=0)
    else:
      ax.vlines(xs, low, high, color=color, linewidth=1.2)
  ticks = sorted({at for line in some for at in line.values})
  if not dense:
    if ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]:
      ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{at:g}" for at in ticks])
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
    known = stages_lib.TABLE.get(stage)
    style: dict[str, Any] = {
      "color": known.colour if known else "#555555",
      "label": known.label if known else stage,
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
    ax.locator_params(axis="x", integer=True)
  if metric in ("dev/accuracy", "response/length"):
    ax.set_ylim(bottom=0)
  if accuracy or len(ax.get_legend_handles_labels()[0]) > 1:
    ax.legend(fontsize=8, frameon=False)


def _finish(ax: matplotlib.axes.Axes, title: str, x: str) -> None:
  """Sets the title, the labels and the style of all axes."""
  ax.set_title(title, fontsize=10, loc="left")
  ax.set_xlabel(x, fontsize=9)
  ax.tick_params(labelsize=8)
  ax.grid(alpha=0.25, linewidth=0.6)
  ax.spines[["top", "right"]].set_visible(False)


def _percent() -> matplotlib.ticker.Formatter:
  """Shares in per cent; every axis needs a formatter of its own."""
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
