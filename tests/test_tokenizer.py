import json
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from reft_jax import errors, tokenizer


def letters(special=(), **names):
  """A tokenizer of single characters with `special` tokens at given ids."""
  special = dict(special)
  free = (i for i in range(200) if i not in special.values())
  vocab = special | dict(zip("abcdefgh .", free, strict=False))
  core = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
  core.decoder = decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


# No special token where a careless program expects one.
ODD = {"<pad>": 7, "<s>": 11, "</s>": 13, "<unk>": 0}


@pytest.fixture
def odd():
  return letters(
    ODD,
    pad_token="<pad>",
    bos_token="<s>",
    eos_token="</s>",
    unk_token="<unk>",
  )


def test_special_ids_come_from_the_tokenizer(odd):
  wrapped = tokenizer.wrap(odd)
  assert (wrapped.pad_id, wrapped.bos_id, wrapped.eos_ids) == (7, 11, (13,))
  assert wrapped.vocab_size == 14
  ids = wrapped.encode("abc")
  assert not {7, 11, 13} & set(ids)
  assert wrapped.decode([11, *ids[:2], 7, *ids[2:], 13, 7, 7]) == "abc"


def test_missing_pad_falls_back_on_eos():
  hf = letters({"</s>": 2, "<unk>": 0}, eos_token="</s>", unk_token="<unk>")
  wrapped = tokenizer.wrap(hf)
  assert wrapped.pad_id == 2
  assert wrapped.eos_ids == (2,)
  assert wrapped.bos_id is None
  assert wrapped.decode([*wrapped.encode("abc"), 2, 2, 2]) == "abc"


def test_pad_may_be_eos():
  names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
  wrapped = tokenizer.wrap(letters({"</s>": 2, "<unk>": 0}, **names))
  assert (wrapped.pad_id, wrapped.eos_ids) == (2, (2,))


def test_something_must_end_a_response():
  hf = letters({"<unk>": 0}, unk_token="<unk>")
  with pytest.raises(errors.UserError, match="eos_token"):
    tokenizer.wrap(hf)
  assert tokenizer.wrap(hf, more_eos_ids=[3]).eos_ids == (3,)


def test_only_fast_tokenizers():
  class Slow:
    is_fast = False

  with pytest.raises(errors.UserError, match="Slow is not a fast tokenizer"):
    tokenizer.wrap(Slow())


@hypothesis.given(texts=st.lists(st.text(alphabet="abcdefgh .")))
def test_round_trip(texts):
  wrapped = tokenizer.wrap(
    letters(ODD, eos_token="</s>", unk_token="<unk>", bos_token="<s>")
  )
  ids = wrapped.encode_all(texts)
  assert ids == [wrapped.encode(text) for text in texts]
  assert [wrapped.decode(each) for each in ids] == texts


@hypothesis.given(ids=st.lists(st.integers(0, 60)))
def test_any_sampled_ids_decode(ids):
  """A model may have more rows than its tokenizer has tokens."""
  wrapped = tokenizer.wrap(letters(ODD, eos_token="</s>", unk_token="<unk>"))
  text = wrapped.decode(np.array(ids, np.int32))
  assert text == "".join(wrapped.decode([each]) for each in ids)


def test_saved_and_opened_again_it_is_the_same(odd, tmp_path):
  wrapped = tokenizer.wrap(odd)
  wrapped.save(tmp_path)
  again = tokenizer.load(tmp_path)
  assert again.fingerprint == wrapped.fingerprint
  assert len(again.fingerprint) == 64
  assert (again.pad_id, again.bos_id, again.eos_ids, again.vocab_size) == (
    (wrapped.pad_id, wrapped.bos_id, wrapped.eos_ids, wrapped.vocab_size)
  )
  assert again.encode("abc.") == wrapped.encode("abc.")


def test_fingerprint_tells_tokenizers_apart(odd):
  other = letters(
    ODD | {"</s>": 12}, eos_token="</s>", unk_token="<unk>", bos_token="<s>"
  )
  more = tokenizer.wrap(odd, more_eos_ids=[3])
  prints = {each.fingerprint for each in (tokenizer.wrap(odd), more)}
  assert len(prints | {tokenizer.wrap(other).fingerprint}) == 3


@pytest.mark.parametrize(
  ("files", "eos_ids"),
  [
    ({}, (13,)),
    ({"config.json": 13}, (13,)),
    ({"config.json": [3, 13]}, (13, 3)),
    ({"config.json": [3], "generation_config.json": [13, 4]}, (13, 4)),
    ({"config.json": [3], "generation_config.json": None}, (13, 3)),
  ],
)
def test_all_ends_of_a_folder_count(odd, tmp_path, files, eos_ids):
  tokenizer.wrap(odd).save(tmp_path)
  for name, value in files.items():
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
  assert tokenizer.load(tmp_path).eos_ids == eos_ids


def test_bad_folders(odd, tmp_path):
  with pytest.raises(errors.UserError, match="no tokenizer folder"):
    tokenizer.load(tmp_path / "nowhere")
  with pytest.raises(errors.UserError, match=r"tokenizer\.json"):
    tokenizer.load(tmp_path)
  tokenizer.wrap(odd).save(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match=r"config\.json"):
    tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ids", ["2", [2, None], [[2]], True, 2.0, -1, {}])
def test_ends_that_are_no_ids(odd, tmp_path, name, ids):
  tokenizer.wrap(odd).save(tmp_path)
  (tmp_path / name).write_text(json.dumps({"eos_token_id": ids}))
  with pytest.raises(errors.UserError) as caught:
    tokenizer.load(tmp_path)
  said = str(caught.value)
  assert f"{str(tmp_path / name)!r}: eos_token_id is {ids!r} but must" in said


def test_a_real_tokenizer(shared):
  stories = tokenizer.load(shared / "models/stories260K")
  text = "Once upon a time, there was a little girl named Lily."
  ids = stories.encode(text)
  assert stories.bos_id == 1
  assert not {0, 1, 2} & set(ids)
  assert stories.decode([1, *ids, 2]) == text
  assert (stories.pad_id, stories.eos_ids, stories.vocab_size) == (2, (2,), 512)


def test_loading_says_nothing(odd, tmp_path):
  tokenizer.wrap(odd).save(tmp_path)
  program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = (
  lambda name, *rest: None if name == "torch" else find(name, *rest))
from reft_jax import tokenizer
tokenizer.load(sys.argv[1]).encode("a" * 9000)
"""
  done = subprocess.run(
    [sys.executable, "-c", program, tmp_path],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout + done.stderr == ""
