"""One picture of a run."""

import math
import os
from collections.abc import Mapping, Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker

_COLORS = {
  "base": "#9a9a9a",
  "warmup": "#8c6d46",
  "sft": "#3b6fb6",
  "reft": "#d1495b",
}
_NAMES = {"warmup": "warm-up", "sft": "SFT", "reft": "ReFT"}
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
  ax.set_title(title, fontsize=10, loc="left")
  ax.set_xlabel("share of the stage" if accuracy else "step", fontsize=9)
  ax.tick_params(labelsize=8)
  ax.grid(alpha=0.25, linewidth=0.6)
  ax.spines[["top", "right"]].set_visible(False)
  if accuracy:
    percent = matplotlib.ticker.PercentFormatter(1.0, decimals=0)
    ax.xaxis.set_major_formatter(percent)
    ax.yaxis.set_major_formatter(percent)
    ax.set_xlim(0, 1.02)
  else:
    ax.xaxis.get_major_locator().set_params(integer=True)
  if metric in ("dev/accuracy", "response/length"):
    ax.set_ylim(bottom=0)
  if accuracy or len(ax.get_legend_handles_labels()[0]) > 1:
    ax.legend(fontsize=8, frameon=False)


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
