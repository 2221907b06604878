"""What a run prints.

On a terminal, a progress bar with the time left and the latest metrics, below
notes and samples. Piped to a file, plain lines.
"""

import contextlib
import dataclasses
import io
import math
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import rich.box
import rich.console
import rich.padding
import rich.progress
import rich.rule
import rich.table
import rich.text

# The metrics of a progress line, and their labels there.
_HEADLINES = {
  "loss": "loss",
  "reward/mean": "reward",
  "accuracy": "accuracy",
  "verdict/correct": "correct",
  "verdict/none": "none",
  "choice/unreached": "unreached",
  "kl": "kl",
  "response/length": "tokens",
  "clip_fraction": "clipped",
  "value/explained_variance": "explained",
  "grad_norm": "grad",
  "learning_rate": "lr",
  "dev/accuracy": "dev",
}


@dataclasses.dataclass(frozen=True)
class Solution:
  """A sampled completion and how it was graded.

  Attributes:
    completion: as the model wrote it.
    verdict: `correct`, `wrong`, or `none` where no answer was found.
    value: the answer found, if any.
  """

  completion: str
  verdict: str
  value: float | str | None


class Console:
  """Prints to `file`, standard output if None; a quiet one prints nothing."""

  def __init__(self, file: TextIO | None = None, *, quiet: bool = False):
    self._console = rich.console.Console(
      file=file, quiet=quiet, highlight=False, markup=False, emoji=False
    )
    # A completion may have characters that the terminal's encoding lacks.
    if isinstance(self._console.file, io.TextIOWrapper):
      self._console.file.reconfigure(errors="replace")
    self._live = (
      self._console.is_terminal
      and not self._console.is_dumb_terminal
      and not quiet
    )

  def line(self, text: str, style: str | None = None) -> None:
    """Prints one line without wrapping it."""
    self._console.print(_clean(text), style=style, soft_wrap=True)

  @contextlib.contextmanager
  def stage(
    self, name: str, total_steps: int, start: int = 0
  ) -> Iterator["Progress"]:
    """Shows a stage's progress from step `start` on, then its time."""
    begin = time.monotonic()
    with self._bar() if self._live else contextlib.nullcontext() as bar:
      if bar:
        bar.add_task(name, total=total_steps, completed=start, metrics="")
      stage = Progress(start, self, name, total_steps, bar)
      yield stage
    took = duration(time.monotonic() - begin)
    self.line(f"{name}: {stage.done - start} steps in {took}", style="bold")

  def _bar(self) -> rich.progress.Progress:
    return rich.progress.Progress(
      rich.progress.TextColumn("{task.description}", style="bold"),
      rich.progress.BarColumn(bar_width=20),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(compact=True),
      rich.progress.TextColumn(
        "{task.fields[metrics]}",
        markup=False,
        table_column=rich.table.Column(no_wrap=True, ratio=1),
      ),
      console=self._console,
      expand=True,
      speed_estimate_period=3600,  # A step may take minutes.
      transient=True,
    )

  def sample(
    self, stage: str, step: int, question: str, solution: Solution, answer: str
  ) -> None:
    """Shows one completion, the answer found in it and the reference answer."""
    written, verdict = _graded(solution, answer)
    grid = rich.table.Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("question", _clean(question.strip()))
    grid.add_row("sampled", written)
    grid.add_row("verdict", verdict)
    self._console.print(
      rich.rule.Rule(f"{stage}, step {step}: a sample", style="dim"),
      grid,
      rich.rule.Rule(style="dim"),
    )

  def table(
    self,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float | None]],
  ) -> None:
    """Prints a table; numbers have few digits and are right-aligned."""
    table = _table(title=title, title_justify="left")
    first_width = max((len(str(row[0])) for row in rows), default=0)
    for index, column in enumerate(columns):
      words = "".join(x for x in (r[index] for r in rows) if isinstance(x, str))
      table.add_column(
        column,
        justify="left" if any(map(str.isalpha, words)) else "right",
        min_width=None if index else first_width,
      )
    for row in rows:
      cells = (c if isinstance(c, str) else number(c) for c in row)
      table.add_row(*map(_clean, cells))
    self._console.print(table)

  def side_by_side(
    self,
    question: str,
    answer: str,
    solutions: Mapping[str, Sequence[Solution]],
  ) -> None:
    """Shows several models' completions for one question, a column each."""
    table = _table(show_lines=True, expand=True)
    for name in solutions:
      table.add_column(name, ratio=1, overflow="fold")
    for row in zip(*solutions.values(), strict=True):
      cells = (_graded(solution, answer) for solution in row)
      table.add_row(*(rich.console.Group(*cell) for cell in cells))
    self._console.print()
    self._console.print(_clean(question.strip()), style="italic")
    self._console.print(table)


@dataclasses.dataclass
class Progress:
  """The progress of a stage, made by `Console.stage`; `done` counts steps."""

  done: int
  _console: Console
  _name: str
  _total_steps: int
  _bar: rich.progress.Progress | None
  # When the first step was done, and how many steps were: it compiles, and
  # does not count for the time left.
  _first: tuple[float, int] | None = None

  def step(self, done: int, values: Mapping[str, float] | None = None) -> None:
    """Shows that `done` steps are done, and metrics if given."""
    self.done = done
    self._first = self._first or (time.monotonic(), done)
    text, total = _metrics(values or {}), self._total_steps
    if self._bar:
      fields: dict[str, Any] = {"metrics": text} if text else {}
      self._bar.update(self._bar.task_ids[0], completed=done, **fields)
    elif text:
      count = f"{done:>{len(str(total))}}/{total}"
      self._console.line(
        f"{self._name} {count}  {text}{self._time_left(*self._first)}"
      )

  def note(self, text: str) -> None:
    """Prints a line above the bar, after the stage's name."""
    self._console.line(f"{self._name}: {text}")

  def _time_left(self, since: float, first: int) -> str:
    steps, left = self.done - first, self._total_steps - self.done
    if not steps or not left:
      return ""
    seconds = (time.monotonic() - since) / steps * left
    return f"  {duration(seconds)} left"


def number(value: float | None) -> str:
  """A number in about three digits; `-` for None and nan."""
  if value is None or math.isnan(value):
    return "-"
  if isinstance(value, int):
    return f"{value:,}"
  if math.isinf(value):
    return str(value)
  size = abs(value)
  if size >= 100:
    return f"{value:,.0f}"
  if 0 < size < 1e-3:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
  return f"{value:#.3g}"


def duration(seconds: float) -> str:
  """A span of time in its two largest units, such as `1h 05m` or `12s`."""
  if seconds < 9.95:
    return f"{seconds:.1f}s"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"{days}d {hours:02}h"
  if hours:
    return f"{hours}h {minutes:02}m"
  return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def _metrics(values: Mapping[str, float]) -> str:
  """The metrics that have a label, or all of them if none has."""
  known = {
    label: values[name] for name, label in _HEADLINES.items() if name in values
  }
  return " ".join(
    f"{label} {number(value):<7}" for label, value in (known or values).items()
  )


def _graded(solution: Solution, answer: str) -> tuple[str, rich.text.Text]:
  """A completion, dedented as it may be a function's body, and its verdict."""
  found = solution.value
  if isinstance(found, float):
    found = f"{found:.10g}"
  text, style = {
    "correct": (f"correct: {found}", "green"),
    "wrong": (f"wrong: {found}, not {answer}", "yellow"),
    "none": (f"no answer; it is {answer}", "red"),
  }[solution.verdict]
  written = _clean(textwrap.dedent(solution.completion).strip())
  return written, rich.text.Text(_clean(text), style=style, overflow="fold")


def _clean(text: str) -> str:
  """Text without control characters, which could recolour the terminal."""
  return "".join(
    c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
    for c in text.expandtabs(2)
  )


def _table(**options: Any) -> rich.table.Table:
  return rich.table.Table(
    box=rich.box.SIMPLE_HEAD,
    pad_edge=False,
    collapse_padding=True,  # So that the widest tables fit 80 columns.
    **options,
  )
