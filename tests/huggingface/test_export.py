"""Models exported: what is written, what it says, what is refused."""

import dataclasses
import json
import pathlib
import shutil

import huggingface_hub
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
import tiny
import yaml

from reft_jax import export
from reft_jax.config import loading
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.learning import steps
from reft_jax.models import networks
from reft_jax.models.hf import pretrained
from reft_jax.run import setup
from reft_jax.runtime import checkpoints
from reft_jax.tasks import prompts
from reft_jax.tasks.problem import Problem

SETTINGS = (
  "seed=7",
  "data.dev_size=0",
  "data.max_prompt_tokens=40",
  "data.max_response_tokens=24",
  "embedded.questions=4",
  "base.width=16",
  "base.layers=2",
  "base.ffn=16",
  "reft.kl_coef=0.0625",
)


@pytest.fixture(scope="module")
def parameters():
  """Two policies, a scorer and two value functions of the run's shape."""
  config = loading.load(["embedded"], SETTINGS)
  _, network = setup.open_model(config)
  one, two = (jax.jit(network.init)(jax.random.key(seed)) for seed in range(2))
  values = {}
  for kind in networks.VALUE_KINDS:
    value = jax.device_get(network.init_value(two, kind))
    value["head"]["w_D"] = np.linspace(-1, 1, 16, dtype=np.float32)
    values[kind] = value
  return {
    "warmup": one,
    "reft": two,
    "scorer": network.init_scorer(one, jax.random.key(2)),
    **values,
  }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, parameters) -> pathlib.Path:
  """A run's folder as training leaves it, though its models know nothing."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  folder.mkdir()
  config = loading.load(["embedded"], SETTINGS)
  (folder / "config.yaml").write_text(loading.to_yaml(config))
  tokenizer, network = setup.open_model(config)
  run = dataclasses.replace(
    tiny.run([], *SETTINGS), networks=network, tokenizer=tokenizer
  )
  for stage in ("warmup", "reft"):
    run.save_model(folder / "models" / stage, parameters[stage], {})
  run.save_model(
    folder / "models/reward_model", parameters["scorer"], {}, classifier=True
  )

  def save(place, step, state):
    saved = checkpoints.Checkpoints(folder / "stages" / place, keep=2)
    saved.save(step, state, {})
    saved.close()

  def state(params):
    return steps.init_state(params, optax.adam(1e-3))

  save("reft-lr0.001/best", 2, parameters["reft"])
  for step, value in enumerate(networks.VALUE_KINDS, 1):
    params = {"policy": parameters["reft"], "value": parameters[value]}
    save("reft/checkpoints", step, state(params))
  save("reward_model/best", 1, parameters["scorer"])
  save("reward_model/checkpoints", 1, state({"scorer": parameters["scorer"]}))
  return folder


@pytest.fixture
def run_folder(trained, tmp_path) -> pathlib.Path:
  """A copy of it for a test alone."""
  return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def exported(run_folder, tmp_path, capsys):
  """Exports a model of the run; the folder."""

  def make(source, *options):
    output = tmp_path / "out" / "my-model"
    assert export.main([str(run_folder / source), str(output), *options]) == 0
    assert f"exported: {output}" in capsys.readouterr().out.replace("\n", "")
    return output

  return make


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


# What is written.


@pytest.mark.parametrize(
  ("source", "stage"),
  [
    (".", "reft"),
    ("models/warmup", "warmup"),
    ("models/reft", "reft"),
    ("stages/reft-lr0.001/best", "reft"),
    ("stages/reft/checkpoints", "reft"),
    ("stages/reft/checkpoints/1", "reft"),
  ],
)
def test_every_source_gives_its_policy(source, stage, exported, parameters):
  output = exported(source)
  _, policy = pretrained.load(output)
  assert_equal(policy, parameters[stage])
  assert json.loads((output / "config.json").read_text())["dtype"] == "float32"


def test_transformers_opens_it_and_goes_on_as_we_do(exported, parameters):
  torch = pytest.importorskip("torch")
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
  shape = pretrained.read_config(output)
  network = networks.Networks(shape)
  tokens_BS = np.array([ids], np.int32)
  hidden_BSD = network.hidden(
    parameters["reft"]["trunk"], tokens_BS, np.array([len(ids)], np.int32)
  )
  with torch.no_grad():
    want_BSV = model(torch.tensor(tokens_BS).long()).logits.numpy()
  np.testing.assert_allclose(
    network.logits(parameters["reft"], hidden_BSD), want_BSV, atol=1e-4
  )


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
  _, policy = pretrained.load(output)
  rounded = jax.tree.map(
    lambda leaf: np.asarray(leaf.astype("bfloat16"), np.float32),
    parameters["reft"],
  )
  assert_equal(policy, rounded)


@pytest.mark.parametrize("kind", networks.VALUE_KINDS)
def test_the_critic_of_a_checkpoint_comes_along(kind, exported, parameters):
  step = networks.VALUE_KINDS.index(kind) + 1
  output = exported(f"stages/reft/checkpoints/{step}")
  head = safetensors.numpy.load_file(output / "value_head.safetensors")
  assert_equal(head, parameters[kind]["head"])
  assert (output / "value/config.json").is_file() == (kind == "separate")
  text = (output / "README.md").read_text()
  assert "value_head.safetensors" in text
  assert ("`value/`" in text) == (kind == "separate")


def test_without_a_critic_there_is_none(exported):
  output = exported("stages/reft-lr0.001/best")
  assert not (output / "value_head.safetensors").exists()
  assert "value_head" not in (output / "README.md").read_text()


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
  _, scorer = pretrained.load_classifier(output)
  assert_equal(scorer, parameters["scorer"])
  auto = transformers.AutoModelForSequenceClassification
  model, report = auto.from_pretrained(output, output_loading_info=True)
  assert not any(report.values())
  assert model.config.id2label == {0: "incorrect", 1: "correct"}
  assert model.config.pad_token_id is not None
  card = huggingface_hub.ModelCard((output / "README.md").read_text())
  assert card.data.pipeline_tag == "text-classification"
  assert "AutoModelForSequenceClassification" in card.text
  assert "generate" not in card.text


def test_an_exported_model_exports_to_the_same_bytes(exported, tmp_path):
  first = exported("models/reft", "--dtype", "bfloat16")
  again = tmp_path / "again"
  assert export.main([str(first), str(again), "--dtype", "bfloat16"]) == 0
  files = {path.name for path in first.iterdir()}
  assert files == {path.name for path in again.iterdir()}
  assert files >= {"config.json", "generation_config.json", "tokenizer.json"}
  for name in files - {"README.md"}:
    assert (first / name).read_bytes() == (again / name).read_bytes()


# The card.


def card_of(output) -> huggingface_hub.ModelCard:
  return huggingface_hub.ModelCard((output / "README.md").read_text())


def test_a_card_says_where_a_model_comes_from(exported, run_folder, tmp_path):
  stage = run_folder / "stages/reft/result.json"
  result = {
    "start": "warmup",
    "test_accuracy": 0.876,
    "majority_accuracy": None,
    "dev_accuracy": 0.5,
    "best_step": 31,
    "learning_rate": 3.5e-4,
  }
  stage.write_text(json.dumps(result))
  problems = {"train": {"used": 1234}, "test": {"used": 987}, "dev": {}}
  (run_folder / "summary.json").write_text(json.dumps({"problems": problems}))
  figure = {"value": 0.8125, "low": 0.75, "high": 0.875}
  for model, value in (("reft", 0.8125), ("warmup", 0.3125)):
    folder = run_folder / f"evaluations/{model}-test"
    folder.mkdir(parents=True)
    evaluation = {
      "model": model,
      "split": "test",
      "questions": 321,
      "accuracy": {"pass@4": figure | {"value": value}},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
  output = exported("models/reft")
  card = card_of(output)
  assert card.data.to_dict() == {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["reft_jax", "llama", "reft", "embedded"],
  }
  assert card.text.lstrip().startswith("# my-model\n")
  for row in (
    "| Method | ReFT: PPO rewarded by whether the final answer is right |",
    "| Started from | the warmup model |",
    "| Task | embedded, chains of thought in words |",
    "| Training questions | 1,234 |",
    "| Seed | 7 |",
    "| learning_rate | 0.00035 |",
    "| kl_coef | 0.0625 |",
    "| Kept after step | 31 |",
    "| test | greedy | 0.876 | 987 |",
    "| dev | greedy, chosen by | 0.500 |  |",
    "| test | pass@4 | 0.812 (0.750 to 0.875) | 321 |",
  ):
    assert row in card.text
  assert "0.312" not in card.text  # Of another model.
  assert "| steps | 40 |" in card.text
  assert "epochs | 300" not in card.text  # Not read where there are steps.
  assert "majority" not in card.text
  asked = prompts.prompt(Problem("", "", "{question}", None, ""))
  assert f"```text\n{asked}\n```" in card.text
  assert "Not chosen yet" in card.text
  assert str(tmp_path) not in card.content


def test_what_was_not_measured_is_not_told(exported):
  card = card_of(exported("models/reft"))
  assert "Scores" not in card.text
  assert "questions |" not in card.text
  assert "None" not in card.text


def test_a_checkpoint_has_no_scores_of_its_stage(exported, run_folder):
  result = {"start": "warmup", "test_accuracy": 0.876, "learning_rate": 1e-3}
  (run_folder / "stages/reft/result.json").write_text(json.dumps(result))
  text = card_of(exported("stages/reft/checkpoints/1")).text
  assert "0.876" not in text
  assert "| Checkpoint | reft-step1 |" in text


def set_config(run_folder, **fields):
  file = run_folder / "config.yaml"
  content = yaml.safe_load(file.read_text())
  for path, value in fields.items():
    section, name = path.split("__")
    content[section][name] = value
  file.write_text(yaml.safe_dump(content))


def test_a_card_of_programs_and_chats(exported, run_folder):
  set_config(run_folder, data__reasoning="python", data__add_bos=True)
  text = card_of(exported("models/reft")).text
  asked = prompts.prompt(Problem("", "", "{question}", None, ""), "python")
  assert f"```text\n{asked}\n```" in text
  assert "It ends in a line break" in text
  assert "beginning-of-sequence token comes first" in text
  assert "`solution()` returns" in text


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("owner/tiny-model", "owner/tiny-model"),
    ("owner/tiny-model@main", "owner/tiny-model"),
    (
      "/cache/models--owner--tiny-model/snapshots/0123",
      "owner/tiny-model",
    ),
    ("/models/tiny-model", None),
  ],
)
def test_the_base_model_is_named_as_the_hub_does(
  path, name, exported, run_folder
):
  set_config(run_folder, model__path=path)
  card = card_of(exported("models/reft"))
  assert card.data.base_model == name
  assert f"| Base model | {name or 'tiny-model'} |" in card.text


# Where it is written.


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


def test_an_empty_folder_will_do(run_folder, tmp_path):
  output = tmp_path / "empty"
  output.mkdir()
  assert export.main([str(run_folder / "models/reft"), str(output)]) == 0
  pretrained.load(output)


# What is refused.


@pytest.fixture
def refused(run_folder, tmp_path, capsys, monkeypatch):
  """Exports in vain; what is said of it."""

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
    ("models/reft", ("--dtype", "float16"), "--dtype: invalid choice"),
    ("models/reft", ("--max-shard-gb", "0"), "must be above 0"),
    ("models/reft", ("--max-shard-gb", "nan"), "must be above 0"),
    ("models/reft", ("--max-shard-gb", "x"), "--max-shard-gb: invalid float"),
    ("models/reft", ("--quantize",), "unrecognized arguments: --quantize"),
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
  set_config(run_folder, base__width=32)
  said = refused("stages/reft/checkpoints")
  assert "no model of the shape that the settings of" in said


def test_help(capsys):
  with pytest.raises(SystemExit) as stop:
    export.main(["--help"])
  assert stop.value.code == 0
  assert "--max-shard-gb" in capsys.readouterr().out
