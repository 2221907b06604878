"""Bad input: one clear line, before anything is compiled or written."""

import json
import os
import pathlib
import re
import signal
import sys

import jax
import numpy as np
import pytest

from reft_jax import train
from reft_jax.config import cli
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
  """Runs what must be refused in one line with these words."""

  def run(words: str | list[str], *arguments: str) -> None:
    before = sorted(os.walk("."))
    capfd.readouterr()
    with jax.log_compiles():
      code = train.main([*SETTINGS, *arguments])
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"error: .*\n", err)
    for word in [words] if isinstance(words, str) else words:
      assert word in err
    assert sorted(os.walk(".")) == before, "something was written"
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]

  return run


def test_good_input_starts(folder):
  with pytest.raises(StartedError):
    train.main(SETTINGS)
  assert (folder / "run" / "config.yaml").is_file()


NO_MODEL = [
  "no Hugging Face model there",
  "nor a name on the hub (owner/name[@revision])",
]


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
    ("data.train=none.json", "data.train=none.json: no such file in /"),
    ("data.test=none.json", "data.test=none.json: no such file in /"),
    ("data.dev_size=12", "dev_size=12 is too large for 12 training problems"),
    (
      "data.max_prompt_tokens=3",
      ["every prompt of the train split is longer", "_tokens=3; raise it"],
    ),
    (
      "data.max_response_tokens=3",
      ["every chain of thought is longer", "_tokens=3; raise it"],
    ),
    ("model.path=nowhere", ["model.path=nowhere: ", *NO_MODEL]),
    ("model.path=train.json", ["model.path=train.json: ", *NO_MODEL]),
    ("model.path=.", ["model.path=.: ", *NO_MODEL]),
    ("data.task=gsm9k", ["gsm9k", "embedded-choice"]),
    ("output=train.json", ["folder train.json cannot be written", "output to"]),
    ("output=train.json/run", "folder train.json/run cannot be written"),
  ],
)
def test_settings(refused, argument, words):
  refused(words, argument)


def test_a_task_of_embedded_data_that_does_not_exist(refused):
  words = ["gsm9k", "embedded-choice"]
  refused(words, "data.train=embedded", "data.task=gsm9k")


LINES = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize(
  ("file", "text", "words"),
  [
    ("odd.json", "", "odd.json holds no rows"),
    ("odd.json", "\n\n", "odd.json holds no rows"),
    ("odd.json", "[]", "odd.json holds no rows"),
    (
      "odd.json",
      json.dumps(ROWS, indent=1)[:-30],
      ["odd.json is not valid JSON", "complete?"],
    ),
    ("odd.jsonl", LINES[:-30], "line 12 of odd.jsonl is not valid JSON"),
    (
      "odd.jsonl",
      '{"query": "1 + 1?", "reply": "2"}',
      ["unknown layout", "question, answer_value", "found: (query, reply)"],
    ),
    (
      "odd.jsonl",
      LINES + '\n{"item_id": "gsm8k_12", "question": "?"}',
      ["row 13 of odd.jsonl", "'answer_value'"],
    ),
    (
      "odd.json",
      json.dumps([*ROWS, ROWS[0] | {"answer_value": "many"}]),
      ["row 13 of odd.json", "'many'"],
    ),
    (
      "odd.json",
      json.dumps([ROWS[0] | {"item_id": "riddle_0"}] * 12),
      ["task 'riddle' is unknown", "data.task"],
    ),
  ],
)
def test_data(refused, file, text, words):
  pathlib.Path(file).write_text(text)
  refused(words, f"data.train={file}")


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
  words = [
    "data.train=bare.json: no problem has a chain of thought",
    f"for {learners} to learn from",
    "stages=[reft]",
  ]
  start = f"stages={stages}"
  refused(words, "data.train=bare.json", start, "sft.start=base")


def test_reinforcement_alone_needs_no_chain_of_thought():
  bare = [{k: v for k, v in row.items() if k != "answer_cot"} for row in ROWS]
  write_rows("bare.json", bare)
  settle("data.train=bare.json", "stages=[reft]")


def test_a_context_that_is_too_short(refused):
  write_model("short", max_positions=71)
  lengths = ["data.max_prompt_tokens=40", "data.max_response_tokens=32"]
  refused([*lengths, "context of 71 tokens"], "model.path=short")


def truncate(path: str, share: float) -> None:
  content = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(content[: int(share * len(content))])


WEIGHTS = "model/model.safetensors"
SHAPE = "model/config.json"
TOKENIZER = "model/tokenizer_config.json"


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (
      lambda: edit_json(SHAPE, model_type="bert"),
      ["model_type 'bert' is not supported", "supported: llama, opt, gpt2"],
    ),
    (
      lambda: edit_json(SHAPE, model_type="riddle"),
      ["model_type 'riddle' is not supported", "supported: llama, opt, gpt2"],
    ),
    (lambda: truncate(SHAPE, 0.1), f"{SHAPE} cannot be read"),
    (lambda: truncate(WEIGHTS, 0), f"{WEIGHTS} cannot be read"),
    (lambda: truncate(WEIGHTS, 0.5), f"{WEIGHTS} cannot be read"),
    (lambda: truncate(WEIGHTS, 0.99), f"{WEIGHTS} cannot be read"),
    (lambda: os.remove(WEIGHTS), "model holds neither model.safetensors"),
    (
      lambda: edit_json(SHAPE, intermediate_size=16),
      ["model: the tensors do not fit config.json", "mlp.gate_proj.weight"],
    ),
    (
      lambda: edit_json(TOKENIZER, eos_token=None),
      ["'model' has no end-of-sequence token", "tokenizer_config.json"],
    ),
    (
      lambda: os.remove("model/tokenizer.json"),
      ["'model' holds no tokenizer that opens", "tokenizer.json"],
    ),
  ],
)
def test_models(refused, spoil, words):
  spoil()
  refused(words)


def test_a_tokenizer_that_is_larger_than_the_embedding(refused):
  write_model("small", vocab_size=10)
  size = tokenizer_lib.load("small").vocab_size
  told = f"model.path=small: the tokenizer has {size} ids"
  resize = "model.resize_vocab=true"
  refused([told, "only 10 rows", resize], "model.path=small")
  settle("model.path=small", resize)


def settle(*arguments: str) -> None:
  """Leaves the folder of a run that was interrupted."""
  with pytest.raises(StartedError):
    train.main([*SETTINGS, *arguments])


def test_a_folder_whose_inputs_have_changed_since(refused):
  settle()
  weights = bytearray(pathlib.Path(WEIGHTS).read_bytes())
  weights[-2] ^= 1
  pathlib.Path(WEIGHTS).write_bytes(weights)
  refused("other settings (weights in model.path: ")
  write_rows("train.json", [{**row, "answer_value": "1"} for row in ROWS])
  refused("other settings (problems: ")


def test_the_same_run_is_resumed_in_its_folder(refused):
  settle()
  settle("logging.every=7", "checkpoint.keep=1", "mesh.tensor=2")
  refused(
    "data.dev_size: 2 -> 3; reft.lam: 1.0 -> 0.5",
    "reft.lam=0.5",
    "data.dev_size=3",
  )


def test_limits_keep_so_many_problems():
  limits = ["data.test=train.json", "data.train_limit=3", "data.test_limit=4"]
  config = cli.parse([*SETTINGS, *limits]).config
  splits = splits_lib.encoded(config, tokenizer_lib.load("model"))
  sizes = {name: len(split.examples) for name, split in splits.items()}
  assert sizes == {"train": 3, "dev": 2, "test": 4}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys, flag):
  assert train.main([flag]) == 0
  said = capsys.readouterr()
  assert said.out.startswith("Usage: python -m reft_jax.train")
  assert "kl_coef" in said.out
  assert said.err == ""


PYTHON = "data.reasoning=python"


def test_programs_are_not_run_where_no_tier_is_safe(refused, monkeypatch):
  monkeypatch.setitem(sys.modules, "pydantic_monty", None)
  monkeypatch.setattr(seccomp, "supported", lambda: False)
  remedies = ["Install pydantic-monty", "data.reasoning=nl"]
  refused(["rograms cannot be run safely here", *remedies], PYTHON)


def test_chains_of_thought_in_words_where_programs_are_wanted(refused):
  words = ["data.train=train.json", "gsm8k_", "set data.reasoning=nl"]
  refused(words, PYTHON, "programs.isolation=monty")


def test_programs_can_be_learnt_by_reward_alone():
  # No number of the answers is lost on the tokenizer of the model.
  arguments = ["programs.isolation=monty", "data.max_prompt_tokens=90"]
  settle(PYTHON, *arguments, "stages=[reft]")


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
  refused(words, DRY, *arguments)
