"""What numbers say: spreads, verdicts, the report's text."""

import math

import pytest

from reft_jax.studies import report, suites

SEEDS = (1, 2, 3)


def reference(text: str) -> suites.Reference:
  place, _, metric = text.partition(":")
  run, stage = place.split("/")
  return suites.Reference(run, stage, metric or "test")


def claim(text="ReFT is better", by=0.0, within=None, paper="by 9 points"):
  one, other = reference("main/reft"), reference("main/sft")
  return suites.Claim(text, one, other, by, within, paper)


def seeds(*values) -> dict[int, float]:
  return dict(enumerate(values, start=1))


def test_spread_of_hand_worked_numbers():
  # Deviation 0.1, so 0.1 / sqrt(3) times the t quantile of 2 degrees, 4.3027.
  found = report.spread([0.4, 0.5, 0.6])
  assert found.mean == pytest.approx(0.5)
  assert found.deviation == pytest.approx(0.1)
  assert found.high - 0.5 == pytest.approx(0.24841, rel=1e-4)
  assert 0.5 - found.low == pytest.approx(0.24841, rel=1e-4)


def test_one_seed_has_no_spread():
  found = report.spread([0.4])
  assert (found.seeds, found.mean) == (1, 0.4)
  assert math.isnan(found.deviation)


@pytest.mark.parametrize(
  ("above", "below", "by", "held", "verdict"),
  [
    (seeds(0.90, 0.91, 0.89), seeds(0.2, 0.21, 0.19), 0.3, 3, "reproduced"),
    (seeds(0.90, 0.91, 0.89), seeds(0.2, 0.21, 0.19), 0.8, 0, "did not"),
    (seeds(0.5, 0.5, 0.5), seeds(0.5, 0.5, 0.5), 0.0, 0, "did not"),
    (seeds(0.4, 0.4, 0.4), seeds(0.5, 0.5, 0.5), 0.0, 0, "did not"),
    (seeds(0.9, 0.5, 0.5), seeds(0.5, 0.51, 0.51), 0.0, 1, "unclear"),
    # On every seed, but by amounts too different to be sure.
    (seeds(0.9, 0.51, 0.51), seeds(0.5, 0.5, 0.5), 0.0, 3, "unclear"),
    (seeds(0.9), seeds(0.2), 0.3, 1, "unclear"),
    # Where a seed diverged, what holds on the others is not enough.
    (seeds(0.90, 0.91), seeds(0.2, 0.21, 0.19), 0.3, 2, "unclear"),
    (seeds(0.2, 0.21), seeds(0.90, 0.91, 0.89), 0.3, 0, "did not"),
    ({1: 0.9, 2: 0.91}, {2: 0.2, 3: 0.3}, 0.3, 1, "unclear"),
    (seeds(0.9), {2: 0.2}, 0.3, 0, "could not"),
    ({}, seeds(0.2), 0.3, 0, "could not"),
    (0.1, seeds(0.0, 0.01, 0.0), 0.0, 3, "reproduced"),
    (0.1, seeds(0.8, 0.81, 0.8), 0.0, 0, "did not"),
  ],
)
def test_verdicts_on_one_above_another(above, below, by, held, verdict):
  found = report.judge(claim(by=by), above, below, seeds=3)
  assert found.held == held
  assert found.verdict.startswith(verdict)


@pytest.mark.parametrize(
  ("one", "other", "verdict"),
  [
    (seeds(0.5, 0.5, 0.501), seeds(0.5, 0.501, 0.5), "reproduced"),
    (seeds(0.6, 0.6, 0.6), seeds(0.5, 0.5, 0.5), "did not"),
    (seeds(0.5, 0.5, 0.5), seeds(0.6, 0.6, 0.6), "did not"),
    # Equal on average alone.
    (seeds(0.6, 0.4, 0.5), seeds(0.5, 0.5, 0.5), "unclear"),
  ],
)
def test_verdicts_on_two_that_are_equal(one, other, verdict):
  found = report.judge(claim(within=0.02), one, other, seeds=3)
  assert found.verdict.startswith(verdict)
  swapped = report.judge(claim(within=0.02), other, one, seeds=3)
  assert swapped.verdict == found.verdict


@pytest.mark.parametrize(
  ("one", "other", "margin", "holds"),
  [
    (0.7, 0.4, {"by": 0.3}, True),
    (0.7, 0.4, {"by": 0.30001}, False),
    (0.55, 0.50, {"within": 0.05}, True),
    (0.50, 0.55, {"within": 0.05}, True),
    (0.55, 0.50, {"within": 0.04999}, False),
    (0.1 + 0.2, 0.3, {}, False),
  ],
)
def test_rounding_decides_no_claim(one, other, margin, holds):
  found = report.judge(claim(**margin), seeds(one), seeds(other), seeds=1)
  assert found.held == holds


def test_sentences():
  found = report.judge(
    claim(), seeds(0.5, 0.6, 0.7), seeds(0.4, 0.4, 0.6), seeds=3
  )
  assert report.sentence(found) == (
    "ReFT is better: holds on 3 of 3 seeds, difference +13.3 ± 5.8 points"
    " (95 % interval -1.0 to +27.7). Paper: by 9 points."
  )
  found = report.judge(claim(paper=""), seeds(0.5), seeds(0.4), seeds=1)
  assert report.sentence(found) == (
    "ReFT is better: holds on 1 of 1 seed, difference +10.0 points."
  )
  found = report.judge(claim(paper=""), seeds(0.5), seeds(0.4), seeds=3)
  assert report.sentence(found) == (
    "ReFT is better: holds on 1 of 3 seeds, 2 not measured, difference +10.0"
    " points."
  )
  found = report.judge(claim(paper=""), {}, {}, seeds=3)
  assert report.sentence(found) == "ReFT is better."


def test_differences_of_what_is_no_share_keep_their_digits():
  one, other = reference("main/reft:reward"), reference("main/sft:reward")
  better = suites.Claim("More reward", one, other, 0.0, None, "")
  found = report.judge(better, seeds(0.012, 0.01), seeds(0.0, 0.0), seeds=2)
  assert report.sentence(found) == (
    "More reward: holds on 2 of 2 seeds, difference +0.0110 ± 0.00141 (95 %"
    " interval -0.00171 to +0.0237)."
  )


@pytest.mark.parametrize(
  ("kind", "values", "text"),
  [
    ("share", [0.4, 0.5, 0.6], "50.0 ± 10.0"),
    ("share", [0.123], "12.3"),
    ("share", [], "-"),
    ("number", [1.0, 3.0], "2.00 ± 1.41"),
    ("seconds", [10.2, 11.2], "11 ± 1"),
    ("rate", [1e-4, 3e-4], "1e-4, 3e-4"),
  ],
)
def test_cells(kind, values, text):
  assert report.cell(kind, values) == text


NUMBERS = {
  "main/sft:test": seeds(0.1, 0.2, 0.3),
  "main/reft:test": seeds(0.9, 0.8, 0.85),
  "main/sft:learning_rate": seeds(1e-4, 1e-4, 3e-4),
}
SUITE = suites.Suite(
  *("suite.yaml", "small", "About it.", "smoke", SEEDS, {"reft": {"steps": 2}}),
  runs={"main": suites.Run("main", ("sft", "reft"), {"stages": ["sft"]}, None)},
  evaluations=(),
  tables=(
    suites.Table(
      "Methods",
      ("test", "learning_rate"),
      (
        suites.Row("SFT", "main", "sft", {"GSM8K": 41.0}),
        suites.Row("ReFT", "main", "reft", {"GSM8K": 46.8, "SVAMP": "-"}),
      ),
      "A note.",
    ),
  ),
  figures=(),
  claims=(claim(),),
)


def test_a_mean_over_fewer_seeds_than_its_neighbours_says_so():
  known = {
    "main/sft:test": seeds(0.1, 0.2, 0.3),
    "main/sft:learning_rate": {2: 1e-4},
  }
  table = suites.Table(
    "", ("test", "learning_rate", "kl"), SUITE.tables[0].rows, ""
  )
  _, rows = report.rows_of(
    table, lambda one: known.get(f"{one.run}/{one.stage}:{one.metric}", {})
  )
  assert rows[0][:5] == ["SFT", "20.0 ± 10.0", "1e-4 (of 1)", "-", "1"]
  assert rows[1][:5] == ["ReFT", "-", "-", "-", "0"]


def numbers(one: suites.Reference) -> dict[int, float]:
  return NUMBERS.get(f"{one.run}/{one.stage}:{one.metric}", {})


def test_a_table_beside_the_papers_figures():
  text = report.markdown(*report.rows_of(SUITE.tables[0], numbers))
  assert text.splitlines() == [
    "|  | test | learning rate | seeds | paper: GSM8K | paper: SVAMP |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
    "| SFT | 20.0 ± 10.0 | 1e-4, 1e-4, 3e-4 | 3 | 41.0 |  |",
    "| ReFT | 85.0 ± 5.0 | - | 3 | 46.8 | - |",
  ]


def test_a_label_breaks_no_table():
  text = report.markdown(["", "test"], [["p(x|y)\nover all", "1"]])
  assert text.splitlines()[2] == r"| p(x\|y) over all | 1 |"


def test_a_report_says_all_of_it():
  found = report.judge(
    claim(), NUMBERS["main/reft:test"], NUMBERS["main/sft:test"], seeds=3
  )
  account = report.Account(
    command="python -m reft_jax.reproduce small",
    overrides=("reft.kl_coef=0.5",),
    machine="2 CPU cores",
    at_once=2,
    seconds=3700,
    seeds=SEEDS,
    missing=["kl_0-seed2 (diverged)"],
    pictures={"dev.png": "Dev"},
  )
  text = report.report(SUITE, numbers, [found], account)
  for part in (
    "# Reproduction: small\n\nAbout it.",
    "```bash\npython -m reft_jax.reproduce small\n```",
    "2 CPU cores; 1h 01m in all, 2 at a time",
    "seeds 1, 2 and 3",
    "Missing: kl_0-seed2 (diverged).",
    "**Reproduced**\n\n* ReFT is better: holds on 3 of 3",
    "## Methods\n\n|  | test |",
    "A note.",
    "## Pictures\n\nLines are means over seeds;",
    "\n\n![Dev](dev.png)\n",
    "| main/sft | 10.0 | 20.0 | 30.0 |",
    "`--config smoke reft.steps=2`",
    "for every run: `reft.kl_coef=0.5`",
  ):
    assert part in text
  assert "**Unclear**" not in text


def test_a_finding_as_json():
  found = report.judge(claim(), seeds(0.5), seeds(0.25), seeds=2)
  assert report.plain(found) == {
    "claim": "ReFT is better",
    "verdict": "unclear",
    "seeds": 2,
    "held": 1,
    "differences": {"1": 0.25},
    "mean": 0.25,
    "interval": None,
  }
