"""What a suite's numbers say: spreads, verdicts on claims, the report's text.

Numbers in, text out: nothing is run or read here.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import scipy.stats

from reft_jax.runtime import console as console_lib
from reft_jax.studies import suites

Verdict = Literal[
  "reproduced", "unclear", "did not reproduce", "could not be measured"
]
# What rounding adds to a difference, or takes away.
_SLACK = 1e-9
# A metric of a stage by seed.
BySeed = Mapping[int, float]

RULES = (
  "A claim is *reproduced* if it holds on every seed and the whole 95 %"
  " interval of the mean difference over seeds (Student's t, paired by seed)"
  " is on its side; it *did not reproduce* if the mean difference is on the"
  " other side; it is *unclear* in between, with one seed, and where a seed was"
  " not measured."
)


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean and standard deviation over seeds, and a 95 % interval of the mean.

  All but the mean are nan with one seed.
  """

  seeds: int
  mean: float
  deviation: float
  low: float
  high: float


def spread(values: Sequence[float]) -> Spread:
  """Summarises one value a seed; there must be one at least."""
  count, mean = len(values), statistics.mean(values)
  if count == 1:
    return Spread(1, mean, math.nan, math.nan, math.nan)
  deviation = statistics.stdev(values)
  quantile = float(scipy.stats.t.ppf(0.975, count - 1))
  reach = quantile * deviation / math.sqrt(count)
  return Spread(count, mean, deviation, mean - reach, mean + reach)


@dataclasses.dataclass(frozen=True)
class Finding:
  """What became of a claim.

  Attributes:
    claim: the claim.
    seeds: how many were run.
    differences: its two sides' by seed, on those where both were measured.
    spread: of the differences; None without any.
    held: on how many seeds it holds.
    verdict: in a word or two; see RULES.
  """

  claim: suites.Claim
  seeds: int
  differences: BySeed
  spread: Spread | None
  held: int
  verdict: Verdict


def judge(
  claim: suites.Claim,
  one: BySeed | float,
  other: BySeed | float,
  *,
  seeds: int,
) -> Finding:
  """Holds a claim against its two sides' numbers, on so many seeds.

  What a run that diverged would have shown is not known, and a claim is not
  reproduced without it.
  """
  differences = _minus(one, other)
  if not differences:
    return Finding(claim, seeds, {}, None, 0, "could not be measured")
  found = spread(list(differences.values()))
  held = [_holds(claim, value) for value in differences.values()]
  verdict: Verdict = "unclear"
  if not _holds(claim, found.mean):
    verdict = "did not reproduce"
  elif (
    sum(held) == seeds
    and _holds(claim, found.low)
    and _holds(claim, found.high)
  ):
    verdict = "reproduced"
  return Finding(claim, seeds, differences, found, sum(held), verdict)


def _holds(claim: suites.Claim, difference: float) -> bool:
  """Whether one difference is as claimed; nan is not."""
  if claim.within is not None:
    return abs(difference) <= claim.within + _SLACK
  return difference >= claim.by - _SLACK and difference > _SLACK


def _minus(one: BySeed | float, other: BySeed | float) -> dict[int, float]:
  """Differences on the seeds that both sides have; a number is on all."""
  sides = [side for side in (one, other) if isinstance(side, Mapping)]
  seeds = [seed for seed in sides[0] if all(seed in side for side in sides)]
  left, right = (
    side if isinstance(side, Mapping) else dict.fromkeys(seeds, side)
    for side in (one, other)
  )
  return {seed: left[seed] - right[seed] for seed in seeds}


def plain(finding: Finding) -> dict[str, Any]:
  """A finding as JSON knows it."""
  found = finding.spread
  return {
    "claim": finding.claim.text,
    "verdict": finding.verdict,
    "seeds": finding.seeds,
    "held": finding.held,
    "differences": {str(k): v for k, v in finding.differences.items()},
    "mean": found and found.mean,
    "interval": [found.low, found.high] if found and found.seeds > 1 else None,
  }


@dataclasses.dataclass(frozen=True)
class Account:
  """How the numbers came about.

  Attributes:
    command: the command line that makes them.
    overrides: the settings in it, for every run and evaluation.
    machine: on what, in a line.
    at_once: how many runs went on at the same time.
    seconds: by the clock, all runs and evaluations together.
    seeds: the seeds that were run.
    missing: runs and evaluations that did not come to their end, and why.
    pictures: file and title of each picture beside the report.
  """

  command: str
  overrides: Sequence[str]
  machine: str
  at_once: int
  seconds: float
  seeds: tuple[int, ...]
  missing: Sequence[str]
  pictures: Mapping[str, str]


def report(
  suite: suites.Suite,
  of: Callable[[suites.Reference], BySeed],
  findings: Sequence[Finding],
  account: Account,
) -> str:
  """The report as Markdown.

  Args:
    suite: the suite.
    of: a result by seed.
    findings: what became of the suite's claims.
    account: how the numbers came about.
  """
  parts = [
    f"# Reproduction: {suite.name}",
    suite.about,
    _introduction(suite, account),
  ]
  if findings:
    parts += ["## What reproduced and what did not", *_verdicts(findings)]
  for table in suite.tables:
    parts += [f"## {table.title}", markdown(*rows_of(table, of)), table.note]
  if account.pictures:
    parts += [
      "## Pictures",
      "Lines are means over seeds; bands and bars reach from the lowest seed to"
      " the highest.",
    ]
  parts += [f"![{title}]({file})" for file, title in account.pictures.items()]
  parts += ["## Every seed", _every_seed(suite, of, account.seeds)]
  parts += ["## The runs", _runs(suite, account.overrides)]
  return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(suite: suites.Suite, account: Account) -> str:
  """How the numbers came about, and how they are to be read."""
  *first, last = map(str, account.seeds)
  seeds = f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"
  text = (
    f"```bash\n{account.command}\n```\n\n"
    f"{account.machine}; {console_lib.duration(account.seconds)} in all,"
    f" {account.at_once} at a time. Figures are the mean ± the standard"
    f" deviation over runs with {seeds}; all that is random in a run follows"
    " from its seed. Accuracies are in per cent: of the dev problems where a"
    " heading says dev, of the test problems elsewhere."
  )
  if any(row.paper for table in suite.tables for row in table.rows):
    text += (
      " Figures of the paper are value accuracies in per cent, of the models"
      " and data in their heading."
    )
  if account.missing:
    text += f"\n\n**Missing: {', '.join(account.missing)}.**"
  return text


def _verdicts(findings: Sequence[Finding]) -> list[str]:
  """A sentence a claim, by verdict, then what the verdicts mean."""
  parts = []
  for verdict in get_args(Verdict):
    lines = [sentence(each) for each in findings if each.verdict == verdict]
    if lines:
      head = verdict[0].upper() + verdict[1:]
      parts += [f"**{head}**", "\n".join(f"* {line}" for line in lines)]
  return [*parts, RULES]


def sentence(finding: Finding) -> str:
  """What became of a claim, in plain words."""
  claim, found = finding.claim, finding.spread
  text = claim.text
  if found is not None:
    text += (
      f": holds on {finding.held} of {finding.seeds}"
      f" seed{'s' * (finding.seeds > 1)},"
    )
    if found.seeds < finding.seeds:
      text += f" {finding.seeds - found.seeds} not measured,"
    text += f" difference {_difference(claim, found)}"
  return f"{text}. Paper: {claim.paper}." if claim.paper else f"{text}."


def _difference(claim: suites.Claim, found: Spread) -> str:
  """A mean difference with its deviation and interval."""
  sides = (s for s in (claim.one, claim.other) if not isinstance(s, float))
  kinds = {suites.metric(side.metric).kind for side in sides}
  share = kinds == {"share"}
  mean, deviation, low, high = (
    f"{100 * value:+.1f}" if share else _signed(value)
    for value in (found.mean, found.deviation, found.low, found.high)
  )
  unit = " points" if share else ""
  if found.seeds == 1:
    return f"{mean}{unit}"
  return f"{mean} ± {deviation[1:]}{unit} (95 % interval {low} to {high})"


def _signed(value: float) -> str:
  return f"{'+' * (value >= 0)}{console_lib.number(value)}"


def rows_of(
  table: suites.Table, of: Callable[[suites.Reference], BySeed]
) -> tuple[list[str], list[list[str]]]:
  """A table's heads and cells; the paper's figures are the last columns.

  Under `seeds` stands how many every cell is made of at least; a cell of fewer
  than others of its row says so.
  """
  settings = list(
    dict.fromkeys(name for row in table.rows for name in row.paper)
  )
  heads = [
    "",
    *(suites.metric(column).title for column in table.columns),
    "seeds",
    *(f"paper: {setting}" for setting in settings),
  ]
  rows = []
  for row in table.rows:
    values = [
      of(suites.Reference(row.run, row.stage, column))
      for column in table.columns
    ]
    counts = {len(some) for some in values if some} or {0}
    cells = [
      cell(suites.metric(column).kind, list(some.values()))
      # A mean over fewer seeds than its neighbours' is not to be set beside
      # them unawares.
      + f" (of {len(some)})" * (0 < len(some) < max(counts))
      for column, some in zip(table.columns, values, strict=True)
    ]
    paper = [str(row.paper.get(setting, "")) for setting in settings]
    rows.append([row.label, *cells, str(min(counts)), *paper])
  return heads, rows


def cell(kind: str, values: Sequence[float]) -> str:
  """One value a seed, as a table shows them."""
  if not values:
    return "-"
  if kind == "rate":
    some = [console_lib.number(v) if v < 1e-3 else f"{v:g}" for v in values]
    return ", ".join(some if len(set(some)) > 1 else some[:1])
  found = spread(values)
  if kind == "share":
    written = [f"{100 * each:.1f}" for each in (found.mean, found.deviation)]
  elif kind == "seconds":
    written = [f"{each:.0f}" for each in (found.mean, found.deviation)]
  else:
    written = [console_lib.number(e) for e in (found.mean, found.deviation)]
  return " ± ".join(written[: 1 if found.seeds == 1 else 2])


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table; all but the first column are set to the right."""
  rule = ["---", *["---:"] * (len(heads) - 1)]
  lines = [[_in_table(text) for text in row] for row in (heads, rule, *rows)]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _in_table(text: str) -> str:
  """Text that ends neither its cell nor its line."""
  return " ".join(text.split()).replace("|", r"\|")


def _every_seed(
  suite: suites.Suite,
  of: Callable[[suites.Reference], BySeed],
  seeds: Sequence[int],
) -> str:
  """Test accuracy of every model in a table, seed by seed."""
  places = dict.fromkeys(
    (row.run, row.stage) for table in suite.tables for row in table.rows
  )
  rows = []
  for run, stage in places:
    found = of(suites.Reference(run, stage, "test"))
    cells = [cell("share", [found[s]] if s in found else []) for s in seeds]
    rows.append([f"{run}/{stage}", *cells])
  return markdown(["test", *(f"seed {seed}" for seed in seeds)], rows)


def _runs(suite: suites.Suite, overrides: Sequence[str]) -> str:
  """What every run is; `overrides` are laid over its settings."""
  common = " ".join(suites.written(suite.settings))
  lines = [f"All of them: `--config {suite.experiment} {common}`".rstrip()]
  lines += [
    f"* {run.name}: `{' '.join(suites.written(run.settings))}`"
    + (f", from {run.source}'s models" if run.source else "")
    for run in suite.runs.values()
  ]
  if overrides:
    lines.append(f"* over them, for every run: `{' '.join(overrides)}`")
  return "\n".join(lines)
