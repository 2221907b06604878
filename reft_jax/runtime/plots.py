"""Plots of one run, and of several runs."""

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
_DASHES = ("-", "--", ":", "-.")
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
    if any(math.isfinite(row.get(metric, math.nan)) for row in rows)
  ]
  if not panels:
    return
  columns = min(2, len(panels))
  lines = math.ceil(len(panels) / columns)
  figure = _figure(5.2 * columns, 3.4 * lines)
  axes = figure.subplots(lines, columns, squeeze=False).ravel()
  for ax, (metric, title) in zip(axes, panels, strict=False):
    _panel(ax, rows, metric, title)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  figure.savefig(path)


def lines(
  some: Mapping[str, Mapping[float, Sequence[float]]],
  path: str | os.PathLike[str],
  *,
  title: str,
  x: str,
  share: bool = True,
  dense: bool = False,
) -> None:
  """Draws lines as a PNG; without any, writes nothing.

  Args:
    some: of each line, by its label in the legend, the measurements at each x,
      such as one a seed. They are drawn as their mean and range.
    path: the file.
    title: what is measured.
    x: the label of the x axis.
    share: whether measurements are shares, shown in per cent.
    dense: whether there are many x, as in a learning curve: ranges are then a
      band, not bars, and the axis is never logarithmic.
  """
  some = {label: values for label, values in some.items() if values}
  if not some:
    return
  figure = _figure(6.4, 4.0)
  ax = figure.subplots()
  # After the last colour, they begin again with another dash.
  looks = itertools.cycle(itertools.product(_DASHES, _COLORS_IN_ORDER))
  for (label, values), (dash, color) in zip(some.items(), looks, strict=False):
    xs = sorted(values)
    means = [statistics.mean(values[at]) for at in xs]
    low = [min(values[at]) for at in xs]
    high = [max(values[at]) for at in xs]
    style: dict[str, Any] = {"color": color, "linestyle": dash, "marker": "o"}
    ax.plot(xs, means, markersize=3 if dense else 5, label=label, **style)
    if dense:
      ax.fill_between(xs, low, high, color=color, alpha=0.18, linewidth=0)
    else:
      ax.vlines(xs, low, high, color=color, linewidth=1.2)
  if not dense:
    ticks = sorted(set().union(*some.values()))
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


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
  return matplotlib.figure.Figure(
    figsize=(width, height), dpi=150, layout="constrained"
  )


def _panel(
  ax: matplotlib.axes.Axes, rows: Sequence[Mapping], metric: str, title: str
) -> None:
  """One metric of every stage that logged it."""
  accuracy = metric == "dev/accuracy"
  for stage in dict.fromkeys(row["stage"] for row in rows):
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
