"""A report's sentences, tables and text."""

import types

import pytest

from reft_jax.studies import report, results, suites

SFT = suites.Reference("main", "sft", "test")
REFT = suites.Reference("main", "reft", "test")


def seeds(*values) -> dict[int, float]:
  return dict(enumerate(values, start=1))


@pytest.mark.parametrize(
  ("metric", "paper", "one", "other", "text"),
  [
    (
      *("test", "by 9 points", seeds(0.5, 0.6, 0.7), seeds(0.4, 0.4, 0.6)),
      ": holds on 3 of 3 seeds, difference +13.3 ± 5.8 points (95 % interval"
      " -1.0 to +27.7). Paper: by 9 points.",
    ),
    (
      *("test", "", seeds(0.5), seeds(0.4, 0.5)),
      ": holds on 1 of 3 seeds, 2 not measured, difference +10.0 points.",
    ),
    ("test", "", {}, {}, "."),
    # Differences of numbers keep their digits.
    (
      *("reward", "", seeds(0.012, 0.01), seeds(0.0, 0.0)),
      ": holds on 2 of 3 seeds, 1 not measured, difference +0.0110 ± 0.00141"
      " (95 % interval -0.00171 to +0.0237).",
    ),
  ],
)
def test_sentences(metric, paper, one, other, text):
  sides = (suites.Reference("main", s, metric) for s in ("reft", "sft"))
  claim = suites.Above(*sides, "ReFT is better", paper=paper)
  found = results.judge(claim, one, other, seeds=3)
  assert report.sentence(found) == f"ReFT is better{text}"


def test_one_seed_is_singular():
  claim = suites.Above(REFT, SFT, "ReFT is better")
  found = results.judge(claim, seeds(0.5), seeds(0.4), seeds=1)
  assert "on 1 of 1 seed, difference +10.0 points." in report.sentence(found)


@pytest.mark.parametrize(
  ("kind", "values", "text"),
  [
    ("share", [0.4, 0.5, 0.6], "50.0 ± 10.0"),
    ("share", [0.123], "12.3"),
    ("share", [], "-"),
    ("number", [1.0, 3.0], "2.00 ± 1.41"),
    ("seconds", [10.2, 11.2], "11 ± 1"),
    ("rate", [1e-4, 3e-4], "1e-4, 3e-4"),
    ("rate", [1e-4, 1e-4], "1e-4"),
  ],
)
def test_cells(kind, values, text):
  assert report.cell(kind, values) == text


def test_a_table_beside_the_papers_figures():
  numbers = {
    "main/sft:test": seeds(0.1, 0.2, 0.3),
    "main/reft:test": seeds(0.9, 0.8, 0.85),
    "main/sft:learning_rate": seeds(1e-4, 1e-4, 3e-4),
    "main/sft:kl": {2: 1e-4},
  }
  found = types.SimpleNamespace(of=lambda one: numbers.get(str(one), {}))
  rows = (
    suites.Row("SFT", SFT, {"GSM8K": "41.0"}),
    suites.Row("ReFT", REFT, {"GSM8K": "46.8", "SVAMP": "-"}),
    suites.Row("p(x|y)\nover all", suites.Reference("main", "base", "test")),
  )
  table = suites.Table("", ("test", "learning_rate", "kl"), rows)
  text = report.grid(*report.rows_of(table, found))
  assert text.splitlines() == [
    "|  | test | learning rate | KL at the end, nats | seeds | paper: GSM8K |"
    " paper: SVAMP |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    # A mean over fewer seeds than its neighbours says so.
    "| SFT | 20.0 ± 10.0 | 1e-4, 1e-4, 3e-4 | 1e-4 (of 1) | 1 | 41.0 |  |",
    "| ReFT | 85.0 ± 5.0 | - | - | 3 | 46.8 | - |",
    r"| p(x\|y) over all | - | - | - | 0 |  |  |",
  ]
