"""A whole run from a model and a tokenizer that others made."""

import dataclasses
import json
import pathlib
import re

import jax
import pytest
import subwords
import tiny
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from reft_jax import evaluate, train
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import networks
from reft_jax.models.hf import write as writer
from reft_jax.tasks import embedded, prompts

pytestmark = pytest.mark.slow

PAD, END, BOS, EOS = 7, 10, 11, 13
SETTINGS = (
  "--config=embedded",
  *("stages=[sft,reft]", "sft.start=base", "model.resize_vocab=true"),
  *("data.dev_size=8", "embedded.questions=16", "embedded.test=8"),
  *("embedded.min_events=1", "embedded.max_events=1", "data.add_bos=true"),
  *("data.chat_template=true", "data.system_prompt=Be brief."),
  *("data.max_prompt_tokens=96", "data.max_response_tokens=40"),
  *("sft.epochs=1", "sft.batch_size=8", "sft.learning_rates=[1e-3]"),
  *("reft.steps=2", "reft.batch_size=8", "reft.minibatch_size=8"),
  *("evaluation.batch_size=8", "evaluation.majority_samples=0"),
  *("logging.sample_every=1", "logging.tensorboard=false"),
)


def write_model(folder: pathlib.Path) -> int:
  """A model with fewer rows than its tokenizer has ids; returns the rows.

  The tokenizer itself does not say which tokens are special; config.json does.
  """
  core = tokenizers.Tokenizer(models.BPE(unk_token="<3>"))
  core.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme="first", split=True
  )
  core.decoder = decoders.Metaspace(prepend_scheme="first")
  special = [f"<{number}>" for number in range(14)]
  special[END] = "<|end|>"
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=special, show_progress=False
  )
  texts = [
    text
    for problem in embedded.problems(200, seed=1, min_events=1, max_events=1)
    for text in (prompts.prompt(problem), prompts.target(problem))
  ]
  core.train_from_iterator([*texts, "Be brief. user system"], trainer)
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, chat_template=subwords.TEMPLATE
  )
  hf.save_pretrained(folder)
  size = core.get_vocab_size() - 3
  shape = dataclasses.replace(tiny.CONFIG, vocab_size=size, layers=1)
  policy = jax.jit(networks.Networks(shape).init)(jax.random.key(0))
  extra = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
  writer.save(folder, shape, policy, extra=extra)
  return size


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, int]:
  """A finished run, and the rows of the vocabulary that it started from."""
  folder = tmp_path_factory.mktemp("models")
  rows = write_model(folder / "model")
  settings = [*SETTINGS, f"model.path={folder / 'model'}"]
  assert train.main([*settings, f"output={folder / 'run'}"]) == 0
  return folder, rows


def test_special_ids_are_the_models_own(finished):
  folder, rows = finished
  for stage in ("sft", "reft"):
    saved = json.loads((folder / f"run/models/{stage}/config.json").read_text())
    assert saved["pad_token_id"] == PAD
    assert saved["bos_token_id"] == BOS
    assert saved["eos_token_id"] == [END, EOS]
    assert saved["vocab_size"] == rows + 3
  tokenizer = tokenizer_lib.load(folder / "run/models/reft", chat=True)
  manifest = json.loads((folder / "run/manifest.json").read_text())
  assert manifest["facts"]["tokenizer"] == tokenizer.fingerprint


def test_what_was_answered_holds_no_special_token(finished):
  folder, _ = finished
  lines = (folder / "run/samples/reft.jsonl").read_text().splitlines()
  assert lines
  for line in lines:
    completion = json.loads(line)["completion"]
    assert not re.search(r"<\d+>|<\|", completion)


def test_its_models_are_read_again(finished, capsys):
  folder, _ = finished
  start = [
    f"model.{name}={folder / path}"
    for name, path in (("path", "model"), ("warmup", "run/models/sft"))
  ]
  again = [*SETTINGS, *start, "stages=[reft]", "--dry-run"]
  assert train.main(again) == 0, capsys.readouterr().err
  # A model that grew, and the one that it started from, which must grow.
  trained = str(folder / "run/models/reft")
  asked = ["evaluation.samples=0", f"output={folder / 'asked'}"]
  assert evaluate.main([trained, *asked]) == 0, capsys.readouterr().err
  settings = [*SETTINGS, *asked, f"output={folder / 'first'}"]
  first = [str(folder / "model"), *settings]
  assert evaluate.main(first) == 0, capsys.readouterr().err
  summary = json.loads((folder / "first/evaluation.json").read_text())
  assert summary["questions"] == 8
