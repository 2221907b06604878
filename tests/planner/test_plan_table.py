"""The table of docs/plan.md is that of the plans that are kept."""

import json
import pathlib
import re
import runpy

import pytest


@pytest.fixture
def script(root):
  return runpy.run_path(str(root / "benchmarks" / "plan_table.py"))


@pytest.fixture
def text(root) -> str:
  return (root / "docs" / "plan.md").read_text()


def kept(script) -> list[dict]:
  paths: list[pathlib.Path] = sorted(script["PLANS"].glob("*.json"))
  return [json.loads(path.read_text()) for path in paths]


def test_table(script, text):
  assert "\n".join(script["table"]()) + "\n" in text


def test_every_row_has_its_command_and_what_would_fit(script, text):
  assert kept(script)
  for number, file in enumerate(kept(script), 1):
    row = re.search(rf"^{number}\. (`.*\n(?:   .*\n)*)", text, re.M)[1]
    assert row.startswith(f"`{file['command']}`\n")
    (plan,) = file["plans"]
    verdict = "Fits" if plan["memory"]["fits"] else "Does not fit"
    assert row.partition("\n")[2].strip().startswith(verdict)
    advice = plan["advice"] or {}
    for key, value in (advice.get("settings") or {}).items():
      assert f"`{key}={value}` fits" in " ".join(row.split())


def test_what_does_not_fit_is_bold(script):
  for file in kept(script):
    (plan,) = file["plans"]
    phases = plan["memory"]["phases"]
    for phase in phases:
      size = script["_size"](plan, phase)
      assert size.startswith("**") == (not phases[phase]["fits"])
      assert f"{phases[phase]['total'] / 2**30:.1f}" in size
