"""Bad input: one clear line, before anything is compiled or written."""

import json
import os
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from reft_jax import train
from reft_jax.config import cli, loading
from reft_jax.data import splits as splits_lib
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import config as model_configs
from reft_jax.models import networks, partition
from reft_jax.models.hf import write as writer
from reft_jax.tasks import embedded
from reft_jax.tasks.sandbox import seccomp

ROWS = [
  {
    "item_id": f"gsm8k_{number}",
    "question": f"Alice has {number} apples. How many does she have?",
    "answer_cot": f"We get {number} + 0 = {number}.",
    "answer_value": f"{number}",
  }
  for number in range(12)
]
# A run that would start; a test spoils one thing.
SETTINGS = (
  "--config=embedded",
  "data.train=train.json",
  "data.dev_size=2",
  "data.max_prompt_tokens=40",
  "data.max_response_tokens=32",
  "model.path=model",
  "stages=[warmup,sft,reft]",
  "output=run",
)


class StartedError(Exception):
  """The checks let the run start."""


def write_rows(path: str, rows) -> None:
  pathlib.Path(path).write_text(json.dumps(rows))


def edit_json(path: str, **changes) -> None:
  """Changes fields of a JSON file; None removes one."""
  file = pathlib.Path(path)
  fields = json.loads(file.read_text()) | changes
  kept = {key: value for key, value in fields.items() if value is not None}
  file.write_text(json.dumps(kept))


def write_model(folder: str, *, vocab_size=None, max_positions=2048) -> None:
  """A tiny model, with the tokenizer of the embedded task."""
  tokenizer = tokenizer_lib.wrap(embedded.tokenizer())
  config = model_configs.ModelConfig(
    vocab_size=vocab_size or tokenizer.vocab_size,
    width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    head_size=4,
    ffn=8,
    tied_head=True,
    max_positions=max_positions,
  )
  shapes = jax.eval_shape(networks.Networks(config).init, jax.random.key(0))
  policy = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
  writer.save(folder, config, policy)
  tokenizer.save(folder)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """An own working directory with good input; nothing gets to train."""

  def start(*_):
    raise StartedError

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(train.stages, "Stages", start)
  write_model("model")
  write_rows("train.json", ROWS)
  handler = signal.getsignal(signal.SIGTERM)
  yield tmp_path
  signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(capfd, caplog):
  """Runs what must be refused; returns what is said of it."""

  def run(*arguments: str) -> str:
    before = sorted(os.walk("."))
    capfd.readouterr()
    with jax.log_compiles():
      code = train.main([*SETTINGS, *arguments])
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert sorted(os.walk(".")) == before, "something was written"
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]
    return err

  return run


def test_good_input_starts(folder):
  with pytest.raises(StartedError):
    train.main(SETTINGS)
  assert (folder / "run" / "config.yaml").is_file()


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("reft.stepz=3", ["reft.stepz", "did you mean reft.steps?"]),
    ("lam=0.9", ["unknown setting lam", "did you mean reft.lam?"]),
    ("seed=many", ["seed=many", "whole number"]),
    ("reft.lam=2", ["reft.lam=2", "between 0 and 1"]),
    ("stages=[sft,walk]", ["stages", "one of base, warmup, sft, offline_st"]),
    ("--fast", ["unknown argument '--fast'", "--help"]),
    ("--config=nothing", ["nothing", "no such file", "embedded"]),
    ("mesh.data=3", ["mesh", "data=3", "8 devices", "divide 8"]),
  ],
)
def test_settings(refused, argument, words):
  said = refused(argument)
  for word in words:
    assert word in said


@pytest.mark.parametrize("key", ["data.train", "data.test"])
def test_missing_data(refused, folder, key):
  said = refused(f"{key}=nowhere.json")
  assert f"{key}=nowhere.json: no such file in {folder}" in said


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_empty_data(refused, text):
  pathlib.Path("empty.json").write_text(text)
  assert "empty.json holds no rows" in refused("data.train=empty.json")


def test_torn_data(refused):
  pathlib.Path("torn.json").write_text(json.dumps(ROWS, indent=1)[:-30])
  said = refused("data.train=torn.json")
  assert "torn.json is not valid JSON" in said
  assert "complete?" in said


def test_torn_lines_of_data(refused):
  lines = [json.dumps(row) for row in ROWS]
  pathlib.Path("torn.jsonl").write_text("\n".join(lines)[:-30])
  said = refused("data.test=torn.jsonl")
  assert "line 12 of torn.jsonl is not valid JSON" in said


def test_rows_without_the_fields(refused):
  write_rows("odd.json", [{"query": "1 + 1?", "reply": "2"}] * 5)
  said = refused("data.train=odd.json")
  assert "odd.json has an unknown layout" in said
  assert "question, answer_value" in said
  assert "found: (query, reply)" in said


def test_one_row_without_a_field(refused):
  write_rows("odd.json", [*ROWS, {"item_id": "gsm8k_12", "question": "?"}])
  said = refused("data.train=odd.json")
  assert "row 13 of odd.json" in said
  assert "'answer_value'" in said


def test_an_answer_that_is_none(refused):
  write_rows("odd.json", [*ROWS, ROWS[0] | {"answer_value": "many"}])
  said = refused("data.train=odd.json")
  assert "row 13 of odd.json" in said
  assert "'many'" in said


def test_a_task_that_nobody_knows(refused):
  write_rows("odd.json", [ROWS[0] | {"item_id": "riddle_0"}] * 12)
  said = refused("data.train=odd.json")
  assert "task 'riddle' is unknown" in said
  assert "data.task" in said


def test_a_dev_set_that_takes_everything(refused):
  said = refused("data.dev_size=12")
  assert "data.dev_size=12 is too large for 12 training problems" in said


@pytest.mark.parametrize(
  ("stages", "learners"),
  [
    ("[warmup,sft,reft]", "warmup and sft"),
    ("[sft]", "sft"),
    ("[offline_st]", "offline_st"),
    ("[online_st]", "online_st"),
  ],
)
def test_nothing_to_imitate(refused, stages, learners):
  write_rows("bare.json", [row | {"answer_cot": ""} for row in ROWS])
  start = f"stages={stages}"
  said = refused("data.train=bare.json", start, "sft.start=base")
  assert "data.train=bare.json: no problem has a chain of thought" in said
  assert f"for {learners} to learn from" in said
  assert "stages=[reft]" in said


def test_reinforcement_alone_needs_no_chain_of_thought():
  bare = [{k: v for k, v in row.items() if k != "answer_cot"} for row in ROWS]
  write_rows("bare.json", bare)
  with pytest.raises(StartedError):
    train.main([*SETTINGS, "data.train=bare.json", "stages=[reft]"])


def test_limits_that_leave_nothing(refused):
  said = refused("data.max_prompt_tokens=3")
  assert "every prompt of the train split is longer" in said
  assert "data.max_prompt_tokens=3; raise it" in said
  said = refused("data.max_response_tokens=3")
  assert "every chain of thought is longer" in said
  assert "data.max_response_tokens=3; raise it" in said


def test_a_context_that_is_too_short(refused):
  write_model("short", max_positions=71)
  said = refused("model.path=short")
  assert "data.max_prompt_tokens=40" in said
  assert "data.max_response_tokens=32" in said
  assert "context of 71 tokens" in said


@pytest.mark.parametrize("path", ["nowhere", "train.json", "."])
def test_no_model(refused, path):
  said = refused(f"model.path={path}")
  assert f"model.path={path}: no Hugging Face model there" in said
  assert "nor a name on the hub (owner/name[@revision])" in said


@pytest.mark.parametrize("kind", ["bert", "riddle"])
def test_a_model_of_another_family(refused, kind):
  edit_json("model/config.json", model_type=kind)
  said = refused()
  assert f"model_type '{kind}' is not supported" in said
  assert "supported: llama, opt, gpt2" in said


def test_a_config_that_is_not_json(refused):
  pathlib.Path("model/config.json").write_text('{"model_type": ')
  assert "model/config.json cannot be read" in refused()


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_weights(refused, share):
  file = pathlib.Path("model/model.safetensors")
  content = file.read_bytes()
  file.write_bytes(content[: int(share * len(content))])
  assert "model/model.safetensors cannot be read" in refused()


def test_missing_weights(refused):
  pathlib.Path("model/model.safetensors").unlink()
  assert "model holds neither model.safetensors" in refused()


def test_weights_of_another_size(refused):
  edit_json("model/config.json", intermediate_size=16)
  said = refused()
  assert "model: the tensors do not fit config.json" in said
  assert "mlp.gate_proj.weight" in said


def test_a_tokenizer_without_an_end(refused):
  edit_json("model/tokenizer_config.json", eos_token=None)
  said = refused()
  assert "'model' has no end-of-sequence token" in said
  assert "tokenizer_config.json" in said


def test_a_missing_tokenizer(refused):
  pathlib.Path("model/tokenizer.json").unlink()
  said = refused()
  assert "'model' holds no tokenizer that opens" in said
  assert "tokenizer.json" in said


def test_a_tokenizer_that_is_larger_than_the_embedding(refused):
  write_model("small", vocab_size=10)
  said = refused("model.path=small")
  size = tokenizer_lib.load("small").vocab_size
  assert f"model.path=small: the tokenizer has {size} ids" in said
  assert "only 10 rows" in said
  assert "model.resize_vocab=true" in said


def test_a_vocabulary_that_may_grow():
  write_model("small", vocab_size=10)
  with pytest.raises(StartedError):
    train.main([*SETTINGS, "model.path=small", "model.resize_vocab=true"])


def settle(*arguments: str) -> None:
  """Leaves the folder of a run that was interrupted."""
  with pytest.raises(StartedError):
    train.main([*SETTINGS, *arguments])


def test_a_folder_that_holds_another_run(refused, folder):
  settle()
  before = (folder / "run" / "config.yaml").read_text()
  said = refused("reft.lam=0.5", "data.dev_size=3")
  assert "run holds a run with other settings" in said
  assert "data.dev_size: 2 -> 3; reft.lam: 1.0 -> 0.5" in said
  assert "set output to another folder, or resume=never" in said
  assert (folder / "run" / "config.yaml").read_text() == before


def test_a_folder_whose_data_has_changed_since(refused):
  settle()
  write_rows("train.json", [{**row, "answer_value": "1"} for row in ROWS])
  assert "other settings (problems: " in refused()


def test_a_folder_whose_first_model_has_changed_since(refused):
  settle()
  file = pathlib.Path("model/model.safetensors")
  weights = bytearray(file.read_bytes())
  weights[-2] ^= 1
  file.write_bytes(weights)
  assert "other settings (weights in model.path: " in refused()


def test_a_folder_of_an_earlier_version(refused):
  pathlib.Path("run/stages/reft/checkpoints").mkdir(parents=True)
  pathlib.Path("run/config.yaml").write_text("seed: 0")
  said = refused()
  assert "run holds a run without a manifest.json that can be read" in said
  assert "an earlier version of reft_jax made it" in said


def test_the_same_run_is_resumed_in_its_folder():
  settle()
  settle("logging.every=7", "checkpoint.keep=1", "mesh.tensor=2")


def test_another_run_is_put_aside_on_request(folder):
  settle()
  (folder / "run" / "result").touch()
  with pytest.raises(StartedError):
    train.main([*SETTINGS, "reft.lam=0.5", "resume=never"])
  assert not (folder / "run" / "result").exists()
  (aside,) = folder.glob("run.until-*")
  assert (aside / "result").exists()


@pytest.mark.parametrize("output", ["train.json", "train.json/run"])
def test_a_folder_that_cannot_be_made(refused, output):
  said = refused(f"output={output}")
  assert f"the run's folder {output} cannot be written" in said
  assert "set output to another place" in said


def test_limits_keep_so_many_problems():
  shutil.copy("train.json", "test.json")
  settings = [*SETTINGS, "data.test=test.json"]
  limits = ["data.train_limit=3", "data.test_limit=4"]
  config = cli.parse([*settings, *limits]).config
  tokenizer = tokenizer_lib.load("model")
  splits = splits_lib.encoded(config, tokenizer)
  sizes = {name: len(split.examples) for name, split in splits.items()}
  assert sizes == {"train": 3, "dev": 2, "test": 4}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys, folder, flag):
  before = sorted(os.walk("."))
  assert train.main([flag]) == 0
  said = capsys.readouterr()
  assert said.out.startswith("Usage: python -m reft_jax.train")
  assert "kl_coef" in said.out
  assert said.err == ""
  assert sorted(os.walk(".")) == before


def test_print_config_can_be_read_back(capsys, folder):
  assert train.main([*SETTINGS, "--print-config"]) == 0
  said = capsys.readouterr()
  assert said.err == ""
  pathlib.Path("printed.yaml").write_text(said.out)
  assert loading.load(["printed.yaml"]) == cli.parse(SETTINGS).config
  assert not (folder / "run").exists()


PYTHON = "data.reasoning=python"


def test_programs_are_not_run_where_no_tier_is_safe(refused, monkeypatch):
  monkeypatch.setitem(sys.modules, "pydantic_monty", None)
  monkeypatch.setattr(seccomp, "supported", lambda: False)
  said = refused(PYTHON)
  assert "rograms cannot be run safely here" in said
  assert "Install pydantic-monty" in said
  assert "data.reasoning=nl" in said


def test_chains_of_thought_in_words_where_programs_are_wanted(refused):
  said = refused(PYTHON, "programs.isolation=monty")
  assert "data.train=train.json" in said
  assert "gsm8k_" in said
  assert "set data.reasoning=nl" in said


def test_programs_can_be_learnt_by_reward_alone():
  arguments = [*SETTINGS, PYTHON, "programs.isolation=monty", "stages=[reft]"]
  # No number of the answers is lost on the tokenizer of the model.
  with pytest.raises(StartedError):
    train.main([*arguments, "data.max_prompt_tokens=90"])


@pytest.mark.parametrize("train_data", ["embedded", "train.json"])
def test_a_task_that_does_not_exist(refused, train_data):
  said = refused(f"data.train={train_data}", "data.task=gsm9k")
  assert "gsm9k" in said
  assert "embedded-choice" in said


DRY = "--dry-run"


def told(capsys, *arguments: str) -> str:
  """What a dry run says."""
  assert train.main([*SETTINGS, DRY, *arguments]) == 0
  said = capsys.readouterr()
  assert said.err == ""
  return said.out


def test_a_dry_run_reads_what_is_there_and_writes_nothing(folder, capsys):
  before = sorted(os.walk("."))
  said = told(capsys)
  assert "context of 2,048 tokens" in said
  assert "problems: 10 train, 2 dev, 0 test" in said
  assert "reference answers: 12 of 12 earn 1" in said
  assert "missing" not in said
  assert "all that can be known without weights fits" in said
  assert sorted(os.walk(".")) == before


def test_a_dry_run_names_what_lies_whole_on_every_device(capsys, caplog):
  partition._log_replicated.cache_clear()
  told(capsys, "mesh.tensor=2", "mesh.sampler_tensor=4")
  said = "\n".join(record.getMessage() for record in caplog.records)
  assert "k_DKH: K=1 does not divide by the mesh axis tensor=2" in said
  assert "q_DNH: N=2 does not divide by the mesh axis tensor=4" in said


def test_a_dry_run_needs_no_weights(capsys):
  pathlib.Path("model/model.safetensors").unlink()
  assert "all that can be known" in told(capsys)


def test_a_dry_run_names_padded_batches(capsys):
  line = "sft.batch_size=30 is padded to 32 rows for 8 devices"
  assert line in told(capsys, "sft.batch_size=30")


def test_a_dry_run_names_what_is_missing(capsys):
  said = told(capsys, "data.test=nowhere.json", "data.train=data/svamp_nl.json")
  assert "missing: data.test=nowhere.json, a file of problems" in said
  missing = "missing: data.train=data/svamp_nl.json, from the folder data of"
  assert f"{missing} github.com/lqtrung1998/mwp_ReFT" in said
  assert "problems:" not in said
  assert "what is missing was not checked" in said
  assert "missing: data.train=hub:a/b, to be read" in told(
    capsys, "data.train=hub:a/b"
  )


def test_a_dry_run_counts_problems_without_a_tokenizer(capsys):
  path = "facebook/galactica-125m"
  said = told(capsys, f"model.path={path}", "data.train_limit=4")
  assert "problems: 4 train, 2 dev, 0 test" in said
  assert "≤ " in said
  origin = f"to be downloaded from huggingface.co/{path}"
  assert f"missing: model.path={path}, {origin}" in said
  said = told(capsys, "model.path=nowhere")
  assert "missing: model.path=nowhere, a Hugging Face folder" in said


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["reft.lam=2"], "reft.lam=2"),
    (["mesh.data=3"], "does not use all of the 8 devices"),
    (["data.max_response_tokens=3000"], "context of 2048 tokens"),
    (["data.dev_size=12"], "data.dev_size=12 is too large"),
    (["data.max_response_tokens=3"], "every chain of thought is longer"),
    (["data.train=bare.json"], "no problem has a chain of thought"),
    (["data.train=torn.json", "model.path=nowhere"], "is not valid JSON"),
    (["--config=nothing"], "no such file"),
  ],
)
def test_a_dry_run_refuses_what_a_run_would(refused, arguments, words):
  write_rows("bare.json", [row | {"answer_cot": ""} for row in ROWS])
  pathlib.Path("torn.json").write_text(json.dumps(ROWS)[:-30])
  assert words in refused(DRY, *arguments)
