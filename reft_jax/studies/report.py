"""The report of a suite: Markdown, pictures and JSON."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from reft_jax import files
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import plots
from reft_jax.studies import jobs as jobs_lib
from reft_jax.studies import results, suites

RULES = (
  "A claim is *reproduced* if it holds on every seed and the whole 95 %"
  " interval of the mean difference over seeds (Student's t, paired by seed)"
  " is on its side; it *did not reproduce* if the mean difference is on the"
  " other side; it is *unclear* in between, with one seed, and where a seed was"
  " not measured."
)


def write(
  suite: suites.Suite,
  command: str,
  jobs: Iterable[jobs_lib.Job],
  ledger: jobs_lib.Ledger,
) -> list[results.Finding]:
  """Writes report.md, its pictures and results.json; returns the findings.

  The numbers are those of jobs that have results, as the ledger says; `command`
  is the command line that makes them.
  """
  reasons = {job.name: ledger.why(job) for job in jobs}
  done = {name for name, why in reasons.items() if why is None}
  found = results.Results(suite, done)
  findings = [
    results.judge(claim, *map(found.of, claim.sides), seeds=len(suite.seeds))
    for claim in suite.claims
  ]
  account = {
    "suite": suite.name,
    "command": command,
    "machine": found.machine(),
    "at_once": ledger.at_once,
    "seconds": ledger.seconds,
    "seeds": suite.seeds,
    "missing": [f"{name} ({why})" for name, why in reasons.items() if why],
  }
  text = markdown(suite, account, found, findings, _draw(suite, found))
  files.replace(suite.output / "report.md", text)
  account["claims"] = [results.to_json(each) for each in findings]
  account["runs"] = found.numbers
  text = json.dumps(account, indent=2, allow_nan=False) + "\n"
  files.replace(suite.output / "results.json", text)
  return findings


def _draw(suite: suites.Suite, found: results.Results) -> dict[str, str]:
  """Draws the suite's figures; returns their titles by file name."""
  pictures = {}
  for figure in suite.figures:
    if isinstance(figure, suites.Curves):
      dense, x = True, suites.OVER[figure.over]
      lines = {
        label: found.curve(line, figure.over)
        for label, line in figure.curves.items()
      }
    else:
      dense, x = False, figure.x
      lines = {
        label: {
          place: list(values.values())
          for place, result in line.items()
          if (values := found.of(result))
        }
        for label, line in figure.points.items()
      }
    if any(lines.values()):
      name, title = suites.picture(figure.title), figure.title
      path, share = suite.output / name, figure.share
      plots.lines(lines, path, title=title, x=x, share=share, dense=dense)
      pictures[name] = title
  return pictures


def markdown(
  suite: suites.Suite,
  account: Mapping[str, Any],
  found: results.Results,
  findings: Sequence[results.Finding],
  pictures: Mapping[str, str],
) -> str:
  """The report as Markdown.

  `account` says how the numbers were made, as results.json does; `pictures` has
  the title of each picture by its file.
  """
  parts = [f"# Reproduction: {suite.name}", suite.about]
  parts += [_introduction(suite, account)]
  if findings:
    parts += ["## What reproduced and what did not", *_verdicts(findings)]
  for table in suite.tables:
    parts += [f"## {table.title}", grid(*rows_of(table, found)), table.note]
  if pictures:
    parts += [
      "## Pictures",
      "Lines are means over seeds; bands and bars reach from the lowest seed to"
      " the highest.",
    ]
  parts += [f"![{title}]({file})" for file, title in pictures.items()]
  parts += ["## Every seed", _every_seed(suite, found)]
  parts += ["## The runs", _runs(suite)]
  return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(suite: suites.Suite, account: Mapping[str, Any]) -> str:
  """How the numbers were made, and how to read them."""
  *first, last = map(str, suite.seeds)
  seeds = f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"
  text = (
    f"```bash\n{account['command']}\n```\n\n{account['machine']};"
    f" {console_lib.duration(account['seconds'])} in all,"
    f" {account['at_once']} at a time. Figures are the mean ± the standard"
    f" deviation over runs with {seeds}; all that is random in a run follows"
    " from its seed. Accuracies are in per cent: of the dev problems where a"
    " heading says dev, of the test problems elsewhere."
  )
  if any(row.paper for table in suite.tables for row in table.rows):
    text += (
      " Figures of the paper are value accuracies in per cent, of the models"
      " and data in their heading."
    )
  if missing := account["missing"]:
    text += f"\n\n**Missing: {', '.join(missing)}.**"
  return text


def _verdicts(findings: Sequence[results.Finding]) -> list[str]:
  """A sentence for each claim, by verdict, then what the verdicts mean."""
  parts = []
  for verdict in get_args(results.Verdict):
    lines = [sentence(each) for each in findings if each.verdict == verdict]
    if lines:
      head = verdict[0].upper() + verdict[1:]
      parts += [f"**{head}**", "\n".join(f"* {line}" for line in lines)]
  return [*parts, RULES]


def sentence(finding: results.Finding) -> str:
  """A finding in words."""
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


def _difference(claim: suites.Claim, found: results.Spread) -> str:
  """A mean difference with its deviation and interval."""
  sides = (side for side in claim.sides if not isinstance(side, float))
  share = {suites.metric(side.metric).kind for side in sides} == {"share"}
  kind, unit = ("share", " points") if share else ("number", "")
  mean, low, high = (
    f"{'+' * (value >= 0)}{_shown(value, kind)}"
    for value in (found.mean, found.low, found.high)
  )
  if found.seeds == 1:
    return f"{mean}{unit}"
  deviation = _shown(found.deviation, kind)
  return f"{mean} ± {deviation}{unit} (95 % interval {low} to {high})"


def _shown(value: float, kind: str) -> str:
  if kind == "share":
    return f"{100 * value:.1f}"
  return f"{value:.0f}" if kind == "seconds" else console_lib.number(value)


def rows_of(
  table: suites.Table, found: results.Results
) -> tuple[list[str], list[list[str]]]:
  """A table's heads and cells; the paper's figures are the last columns.

  The column `seeds` holds the least number of seeds in the row; a cell with
  fewer seeds than others of its row says so.
  """
  papers = list(dict.fromkeys(name for row in table.rows for name in row.paper))
  metrics = [suites.metric(column) for column in table.columns]
  heads = ["", *(metric.title for metric in metrics), "seeds"]
  heads += [f"paper: {setting}" for setting in papers]
  rows = []
  for row in table.rows:
    values = [
      list(found.of(dataclasses.replace(row.result, metric=column)).values())
      for column in table.columns
    ]
    counts = {len(some) for some in values if some} or {0}
    cells = [
      cell(metric.kind, some)
      # Readers would compare it with its neighbours' means over more seeds.
      + f" (of {len(some)})" * (0 < len(some) < max(counts))
      for metric, some in zip(metrics, values, strict=True)
    ]
    figures = [row.paper.get(setting, "") for setting in papers]
    rows.append([row.label, *cells, str(min(counts)), *figures])
  return heads, rows


def cell(kind: str, values: Sequence[float]) -> str:
  """A table's cell for the values of all seeds."""
  if not values:
    return "-"
  if kind == "rate":
    some = [console_lib.number(v) if v < 1e-3 else f"{v:g}" for v in values]
    return ", ".join(some if len(set(some)) > 1 else some[:1])
  found = results.spread(values)
  mean, deviation = _shown(found.mean, kind), _shown(found.deviation, kind)
  return mean if found.seeds == 1 else f"{mean} ± {deviation}"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown; all but the first column are aligned to the right."""
  rule = ["---", *["---:"] * (len(heads) - 1)]
  lines = []
  for row in (heads, rule, *rows):
    # Texts without what would end their cell or their line.
    cells = (" ".join(text.split()).replace("|", r"\|") for text in row)
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _every_seed(suite: suites.Suite, found: results.Results) -> str:
  """The test accuracy of every model in a table, seed by seed."""
  models = dict.fromkeys(
    dataclasses.replace(row.result, metric="test")
    for table in suite.tables
    for row in table.rows
  )
  seeds, rows = suite.seeds, []
  for model in models:
    values = found.of(model)
    cells = [cell("share", [values[s]] if s in values else []) for s in seeds]
    rows.append([f"{model.run}/{model.stage}", *cells])
  return grid(["test", *(f"seed {seed}" for seed in seeds)], rows)


def _runs(suite: suites.Suite) -> str:
  """The settings of every run, and the overrides of all."""
  common = " ".join(suites.written(suite.settings))
  lines = [f"All of them: `--config {suite.experiment} {common}`".rstrip()]
  lines += [
    f"* {run.name}: `{' '.join(suites.written(run.settings))}`"
    + (f", from {run.source}'s models" if run.source else "")
    for run in suite.runs.values()
  ]
  if suite.overrides:
    lines.append(f"* over them, for every run: `{' '.join(suite.overrides)}`")
  return "\n".join(lines)
