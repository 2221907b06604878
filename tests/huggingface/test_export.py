"""Models exported: what is written, and what is refused."""

import json
import pathlib
import shlex
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import untrained

from reft_jax import export
from reft_jax.config import loading, stages
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import networks
from reft_jax.models.hf import read as reader
from reft_jax.tasks import prompts
from reft_jax.tasks.problem import Problem

SETTINGS = shlex.split("""
  data.dev_size=0 data.max_prompt_tokens=40 data.max_response_tokens=24
  embedded.questions=4 base.width=16 base.layers=2 base.ffn=16
""")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A run's folder with models that are not trained, and their parameters.

  The latter by stage, and two value functions by kind.
  """
  folder = tmp_path_factory.mktemp("runs") / "run"
  network, parameters = untrained.write(folder, SETTINGS)
  reft, scorer = parameters["reft"], parameters["reward_model"]
  stages = folder / "stages"
  for step, kind in enumerate(networks.VALUE_KINDS, 1):
    value = jax.device_get(network.init_value(reft, kind))
    value["head"]["w_D"] = np.linspace(-1, 1, 16, dtype=np.float32)
    parameters[kind] = value
    params = {"policy": reft, "value": value}
    untrained.save_state(stages / "reft/checkpoints", step, params)
  untrained.save_best(stages / "reft-lr0.001/best", 2, reft)
  untrained.save_best(stages / "reward_model/best", 1, scorer)
  place = stages / "reward_model/checkpoints"
  untrained.save_state(place, 1, {"scorer": scorer})
  return folder, parameters


@pytest.fixture
def parameters(written):
  return written[1]


@pytest.fixture
def run_folder(written, tmp_path) -> pathlib.Path:
  """A copy of it for a test alone."""
  return shutil.copytree(written[0], tmp_path / "run")


@pytest.fixture
def exported(run_folder, tmp_path, capsys):
  """Exports a model of the run; the folder."""

  def make(source, *options):
    output = tmp_path / "out" / "my-model"
    assert export.main([str(run_folder / source), str(output), *options]) == 0
    assert f"exported: {output}" in capsys.readouterr().out.replace("\n", "")
    return output

  return make


def card_of(output: pathlib.Path) -> huggingface_hub.ModelCard:
  return huggingface_hub.ModelCard((output / "README.md").read_text())


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


# What is written.


@pytest.mark.parametrize(
  ("source", "stage"),
  [
    (".", "reft"),
    ("models/warmup", "warmup"),
    pytest.param("stages/reft-lr0.001/best", "reft", marks=pytest.mark.slow),
    pytest.param("stages/reft/checkpoints", "reft", marks=pytest.mark.slow),
  ],
)
def test_every_source_gives_its_policy(source, stage, exported, parameters):
  output = exported(source)
  _, policy = reader.load(output)
  assert_equal(policy, parameters[stage])
  assert json.loads((output / "config.json").read_text())["dtype"] == "float32"
  critic = "checkpoints" in source
  assert (output / "value_head.safetensors").exists() == critic
  assert ("value_head" in card_of(output).text) == critic
  assert f"| Method | {stages.TABLE[stage].about} |" in card_of(output).text


@pytest.mark.slow
def test_transformers_opens_it(exported):
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  output = exported("models/reft")
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    output, output_loading_info=True
  )
  assert not any(report.values())
  ours = tokenizer_lib.load(output)
  theirs = transformers.AutoTokenizer.from_pretrained(output)
  text = prompts.prompt(Problem("", "", "Tom has 3 apples.", None, ""))
  ids = theirs(text, add_special_tokens=False)["input_ids"]
  assert ids == ours.encode(text)
  assert model.generation_config.eos_token_id == list(ours.eos_ids)
  assert model.generation_config.pad_token_id == ours.pad_id


@pytest.mark.slow
def test_options_of_the_weights(exported, parameters):
  output = exported(
    *("stages/reft/checkpoints/2", "--dtype", "bfloat16"),
    *("--max-shard-gb", "2e-6"),
  )
  assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
  for folder in (output, output / "value"):
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert (folder / "model.safetensors.index.json").is_file()
    for shard in shards:
      for tensor in safetensors.numpy.load_file(shard).values():
        assert tensor.dtype == jax.numpy.bfloat16
  _, policy = reader.load(output)
  rounded = jax.tree.map(
    lambda leaf: np.asarray(leaf.astype("bfloat16"), np.float32),
    parameters["reft"],
  )
  assert_equal(policy, rounded)


@pytest.mark.slow
@pytest.mark.parametrize("kind", networks.VALUE_KINDS)
def test_the_critic_of_a_checkpoint_comes_along(kind, exported, parameters):
  step = networks.VALUE_KINDS.index(kind) + 1
  output = exported(f"stages/reft/checkpoints/{step}")
  head = safetensors.numpy.load_file(output / "value_head.safetensors")
  assert_equal(head, parameters[kind]["head"])
  assert (output / "value/config.json").is_file() == (kind == "separate")
  text = card_of(output).text
  assert "value_head.safetensors" in text
  assert ("`value/`" in text) == (kind == "separate")


@pytest.mark.slow
@pytest.mark.parametrize(
  "source",
  [
    "models/reward_model",
    "stages/reward_model/best",
    "stages/reward_model/checkpoints",
  ],
)
def test_a_reward_model_is_a_classifier(source, exported, parameters):
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  output = exported(source)
  _, scorer = reader.load_classifier(output)
  assert_equal(scorer, parameters["reward_model"])
  auto = transformers.AutoModelForSequenceClassification
  model, report = auto.from_pretrained(output, output_loading_info=True)
  assert not any(report.values())
  assert model.config.id2label == {0: "incorrect", 1: "correct"}
  assert model.config.pad_token_id is not None
  card = card_of(output)
  assert card.data.pipeline_tag == "text-classification"
  assert "AutoModelForSequenceClassification" in card.text
  assert "generate" not in card.text


def test_an_exported_model_exports_to_the_same_bytes(exported, tmp_path):
  first = exported("models/reft", "--dtype", "bfloat16")
  again = tmp_path / "again"
  again.mkdir()  # An empty folder will do.
  assert export.main([str(first), str(again), "--dtype", "bfloat16"]) == 0
  files = {path.name for path in first.iterdir()}
  assert files == {path.name for path in again.iterdir()}
  assert files >= {"config.json", "generation_config.json", "tokenizer.json"}
  for name in files - {"README.md"}:
    assert (first / name).read_bytes() == (again / name).read_bytes()


# Where it is written.


@pytest.mark.slow
def test_a_folder_that_is_not_empty(exported, run_folder, capsys):
  output = exported("stages/reft/checkpoints/2", "--max-shard-gb", "2e-6")
  (output / ".git").mkdir()
  (output / ".git/HEAD").write_text("kept")
  before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
  arguments = [str(run_folder / "models/warmup"), str(output)]
  assert export.main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert "is not empty" in said
  assert "--force" in said
  assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}

  assert export.main([*arguments, "--force"]) == 0
  assert (output / ".git/HEAD").read_text() == "kept"
  fresh = output.parent / "fresh"
  assert export.main([arguments[0], str(fresh)]) == 0
  names = {path.name for path in output.iterdir()} - {".git"}
  assert names == {path.name for path in fresh.iterdir()}
  for name in names - {"README.md"}:
    assert (output / name).read_bytes() == (fresh / name).read_bytes()
  assert sorted(path.name for path in output.parent.iterdir()) == [
    "fresh",
    "my-model",
  ]


# What is refused.


@pytest.fixture
def refused(run_folder, tmp_path, capsys, monkeypatch):
  """Fails to export; returns the error message."""

  def act(source, *options, output="out"):
    monkeypatch.chdir(run_folder)
    assert export.main([source, str(tmp_path / output), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("tmp*"))
    return said

  return act


@pytest.mark.parametrize(
  ("source", "options", "words"),
  [
    ("nowhere", (), "nowhere: no such folder"),
    ("models", (), "models: no model there"),
    ("models/reft", ("--dtype", "float16"), "needs one of float32, bfloat16"),
    ("models/reft", ("--max-shard-gb", "0"), "a number above 0"),
    ("models/reft", ("--max-shard-gb", "nan"), "a number above 0"),
  ],
)
def test_arguments_that_make_no_sense(source, options, words, refused):
  assert words in refused(source, *options)


def test_an_output_that_is_a_file(refused, run_folder):
  output = str(run_folder / "config.yaml")
  assert "is a file" in refused("models/reft", output=output)
  assert "cannot be" in refused("models/reft", output=f"{output}/inside")


def test_weights_that_do_not_fit(refused, run_folder):
  file = run_folder / "models/reft/model.safetensors"
  file.write_bytes(file.read_bytes()[:-1])
  assert "model.safetensors cannot be read" in refused("models/reft")


def test_a_checkpoint_of_another_shape(refused, run_folder):
  config = loading.load(["embedded"], [*SETTINGS, "base.width=32"])
  (run_folder / "config.yaml").write_text(loading.to_yaml(config))
  said = refused("stages/reft/checkpoints")
  assert "no model of the shape that the settings of" in said


def test_help(capsys):
  assert export.main(["--help"]) == 0
  assert "--max-shard-gb" in capsys.readouterr().out
