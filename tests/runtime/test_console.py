import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax.runtime import console as console_lib


class Tty(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
  for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm")


def run_stage(file, steps=4, start=0):
  with console_lib.Console(file).stage("reft", steps, start) as stage:
    for step in range(start, steps):
      stage.step(step + 1)
      stage.step(step + 1, {"reward/mean": 0.25, "odd": 1.0, "kl": math.nan})
    stage.note("dev 31 %")
  return file.getvalue()


def test_piped_is_one_plain_line_a_step():
  text = run_stage(io.StringIO())
  assert all(c.isprintable() or c == "\n" for c in text)
  lines = text.splitlines()
  assert lines[0].split() == ["reft", "1/4", "reward", "0.250", "kl", "-"]
  assert re.fullmatch(r"reft 2/4  reward 0\.250 +kl - +\S+ left", lines[1])
  assert lines[4] == "reft: dev 31 %"
  assert re.fullmatch(r"reft: 4 steps in \S+", lines[5])
  assert len(lines) == 6


def test_a_resumed_stage_counts_on():
  lines = run_stage(io.StringIO(), steps=12, start=10).splitlines()
  assert lines[0].startswith("reft 11/12")
  assert lines[-1].startswith("reft: 2 steps in")


def test_a_terminal_shows_a_bar_with_the_metrics():
  text = run_stage(Tty())
  for expected in ("\x1b[", "━", "4/4", "reward 0.250"):
    assert expected in text


def test_unknown_metrics_are_shown_if_there_are_no_others():
  file = io.StringIO()
  with console_lib.Console(file).stage("other", 1) as stage:
    stage.step(1, {"odd": 1.0})
  assert "odd 1.00" in file.getvalue()


def test_an_error_is_not_reported_as_done():
  file = io.StringIO()
  shown = console_lib.Console(file)
  with pytest.raises(RuntimeError), shown.stage("reft", 4) as stage:
    raise RuntimeError(stage)
  assert file.getvalue() == ""


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("kind", [io.StringIO, Tty])
def test_samples_and_tables_fit_the_width(monkeypatch, width, kind):
  monkeypatch.setenv("COLUMNS", str(width))
  file = kind()
  long = console_lib.Solution("12 + 3 = 15\n" + "x" * 300, "wrong", 15.0)
  right = console_lib.Solution("[bold]13[/bold] :smile:", "correct", "13")
  none = console_lib.Solution("", "none", None)
  shown = console_lib.Console(file)
  shown.sample("reft", 10, "How many? " * 20, long, "13")
  shown.side_by_side(
    "How many? " * 20, "13", {"SFT": [long, none], "ReFT": [right, right]}
  )
  shown.table("Accuracy", ["model", "test"], [["SFT", 0.292], ["x", None]])
  text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
  assert all(len(line) <= width for line in text.splitlines())
  for expected in (
    "reft, step 10",
    "wrong: 15, not 13",
    "no answer; it is 13",
    "[bold]13[/bold] :smile:",
    "0.292",
  ):
    assert expected in text
  assert text.count("x") > 600


@settings(max_examples=30)
@given(st.text())
def test_nothing_a_model_writes_reaches_the_terminal_raw(text):
  for kind in (io.StringIO, Tty):
    file = kind()
    solution = console_lib.Solution(text, "wrong", text)
    shown = console_lib.Console(file)
    shown.sample("reft", 0, text, solution, text)
    shown.side_by_side(text, text, {"SFT": [solution]})
    shown.table("models", ["model"], [[text]])
    shown.line(text)
    colours = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert all(c.isprintable() or c == "\n" for c in colours)


def test_letters_that_the_encoding_lacks_do_not_stop_a_run():
  raw = io.BytesIO()
  file = io.TextIOWrapper(raw, encoding="ascii")
  console_lib.Console(file).line("½ of them")
  file.flush()
  assert raw.getvalue() == b"? of them\n"


@pytest.mark.parametrize(
  ("function", "values", "texts"),
  [
    (
      console_lib.number,
      (None, math.nan, -math.inf, 12345, 0.0, 3e-7, -1.24e-5, 0.2917, 1234.5),
      "- - -inf 12,345 0.00 3e-7 -1.2e-5 0.292 1,234",
    ),
    (
      lambda seconds: console_lib.duration(seconds).replace(" ", "_"),
      (0.04, 9.94, 9.96, 59.6, 3725, 90000),
      "0.0s 9.9s 10s 1m_00s 1h_02m 1d_01h",
    ),
  ],
)
def test_numbers_and_durations_are_short(function, values, texts):
  assert [function(value) for value in values] == texts.split()


@given(st.floats(-1e5, 1e5, allow_subnormal=False))
def test_numbers_keep_three_digits(value):
  text = console_lib.number(value)
  assert len(text) <= 9
  assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05)
