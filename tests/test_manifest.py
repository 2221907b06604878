"""Manifests: what changed, and what is not a manifest of this version."""

import json

import pytest

from reft_jax import errors, manifest

REMEDY = "remove it."


def make(**facts) -> manifest.Manifest:
  return manifest.Manifest("run", facts)


def test_a_manifest_is_read_back(tmp_path):
  path = tmp_path / "manifest.json"
  written = manifest.Manifest(
    "run", {"stages": ("sft", "reft"), "seed": 0, "dev": None}, {"note": (1,)}
  )
  written.write(path)
  read = manifest.read(path, REMEDY)
  assert read == written
  assert read.fingerprint == written.fingerprint
  assert read.changes(written) == []
  assert json.loads(path.read_text())["format"] == manifest.FORMAT


def test_changes_are_named_as_settings_are_written():
  old = make(seed=0, stages=["sft"], gone="a", same=True)
  new = make(seed=1, stages=["sft", "reft"], same=True, new=False)
  assert old.changes(new) == [
    "seed: 0 -> 1",
    "stages: [sft] -> [sft, reft]",
    "gone: a -> null",
    "new: null -> false",
  ]
  assert old.fingerprint != new.fingerprint


def test_notes_may_differ():
  facts = {"model": "a"}
  old = manifest.Manifest("samples", facts, {"graded": "strict"})
  new = manifest.Manifest("samples", facts, {"graded": "official"})
  assert old.changes(new) == []
  assert old.fingerprint == new.fingerprint
  assert old.fingerprint != manifest.Manifest("run", facts).fingerprint


def test_a_fingerprint_does_not_depend_on_the_order():
  assert make(a=1, b=2).fingerprint == make(b=2, a=1).fingerprint


@pytest.mark.parametrize(
  ("text", "format_"),
  [
    ('{"seed": 0}', 0),
    (f'{{"format": {manifest.FORMAT + 1}}}', manifest.FORMAT + 1),
  ],
)
def test_another_version_is_refused_in_one_line(tmp_path, text, format_):
  path = tmp_path / "manifest.json"
  path.write_text(text)
  with pytest.raises(errors.UserError) as raised:
    manifest.read(path, REMEDY)
  assert str(raised.value) == (
    f"{path} was written by another version of reft_jax (format {format_}, not"
    f" {manifest.FORMAT}); {REMEDY}"
  )


@pytest.mark.parametrize("text", [None, "", '{"format": 1', "[]", "\x00"])
def test_what_cannot_be_read_is_none(tmp_path, text):
  path = tmp_path / "manifest.json"
  if text is not None:
    path.write_text(text)
  assert manifest.read(path, REMEDY) is None
