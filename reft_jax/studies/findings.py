"""What a suite's numbers say: spreads, verdicts on claims, the report's text.

Numbers in, text out: nothing is run or read here.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import scipy.stats

from reft_jax import terminal
from reft_jax.studies import suites

Verdict = Literal[
  "reproduced", "unclear", "did not reproduce", "could not be measured"
]
# A metric of a stage by seed.
BySeed = Mapping[int, float]

RULES = (
  "A claim is *reproduced* if it holds on every seed and the whole 95 %"
  " interval of the mean difference over seeds (Student's t, paired by seed)"
  " is on its side; it *did not reproduce* if the mean difference is on the"
  " other side; it is *unclear* in between, and with one seed."
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
  reach = deviation / math.sqrt(count) * scipy.stats.t.ppf(0.975, count - 1)
  return Spread(count, mean, deviation, mean - reach, mean + reach)


@dataclasses.dataclass(frozen=True)
class Finding:
  """What became of a claim.

  Attributes:
    claim: the claim.
    differences: its two sides' by seed; empty where one was not measured.
    spread: of the differences; None without any.
    held: on how many seeds it holds.
    verdict: in a word or two; see RULES.
  """

  claim: suites.Claim
  differences: BySeed
  spread: Spread | None
  held: int
  verdict: Verdict


def judge(
  claim: suites.Claim, one: BySeed | float, other: BySeed | float
) -> Finding:
  """Holds a claim against the numbers of its two sides."""
  differences = _minus(one, other)
  if not differences:
    return Finding(claim, differences, None, 0, "could not be measured")
  found = spread(list(differences.values()))
  held = [_holds(claim, value) for value in differences.values()]
  verdict: Verdict = "unclear"
  if not _holds(claim, found.mean):
    verdict = "did not reproduce"
  elif all(held) and _holds(claim, found.low) and _holds(claim, found.high):
    verdict = "reproduced"
  return Finding(claim, differences, found, sum(held), verdict)


def _holds(claim: suites.Claim, difference: float) -> bool:
  """Whether one difference is as claimed; nan is not."""
  if claim.within is not None:
    return abs(difference) <= claim.within
  return difference >= claim.by and difference > 0


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
    machine: on what, in a line.
    at_once: how many runs went on at the same time.
    seconds: by the clock, all runs and evaluations together.
    seeds: the seeds that were run.
    missing: runs that did not come to their end.
    pictures: file and title of each picture beside the report.
  """

  command: str
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
  parts = [f"# Reproduction: {suite.name}", suite.about, _introduction(account)]
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
  parts += ["## The runs", _runs(suite)]
  return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(account: Account) -> str:
  *first, last = map(str, account.seeds)
  seeds = f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"
  text = (
    f"```bash\n{account.command}\n```\n\n"
    f"{account.machine}; {terminal.duration(account.seconds)} in all,"
    f" {account.at_once} at a time. Accuracies are in per cent of the test"
    f" problems, the mean ± the standard deviation over runs with {seeds}:"
    " each has data, a base model and random draws of its own, and"
    " everything is chosen on dev, nothing on the test problems. Figures of"
    " the paper are value accuracies in per cent, of far larger models on"
    " other data: their order can be compared, not their size."
  )
  if account.missing:
    text += f"\n\n**Not finished: {', '.join(account.missing)}.**"
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
    seeds = len(finding.differences)
    text += (
      f": holds on {finding.held} of {seeds} seed{'s' * (seeds > 1)},"
      f" difference {_difference(claim, found)}"
    )
  return f"{text}. Paper: {claim.paper}." if claim.paper else f"{text}."


def _difference(claim: suites.Claim, found: Spread) -> str:
  """A mean difference with its deviation and interval."""
  sides = (s for s in (claim.one, claim.other) if not isinstance(s, float))
  kinds = {suites.metric(side.metric).kind for side in sides}
  scale, unit = (100, " points") if kinds == {"share"} else (1, "")
  mean, deviation, low, high = (
    f"{scale * value:+.1f}"
    for value in (found.mean, found.deviation, found.low, found.high)
  )
  if found.seeds == 1:
    return f"{mean}{unit}"
  return f"{mean} ± {deviation[1:]}{unit} (95 % interval {low} to {high})"


def rows_of(
  table: suites.Table, of: Callable[[suites.Reference], BySeed]
) -> tuple[list[str], list[list[str]]]:
  """A table's heads and cells; the paper's figures are the last columns."""
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
    cells = [
      cell(suites.metric(column).kind, list(some.values()))
      for column, some in zip(table.columns, values, strict=True)
    ]
    seeds = str(max(map(len, values)))
    paper = [str(row.paper.get(setting, "")) for setting in settings]
    rows.append([row.label, *cells, seeds, *paper])
  return heads, rows


def cell(kind: str, values: Sequence[float]) -> str:
  """One value a seed, as a table shows them."""
  if not values:
    return "-"
  if kind == "rate":
    some = [terminal.number(v) if v < 1e-3 else f"{v:g}" for v in values]
    return ", ".join(some if len(set(some)) > 1 else some[:1])
  found = spread(values)
  if kind == "share":
    written = [f"{100 * each:.1f}" for each in (found.mean, found.deviation)]
  elif kind == "seconds":
    written = [f"{each:.0f}" for each in (found.mean, found.deviation)]
  else:
    written = [terminal.number(e) for e in (found.mean, found.deviation)]
  return " ± ".join(written[: 1 if found.seeds == 1 else 2])


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table; all but the first column are set to the right."""
  rule = ["---", *["---:"] * (len(heads) - 1)]
  return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


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


def _runs(suite: suites.Suite) -> str:
  """What every run is."""
  common = " ".join(suites.written(suite.settings))
  lines = [f"All of them: `--config {suite.experiment} {common}`".rstrip()]
  lines += [
    f"* {run.name}: `{' '.join(suites.written(run.settings))}`"
    + (f", from {run.source}'s models" if run.source else "")
    for run in suite.runs.values()
  ]
  return "\n".join(lines)
