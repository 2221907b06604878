import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.runtime import metrics

names_st = st.sampled_from(["loss", "kl", "dev/accuracy", "reward/mean"])
rows_st = st.lists(
  st.tuples(
    st.sampled_from(["sft", "reft"]),
    st.integers(0, 9),
    st.dictionaries(names_st, st.floats()),
  ),
  max_size=8,
)


def recorder(folder, tensorboard=False):
  opened = metrics.Recorder(folder, tensorboard=tensorboard)
  return contextlib.closing(opened)


def log(opened, rows):
  for stage, step, values in rows:
    opened.log(step, values, stage=stage)


def expected(rows):
  return [
    {"stage": stage, "step": step}
    | {k: v if math.isfinite(v) else math.nan for k, v in values.items()}
    for stage, step, values in rows
  ]


def same(left, right):
  """Equality that takes nan for equal to itself."""
  return repr(left) == repr(right)


@given(rows_st)
def test_reads_what_was_logged(tmp_path_factory, rows):
  folder = tmp_path_factory.mktemp("run")
  with recorder(folder) as opened:
    log(opened, rows)
    assert same(metrics.read(folder), expected(rows))  # Before it is closed.
  for line in (folder / metrics.FILE).read_text().splitlines():
    json.loads(line, parse_constant=pytest.fail)


@settings(max_examples=30)
@given(rows_st, rows_st, st.integers(0, 10), st.binary(max_size=9))
def test_rewind_forgets_one_stage_from_a_step_on(
  tmp_path_factory, before, after, next_step, torn
):
  folder = tmp_path_factory.mktemp("run")
  with recorder(folder) as opened:
    log(opened, before)
  with (folder / metrics.FILE).open("ab") as file:
    file.write(torn.replace(b"\n", b""))
  with recorder(folder) as opened:
    opened.rewind("reft", next_step)
    log(opened, after)
  kept = [r for r in before if r[0] != "reft" or r[1] < next_step]
  assert same(metrics.read(folder), expected(kept + after))


def test_a_crash_while_rewinding_loses_nothing(tmp_path, monkeypatch):
  with recorder(tmp_path) as opened:
    log(opened, [("reft", step, {"kl": 1.0}) for step in range(3)])
    monkeypatch.setattr(metrics.pathlib.Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # A crash.
      opened.rewind("reft", 1)
  assert len(metrics.read(tmp_path)) == 3


def test_a_run_without_metrics_has_no_rows(tmp_path):
  assert metrics.read(tmp_path) == []


def test_a_broken_line_is_named(tmp_path):
  (tmp_path / metrics.FILE).write_text('{"stage": "sft", "step": 0}\nhm\n')
  with pytest.raises(errors.UserError, match="line 2"):
    metrics.read(tmp_path)


def test_tensorboard_has_one_tag_a_stage_and_metric(tmp_path):
  with recorder(tmp_path, tensorboard=True) as opened:
    opened.log(3, {"kl": np.float32(0.5), "loss": math.nan}, stage="reft")
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert b"reft/kl" in events.read_bytes()
  assert b"reft/loss" not in events.read_bytes()
  assert metrics.read(tmp_path)[0]["kl"] == 0.5
