"""Models by name: folders, the hub's cache, and the hub's errors."""

import dataclasses
import json
import os
import pathlib
import re
import types

import huggingface_hub
import jax
import numpy as np
import pytest
import tiny
from huggingface_hub import errors as hub_errors

from reft_jax import errors, evaluate, train
from reft_jax.config import cli
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.huggingface import hub
from reft_jax.models import networks
from reft_jax.models.hf import write as writer
from reft_jax.run import files_check, model_paths, setup
from reft_jax.tasks import embedded

NAME = "acme/small-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  """An empty cache of the hub's, and a working directory without models."""
  folder = tmp_path / "hub"
  folder.mkdir()
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  hub._downloaded.cache_clear()
  return folder


def snapshot(cache, name=NAME, revision="main", commit=COMMIT) -> pathlib.Path:
  """The folder of a model in the layout of the hub's cache."""
  home = cache / f"models--{name.replace('/', '--')}"
  (home / "refs").mkdir(parents=True, exist_ok=True)
  (home / "refs" / revision).write_text(commit)
  folder = home / "snapshots" / commit
  folder.mkdir(parents=True)
  return folder


def fill(folder: pathlib.Path, *files: str) -> None:
  for name in files:
    (folder / name).write_text("{}")


def write_model(folder: pathlib.Path) -> None:
  """A whole model, with the tokenizer of the embedded task."""
  tokenizer = tokenizer_lib.wrap(embedded.tokenizer())
  size = tokenizer.vocab_size
  shape = dataclasses.replace(tiny.CONFIG, vocab_size=size, layers=1)
  policy = jax.jit(networks.Networks(shape).init)(jax.random.key(0))
  writer.save(folder, shape, policy)
  tokenizer.save(folder)


def test_names_of_the_hub():
  for name in (NAME, "acme/Small.Model_7b@v1.0", "acme/small@refs/pr/3"):
    assert hub.is_id(name), name
  paths = ("./acme/small", "/acme/small", "~/small", "../acme/small")
  for name in ("gpt2", *paths, "runs/a/models", "acme/small@", ""):
    assert not hub.is_id(name), name


def test_a_local_folder_is_not_on_the_hub(cache):
  pathlib.Path("acme/small").mkdir(parents=True)
  pathlib.Path("acme/rows.json").touch()
  fill(snapshot(cache, "acme/small"), "config.json", "model.safetensors")
  assert not hub.is_id("acme/small")
  assert not hub.is_id("acme/rows.json")
  assert hub.folder("acme/small") == pathlib.Path("acme/small")
  # A folder that is missing beside others was meant as one.
  assert not hub.is_id("acme/smal")
  assert hub.is_id("acme/smal@main")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert hub.folder("~/here") == tmp_path / "here"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_in_the_cache_needs_no_network(cache, monkeypatch, weights):
  here = snapshot(cache)
  fill(here, "config.json", "tokenizer.json", weights)
  assert hub.find(NAME) == here
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(hub, "_downloaded", lambda *_: 1 / 0)
  assert hub.folder(NAME) == here


def test_a_revision_is_another_snapshot(cache):
  fill(snapshot(cache), "config.json", "model.safetensors")
  other = snapshot(cache, revision="v2", commit=COMMIT[::-1])
  fill(other, "config.json", "model.safetensors")
  assert hub.find(f"{NAME}@v2") == hub.find(f"{NAME}@{COMMIT[::-1]}") == other
  assert hub.find(NAME).name == COMMIT
  assert hub.find(f"{NAME}@v3") is None
  assert hub.page(f"{NAME}@v2") == f"huggingface.co/{NAME} at v2"


@pytest.mark.parametrize(
  "files",
  [
    (),
    ("config.json",),
    ("model.safetensors",),
    ("config.json", "model-00001-of-00002.safetensors"),
  ],
)
def test_half_a_snapshot_is_none(cache, files):
  fill(snapshot(cache), *files)
  assert hub.find(NAME) is None
  assert message_of(NAME).startswith(f"{NAME}: ")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_all_shards_belong_to_a_snapshot(cache, kind):
  here = snapshot(cache)
  one, two = kind.replace(".", "-1-of-2."), kind.replace(".", "-2-of-2.")
  fill(here, "config.json", one)
  index = {"weight_map": {"a": one, "b": two}}
  (here / f"{kind}.index.json").write_text(json.dumps(index))
  assert hub.find(NAME) is None
  fill(here, two)
  assert hub.find(NAME) == here


def message_of(name: str, setting: str = "") -> str:
  """The error of a model that cannot be had."""
  with pytest.raises(errors.UserError) as caught:
    hub.folder(name, setting)
  return str(caught.value)


@pytest.fixture
def remote(tmp_path, monkeypatch):
  """A hub: `remote(*files)` sets its files, `remote.asked` are the requests."""
  home = tmp_path / "remote"
  home.mkdir()

  def download(repo, *, revision, allow_patterns, local_files_only):
    if local_files_only:
      raise hub_errors.LocalEntryNotFoundError("not in the cache")
    hold.asked.append((repo, revision))
    names = huggingface_hub.utils.filter_repo_objects(
      hold.files, allow_patterns=allow_patterns
    )
    folder = tmp_path / "downloaded"
    folder.mkdir(exist_ok=True)
    fill(folder, *names)
    return str(folder)

  def hold(*files):
    hold.files = files

  hold.asked = []
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  return hold


DESCRIBED = (
  *("config.json", "generation_config.json", "tokenizer.json"),
  *("tokenizer_config.json", "tokenizer.model", "chat_template.jinja"),
)


@pytest.mark.parametrize(
  ("held", "wanted"),
  [
    (("model.safetensors", "pytorch_model.bin"), ("model.safetensors",)),
    (("pytorch_model.bin", "tf_model.h5"), ("pytorch_model.bin",)),
    (
      (
        *("model-1-of-1.safetensors", "model.safetensors.index.json"),
        *("consolidated.safetensors", "original/model.safetensors"),
        *("onnx/model.safetensors", "README.md", "runs/x", "model.gguf"),
      ),
      ("model-1-of-1.safetensors", "model.safetensors.index.json"),
    ),
  ],
)
def test_only_files_that_are_read_are_downloaded(remote, held, wanted):
  remote(*DESCRIBED, *held)
  found = hub.folder(f"{NAME}@v2")
  assert sorted(os.listdir(found)) == sorted((*DESCRIBED, *wanted))
  assert set(remote.asked) == {(NAME, "v2")}
  again = len(remote.asked)
  assert hub.folder(f"{NAME}@v2") == found
  assert len(remote.asked) == again, "one answer a process"


@pytest.mark.parametrize(
  ("held", "lacking"),
  [
    (("model.safetensors",), "config.json"),
    (("config.json", "model.gguf"), "model.safetensors"),
  ],
)
def test_repositories_of_another_kind(remote, held, lacking):
  remote(*held)
  said = message_of(NAME, "model.path")
  assert said.startswith(f"model.path={NAME}: huggingface.co/{NAME} holds no")
  assert lacking in said


def answer(kind):
  """An error of the hub's client."""
  response = types.SimpleNamespace(headers={}, request=None)
  error = getattr(hub_errors, kind)
  return error("said the hub\nin many lines", response=response)


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (
      answer("RepositoryNotFoundError"),
      "neither a folder here nor a model.*private.*hf auth login",
    ),
    (
      answer("GatedRepoError"),
      f"accept its licence at https://huggingface.co/{NAME}.*login",
    ),
    (
      answer("RevisionNotFoundError"),
      f"huggingface.co/{NAME} has no revision v2",
    ),
    (
      hub_errors.LocalEntryNotFoundError("not in the cache"),
      f"cannot be reached .HF_HUB_OFFLINE is set.*hf download {NAME}",
    ),
    (
      hub_errors.OfflineModeIsEnabled("offline"),
      "cannot be reached .HF_HUB_OFFLINE is set",
    ),
    (
      answer("HfHubHTTPError"),
      r"cannot be downloaded \(HfHubHTTPError: said the hub\)",
    ),
    (TimeoutError("slow"), r"cannot be downloaded \(TimeoutError: slow\)"),
    (OSError(28, "No space left on device"), "No space left on device"),
  ],
)
def test_errors_of_the_hub(monkeypatch, error, words):
  def download(*_, local_files_only, **__):
    if local_files_only:
      raise hub_errors.LocalEntryNotFoundError("not in the cache")
    raise error

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  said = message_of(f"{NAME}@v2", "model.path")
  assert said.startswith(f"model.path={NAME}@v2: ")
  assert re.search(words, said)
  assert "\n" not in said


def test_without_a_network(cache):
  """With the hub's own client, which is offline."""
  assert hub.find(NAME) is None
  assert f"{NAME}: no folder here, and" in message_of(NAME)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "rows.json", "acme/x y"])
def test_neither_a_folder_nor_a_name(name):
  pathlib.Path("rows.json").touch()
  said = message_of(name, "model.path")
  assert said.startswith(f"model.path={name}: neither a folder nor a name")


def test_a_name_that_the_hub_does_not_allow():
  assert "nor a name that the hub allows" in message_of("acme/small--model")


SETTINGS = (
  "--config=embedded",
  *("stages=[sft]", "sft.start=base", "embedded.questions=4"),
  *("data.dev_size=2", "embedded.test=4", "mesh.fsdp=8"),
  *("data.max_prompt_tokens=80", "data.max_response_tokens=80"),
)


def test_a_run_starts_from_a_model_in_the_cache(cache):
  write_model(snapshot(cache))
  config = cli.parse([*SETTINGS, f"model.path={NAME}"]).config
  files_check.check_files(config)
  tokenizer, network = setup.open_model(config)
  assert tokenizer.vocab_size == network.config.vocab_size
  mesh = tiny.mesh((1, 8, 1))
  readers = setup.open_policies(config, mesh, tokenizer.vocab_size)
  assert list(readers) == ["base"]
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  policy = readers["base"]()
  assert jax.tree.map(np.shape, policy) == jax.tree.map(np.shape, shapes)


def test_a_run_reports_a_model_that_cannot_be_downloaded(capsys):
  assert train.main([*SETTINGS, f"model.path={NAME}"]) == 2
  said = capsys.readouterr().err
  assert said.startswith(f"error: model.path={NAME}: no folder here, and")
  assert not list(pathlib.Path().iterdir())


@pytest.fixture
def unreachable(monkeypatch):
  """Every download fails the test."""

  def refuse(*_, local_files_only, **__):
    assert local_files_only, "a download"
    raise hub_errors.LocalEntryNotFoundError("not in the cache")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def test_a_dry_run_downloads_nothing(unreachable, capsys):
  paths = [f"model.path={NAME}@v2", "model.warmup=acme/warm"]
  assert train.main([*SETTINGS, *paths, "--dry-run"]) == 0
  said = " ".join(capsys.readouterr().out.split())
  assert f"missing: model.path={NAME}@v2, to be downloaded from hugging" in said
  assert f"huggingface.co/{NAME} at v2" in said
  assert "missing: model.warmup=acme/warm, to be downloaded from" in said


def test_a_dry_run_looks_into_the_cache(cache, capsys):
  write_model(snapshot(cache))
  assert train.main([*SETTINGS, f"model.path={NAME}", "--dry-run"]) == 0
  said = capsys.readouterr().out
  assert "missing" not in said
  assert "all that can be known without weights fits" in said


def test_an_evaluation_of_a_model_of_the_hub(cache, capsys):
  write_model(snapshot(cache))
  (model,) = model_paths.find(f"{NAME}@main")
  assert model.name == "small-model"
  settings = [*SETTINGS[2:], "--config=embedded", "evaluation.samples=0"]
  dry = [f"{NAME}@main", *settings, "--dry-run"]
  assert evaluate.main(dry) == 0, capsys.readouterr().err
  said = capsys.readouterr().out
  assert "all is well" in said
  assert "small-model-test" in said


def test_a_dry_evaluation_downloads_nothing(unreachable, capsys):
  settings = [*SETTINGS[2:], "--config=embedded", "evaluation.samples=1"]
  judge = "evaluation.reward_model=acme/judge"
  assert evaluate.main([NAME, *settings, judge, "--dry-run"]) == 0
  said = " ".join(capsys.readouterr().out.split())
  for name in (NAME, "acme/judge"):
    origin = f"to be downloaded from huggingface.co/{name}"
    assert said.count(f"missing: {name}, {origin}") == 1
  assert "what is missing was not checked" in said
