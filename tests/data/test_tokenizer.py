import json
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import subwords
import tokenizers
import transformers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from reft_jax import errors
from reft_jax.data import tokenizer as tokenizer_lib


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
  wrapped = tokenizer_lib.wrap(odd)
  assert (wrapped.pad_id, wrapped.bos_id, wrapped.eos_ids) == (7, 11, (13,))
  assert wrapped.vocab_size == 14
  ids = wrapped.encode("abc")
  assert not {7, 11, 13} & set(ids)
  assert wrapped.decode([11, *ids[:2], 7, *ids[2:], 13, 7, 7]) == "abc"


def test_missing_pad_falls_back_on_eos():
  hf = letters({"</s>": 2, "<unk>": 0}, eos_token="</s>", unk_token="<unk>")
  wrapped = tokenizer_lib.wrap(hf)
  assert wrapped.pad_id == 2
  assert wrapped.eos_ids == (2,)
  assert wrapped.bos_id is None
  assert wrapped.decode([*wrapped.encode("abc"), 2, 2, 2]) == "abc"


def test_pad_may_be_eos():
  names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
  wrapped = tokenizer_lib.wrap(letters({"</s>": 2, "<unk>": 0}, **names))
  assert (wrapped.pad_id, wrapped.eos_ids) == (2, (2,))


def test_something_must_end_a_response():
  hf = letters({"<unk>": 0}, unk_token="<unk>")
  with pytest.raises(errors.UserError, match="eos_token"):
    tokenizer_lib.wrap(hf)
  assert tokenizer_lib.wrap(hf, more_eos_ids=[3]).eos_ids == (3,)


def test_only_fast_tokenizers():
  class Slow:
    is_fast = False

  with pytest.raises(errors.UserError, match="Slow is not a fast tokenizer"):
    tokenizer_lib.wrap(Slow())


@hypothesis.given(texts=st.lists(st.text(alphabet="abcdefgh .")))
def test_round_trip(texts):
  wrapped = tokenizer_lib.wrap(
    letters(ODD, eos_token="</s>", unk_token="<unk>", bos_token="<s>")
  )
  ids = wrapped.encode_all(texts)
  assert ids == [wrapped.encode(text) for text in texts]
  assert [wrapped.decode(each) for each in ids] == texts


@hypothesis.given(ids=st.lists(st.integers(0, 60)))
def test_any_sampled_ids_decode(ids):
  """A model may have more rows than its tokenizer has tokens."""
  wrapped = tokenizer_lib.wrap(
    letters(ODD, eos_token="</s>", unk_token="<unk>")
  )
  text = wrapped.decode(np.array(ids, np.int32))
  assert text == "".join(wrapped.decode([each]) for each in ids)


def test_saved_and_opened_again_it_is_the_same(odd, tmp_path):
  wrapped = tokenizer_lib.wrap(odd)
  wrapped.save(tmp_path)
  again = tokenizer_lib.load(tmp_path)
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
  more = tokenizer_lib.wrap(odd, more_eos_ids=[3])
  prints = {each.fingerprint for each in (tokenizer_lib.wrap(odd), more)}
  assert len(prints | {tokenizer_lib.wrap(other).fingerprint}) == 3


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
  tokenizer_lib.wrap(odd).save(tmp_path)
  for name, value in files.items():
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
  assert tokenizer_lib.load(tmp_path).eos_ids == eos_ids


SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


@pytest.mark.parametrize(
  ("config", "generation", "expected"),
  [
    # As Galactica's: its tokenizer names none of them.
    ((7, 11, 13), None, (7, 11, (13,))),
    ((7, 11, 13), (6, 10, 12), (6, 10, (12,))),
    ((7, 11, 13), (None, None, [12, 13]), (7, 11, (12, 13))),
    ((None, None, 13), None, (13, None, (13,))),
    ((-1, None, 13), None, (13, None, (13,))),
    # No token has these: the model's embedding need not either.
    ((99, 98, 13), None, (13, None, (13,))),
  ],
)
def test_special_ids_that_only_the_model_names(
  tmp_path, config, generation, expected
):
  special = {f"<{n}>": n for n in (6, 7, 10, 11, 12, 13)}
  letters(special).save_pretrained(tmp_path)
  for name, ids in (
    ("config.json", config),
    ("generation_config.json", generation),
  ):
    if ids:
      fields = dict(zip(SPECIAL, ids, strict=True))
      (tmp_path / name).write_text(json.dumps(fields))
  wrapped = tokenizer_lib.load(tmp_path)
  assert (wrapped.pad_id, wrapped.bos_id, wrapped.eos_ids) == expected


def test_the_tokenizers_own_special_ids_win(odd, tmp_path):
  tokenizer_lib.wrap(odd).save(tmp_path)
  fields = dict.fromkeys(SPECIAL, 3)
  (tmp_path / "config.json").write_text(json.dumps(fields))
  wrapped = tokenizer_lib.load(tmp_path)
  assert (wrapped.pad_id, wrapped.bos_id) == (7, 11)
  assert wrapped.eos_ids == (13, 3)


@pytest.mark.parametrize("ids", ["2", -2, True, 2.0])
def test_a_pad_that_is_no_id(odd, tmp_path, ids):
  tokenizer_lib.wrap(odd).save(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": ids}))
  with pytest.raises(errors.UserError, match="pad_token_id is"):
    tokenizer_lib.load(tmp_path)


def test_special_tokens_can_be_set(odd, tmp_path):
  wrapped = tokenizer_lib.wrap(odd, [3], eos_token="<s>", pad_token="h")
  h = odd.get_vocab()["h"]
  assert (wrapped.pad_id, wrapped.eos_ids) == (h, (11, 13, 3))
  wrapped.save(tmp_path)
  again = tokenizer_lib.load(tmp_path, eos_token="<s>", pad_token="h")
  assert (again.pad_id, again.eos_ids) == (h, (11, 13))
  none = letters({"<unk>": 0}, unk_token="<unk>")
  a = none.get_vocab()["a"]
  assert tokenizer_lib.wrap(none, eos_token="a").eos_ids == (a,)
  # By its text, where the vocabulary spells it otherwise.
  bytes_ = subwords.train("bytes", eos_token="</s>")
  newline = bytes_.get_vocab()["Ċ"]
  assert tokenizer_lib.wrap(bytes_, pad_token="\n").pad_id == newline


@pytest.mark.parametrize("text", ["<|im_end|>", "ab", "z", ""])
@pytest.mark.parametrize("setting", ["eos_token", "pad_token"])
def test_special_tokens_must_exist(odd, setting, text):
  with pytest.raises(errors.UserError) as caught:
    tokenizer_lib.wrap(odd, **{setting: text})
  said = str(caught.value)
  assert said.startswith(f"model.{setting}={text!r} is no token of the")


# One space in front is lost where tokenizers put one there of their own.
@pytest.mark.parametrize("kind", subwords.KINDS)
@hypothesis.given(
  text=st.text(alphabet='adef3 +=\n():"', max_size=20).filter(
    lambda text: not text.startswith(" ") or text.startswith("  ")
  )
)
def test_spaces_come_back(kind, text):
  wrapped = tokenizer_lib.wrap(subwords.train(kind, eos_token="</s>"))
  ids = wrapped.encode(text)
  assert wrapped.decode([*ids, *wrapped.eos_ids]) == text
  assert wrapped.encode(wrapped.decode(ids)) == ids


@pytest.mark.parametrize("kind", subwords.KINDS)
def test_what_goes_on_without_a_space_has_none(kind):
  """A model that was not taught the space in front does not write it."""
  wrapped = tokenizer_lib.wrap(subwords.train(kind, eos_token="</s>"))
  whole = wrapped.encode("\n3 + 4")
  newline = wrapped.encode("\n")
  assert whole[: len(newline)] == newline
  assert wrapped.decode(whole[len(newline) :]) == "3 + 4"


@pytest.mark.parametrize("kind", subwords.KINDS)
@hypothesis.given(ids=st.lists(st.integers(0, 400), max_size=12))
def test_any_ids_of_subwords_decode(kind, ids):
  wrapped = tokenizer_lib.wrap(subwords.train(kind, eos_token="</s>"))
  known = [each for each in ids if each < wrapped.vocab_size]
  assert wrapped.decode(ids) == wrapped.decode(known)


def chat(template=subwords.TEMPLATE, kind="bytes", **options):
  names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
  hf = subwords.train(kind, chat_template=template, **names)
  return tokenizer_lib.wrap(hf, chat=True, **options)


def test_a_chat_ends_where_its_template_ends_a_turn():
  end = subwords.SPECIAL.index("<|end|>")
  eos = subwords.SPECIAL.index("</s>")
  assert chat().eos_ids == (end, eos)
  assert chat(subwords.STRICT_TEMPLATE).eos_ids == (end, eos)
  assert chat(eos_token="<pad>").eos_ids == (1, end, eos)
  assert chat("{% for m in messages %}{{ m.content }}{% endfor %}").eos_ids == (
    (eos,)
  )
  # A word of the vocabulary ends turns only if the model says so.
  words = "{% for m in messages %}{{ m.content }} many{% endfor %}"
  assert chat(words).eos_ids == (eos,)
  many = chat().encode(" many")[0]
  assert chat(words, more_eos_ids=[many]).eos_ids == (many, eos)


def test_a_chat_is_the_templates():
  wrapped = chat()
  ids = wrapped.chat("How many?", "Be brief.", start="def")
  text = (
    "<|system|>\nBe brief.<|end|>\n<|user|>\nHow many?<|end|>\n<|assistant|>\n"
  )
  assert ids == wrapped.encode(text + "def")
  assert wrapped.hf.decode(ids) == text + "def"
  whole = wrapped.hf.apply_chat_template(
    [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "How many?"},
    ],
    add_generation_prompt=True,
    return_dict=False,
  )
  assert wrapped.chat("How many?", "Be brief.") == whole


def test_chats_that_cannot_be():
  hf = subwords.train("bytes", eos_token="</s>")
  with pytest.raises(errors.UserError, match="no chat template; set data"):
    tokenizer_lib.wrap(hf, chat=True)
  wrapped = chat(subwords.STRICT_TEMPLATE)
  assert wrapped.chat("How many?")
  with pytest.raises(errors.UserError) as caught:
    wrapped.chat("How many?", "Be brief.")
  said = str(caught.value)
  assert "does not take messages of system, user (no system here)" in said
  assert "\n" not in said


def test_a_saved_chat_is_the_same(tmp_path):
  wrapped = chat()
  wrapped.save(tmp_path)
  ids = {"eos_token_id": wrapped.eos_ids, "pad_token_id": wrapped.pad_id}
  (tmp_path / "config.json").write_text(json.dumps(ids))
  again = tokenizer_lib.load(tmp_path, chat=True)
  assert again.fingerprint == wrapped.fingerprint
  assert again.chat("How many?") == wrapped.chat("How many?")


def test_bad_folders(odd, tmp_path):
  with pytest.raises(errors.UserError, match="no tokenizer folder"):
    tokenizer_lib.load(tmp_path / "nowhere")
  with pytest.raises(errors.UserError, match=r"tokenizer\.json"):
    tokenizer_lib.load(tmp_path)
  tokenizer_lib.wrap(odd).save(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match=r"config\.json"):
    tokenizer_lib.load(tmp_path)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ids", ["2", [2, None], [[2]], True, 2.0, -1, {}])
def test_ends_that_are_no_ids(odd, tmp_path, name, ids):
  tokenizer_lib.wrap(odd).save(tmp_path)
  (tmp_path / name).write_text(json.dumps({"eos_token_id": ids}))
  with pytest.raises(errors.UserError) as caught:
    tokenizer_lib.load(tmp_path)
  said = str(caught.value)
  assert f"{str(tmp_path / name)!r}: eos_token_id is {ids!r} but must" in said


def test_a_real_tokenizer(shared):
  stories = tokenizer_lib.load(shared / "models/stories260K")
  text = "Once upon a time, there was a little girl named Lily."
  ids = stories.encode(text)
  assert stories.bos_id == 1
  assert not {0, 1, 2} & set(ids)
  assert stories.decode([1, *ids, 2]) == text
  assert (stories.pad_id, stories.eos_ids, stories.vocab_size) == (2, (2,), 512)
  for each in ("    a = 3\n    return a", "def f():\n", " a", "  ", "\n\ta"):
    assert stories.decode(stories.encode(each)) == each


def test_loading_says_nothing(odd, tmp_path):
  tokenizer_lib.wrap(odd).save(tmp_path)
  program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = (
  lambda name, *rest: None if name == "torch" else find(name, *rest))
from reft_jax.data import tokenizer
tokenizer.load(sys.argv[1]).encode("a" * 9000)
"""
  done = subprocess.run(
    [sys.executable, "-c", program, tmp_path],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout + done.stderr == ""
