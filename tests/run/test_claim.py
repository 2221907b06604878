"""Whose a run's folder is."""

import json

import pytest

from reft_jax import errors
from reft_jax.config import loading
from reft_jax.run import claim

INPUTS = {"problems": "a", "tokenizer": "b"}


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "run"


def take(folder, *settings, **inputs):
  config = loading.load(["embedded"], settings)
  claim.claim(folder, config, INPUTS | inputs)


def test_a_run_may_be_resumed_with_settings_that_change_no_result(folder):
  take(folder)
  take(folder, "logging.every=7", "mesh.fsdp=2", "resume=auto", "stages=[base]")
  text = (folder / "config.yaml").read_text()
  assert loading.load([str(folder / "config.yaml")]).logging.every == 7
  assert json.loads((folder / "environment.json").read_text())["devices"]
  with pytest.raises(errors.UserError) as raised:
    take(folder, "reft.lam=0.5", "seed=3", problems="c")
  assert "seed: 0 -> 3; reft.lam: 1.0 -> 0.5; problems: a -> c" in str(
    raised.value
  )
  assert (folder / "config.yaml").read_text() == text


# What is in a folder, by what the message says of it.
FOREIGN = (
  ({"config.yaml": "seed: 0", "inputs.json": "{}"}, "an earlier version"),
  ({"stages/reft/result.json": "{}"}, "an earlier version"),
  ({"config.yaml": "", "manifest.json": '{"format": 1'}, "can be read"),
  ({"config.yaml": "", "manifest.json": '{"seed": 0}'}, "another version"),
  ({"manifest.json": '{"format": 0}'}, "another version"),
)


@pytest.mark.parametrize(("content", "words"), FOREIGN)
def test_a_run_of_another_version_is_refused_or_put_aside(
  folder, content, words
):
  for name, text in content.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  with pytest.raises(errors.UserError, match=words) as raised:
    take(folder)
  assert "resume=never to put that run aside" in str(raised.value)
  assert "\n" not in str(raised.value)
  files = {path for path in folder.rglob("*") if path.is_file()}
  assert files == {folder / name for name in content}
  take(folder, "resume=never")
  (aside,) = folder.parent.glob("run.until-*")
  for name, text in content.items():
    assert (aside / name).read_text() == text
  take(folder)


@pytest.mark.parametrize("text", ["", '{"format": 1', "[]"])
def test_a_torn_manifest_without_a_run_is_no_obstacle(folder, text):
  folder.mkdir()
  (folder / "manifest.json").write_text(text)
  take(folder)
  take(folder)


@pytest.mark.parametrize("at", [0, 1])
def test_a_claim_that_was_killed_can_be_repeated(folder, monkeypatch, at):
  replace, written = claim.files.replace, []

  def killed(path, content):
    if len(written) == at:
      raise KeyboardInterrupt
    written.append(path)
    replace(path, content)

  with monkeypatch.context() as patch:
    patch.setattr(claim.files, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      take(folder)
  take(folder)
