"""A Hugging Face fast tokenizer, reduced to what training and sampling use."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

# Tokenizers work without torch, so transformers' advice to install it is noise.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import transformers

from reft_jax import errors
from reft_jax.config import schema

# The texts of a chat that is rendered only for its special tokens.
_QUESTION, _REPLY = "question", "reply"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Encodes text, decodes ids and knows the special ids.

  Attributes:
    hf: the wrapped tokenizer.
    pad_id: fills the slots after a row. May equal an eos id: masks come from
      lengths, never from ids.
    eos_ids: every id that ends a response; training appends the first.
    bos_id: None if there is none. Added only on request.
  """

  hf: transformers.PreTrainedTokenizerBase
  pad_id: int
  eos_ids: tuple[int, ...]
  bos_id: int | None

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id in use."""
    known = max(self.hf.get_vocab().values())
    return max(known, self.pad_id, self.eos_ids[0]) + 1

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the tokenizer and its special ids, as 64 hex digits."""
    special = json.dumps([self.pad_id, self.eos_ids, self.bos_id])
    text = self.hf.backend_tokenizer.to_str() + special
    return hashlib.sha256(text.encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The text's ids, without added special tokens."""
    return self.encode_all([text])[0]

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts, far faster than one at a time."""
    if not texts:
      return []
    return self.hf(
      list(texts),
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
      verbose=False,
    )["input_ids"]

  def decode(self, ids: Iterable[int]) -> str:
    """The text that encodes to the ids, without special tokens.

    All spaces are kept except one that `encode` adds in front of a text. Ids
    without a token decode to nothing; models with larger vocabularies than
    their tokenizers may sample them.
    """
    text = self._decode(int(each) for each in ids if each not in self.eos_ids)
    none, two = self._spaces
    if none == 1 and (two == 3 or not text.startswith("  ")):
      return text.removeprefix(" ")
    return text

  def _decode(self, ids: Iterable[int]) -> str:
    """The text of ids, with all spaces.

    Decoders strip the first token's spaces, so a word is put in front of it.
    """
    start = [self._word[1]] if self._word else []
    return self._text([*start, *ids]).removeprefix(self._text(start))

  def _text(self, ids: Sequence[int]) -> str:
    return self.hf.decode(
      list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

  @functools.cached_property
  def _word(self) -> tuple[str, int] | None:
    """The first token of ASCII letters alone and its id, or None."""
    tokens = sorted(self.hf.get_vocab().items(), key=lambda token: token[1])
    added = self.hf.added_tokens_decoder
    words = (
      (text, number)
      for text, number in tokens
      if text.isascii() and text.isalpha() and number not in added
    )
    return next(words, None)

  @functools.cached_property
  def _spaces(self) -> tuple[int, int]:
    """The leading spaces, once encoded, of texts with none and with two.

    Tokenizers add a space to every text, to texts without one, or to no text.
    """
    if self._word is None:
      return 0, 2
    word, _ = self._word
    none, two = (
      self._decode(self.encode(spaces + word)) for spaces in ("", "  ")
    )
    return none.find(word), two.find(word)

  def chat(
    self, message: str, system: str | None = None, start: str = ""
  ) -> list[int]:
    """The ids of a chat up to the model's answer, or the rest of its answer.

    The template decides on a beginning of sequence; nothing else is added.

    Args:
      message: the user's message.
      system: the system message; None leaves it to the template.
      start: the start of the answer, which the model continues.

    Raises:
      UserError: the template does not support such a chat.
    """
    messages = [{"role": "user", "content": message}]
    if system is not None:
      messages.insert(0, {"role": "system", "content": system})
    return self.encode(_render(self.hf, messages, answer=True) + start)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the files that `load` and AutoTokenizer read."""
    self.hf.save_pretrained(path)


def wrap(
  hf: transformers.PreTrainedTokenizerBase,
  more_eos_ids: Sequence[int] = (),
  *,
  pad_id: int | None = None,
  bos_id: int | None = None,
  eos_token: str | None = None,
  pad_token: str | None = None,
  chat: bool = False,
) -> Tokenizer:
  """Reads the special ids of a tokenizer in memory.

  Without a pad token, pad is eos: masks come from lengths, so padding is never
  trained on nor attended to.

  Args:
    hf: a fast tokenizer.
    more_eos_ids: other ids that end a response.
    pad_id: pad if the tokenizer has none; ignored if it is no token's id.
    bos_id: the same for its beginning of sequence.
    eos_token: the token that training appends, the first of the eos ids.
    pad_token: the pad token, instead of the tokenizer's.
    chat: answers are turns of a chat; the token that ends a turn in the
      template is the next eos id after `eos_token`.

  Raises:
    UserError: the tokenizer is not a fast one, has no eos, lacks a token that
      is asked for, or lacks a chat template.
  """
  if not hf.is_fast:
    raise errors.UserError(
      f"{type(hf).__name__} is not a fast tokenizer; save it with a "
      "tokenizer.json."
    )
  ends = []
  if eos_token is not None:
    ends.append(_token_id(hf, eos_token, "model.eos_token"))
  if chat:
    ends += _ends_of_turn(hf, more_eos_ids)
  if hf.eos_token_id is not None:
    ends.append(hf.eos_token_id)
  eos_ids = tuple(dict.fromkeys((*ends, *more_eos_ids)))
  if not eos_ids:
    raise errors.UserError(
      f"the tokenizer {hf.name_or_path!r} has no end-of-sequence token, so a "
      "response could never stop; set model.eos_token, or eos_token in its "
      "tokenizer_config.json."
    )
  known = set(hf.get_vocab().values())
  if pad_token is not None:
    pad_id = _token_id(hf, pad_token, "model.pad_token")
  elif hf.pad_token_id is not None:
    pad_id = hf.pad_token_id
  elif pad_id is None or pad_id not in known:
    pad_id = eos_ids[0]
  if hf.bos_token_id is not None:
    bos_id = hf.bos_token_id
  elif bos_id not in known:
    bos_id = None
  return Tokenizer(hf, pad_id, eos_ids, bos_id)


def _token_id(
  hf: transformers.PreTrainedTokenizerBase, text: str, setting: str
) -> int:
  """The id of a token, by its name in the vocabulary or its text."""
  named = hf.get_vocab().get(text)
  ids = hf.encode(text, add_special_tokens=False) if named is None else [named]
  if len(ids) != 1 or ids[0] == hf.unk_token_id != named:
    raise errors.UserError(
      f"{setting}={text!r} is no token of the tokenizer; choose one of its "
      "vocabulary, such as </s>."
    )
  return ids[0]


def _ends_of_turn(
  hf: transformers.PreTrainedTokenizerBase, eos_ids: Sequence[int]
) -> list[int]:
  """The id that ends an assistant's turn in a chat, or none.

  It is the first special token that the template writes after the reply.
  """
  text = _render(
    hf,
    [
      {"role": "user", "content": _QUESTION},
      {"role": "assistant", "content": _REPLY},
    ],
    answer=False,
  )
  special = {*hf.all_special_ids, *eos_ids} | {
    number for number, token in hf.added_tokens_decoder.items() if token.special
  }
  after = text.rpartition(_REPLY)[2]
  ids = hf.encode(after, add_special_tokens=False)
  return [each for each in ids if each in special][:1]


def _render(
  hf: transformers.PreTrainedTokenizerBase,
  messages: Sequence[Mapping[str, str]],
  *,
  answer: bool,
) -> str:
  """The text of a chat; with `answer`, up to the assistant's next turn.

  Raises:
    UserError: there is no template, or it refuses these messages.
  """
  if hf.chat_template is None:
    raise errors.UserError(
      "data.chat_template=true, but the tokenizer has no chat template; set "
      "data.chat_template=false, or take an instruct model."
    )
  try:
    return hf.apply_chat_template(
      [dict(each) for each in messages],
      tokenize=False,
      add_generation_prompt=answer,
    )
  except Exception as error:  # Templates raise anything.
    reason = str(error).strip().partition("\n")[0]
    roles = ", ".join(message["role"] for message in messages)
    raise errors.UserError(
      f"data.chat_template=true: the tokenizer's chat template does not take "
      f"messages of {roles} ({reason}); set data.system_prompt=null or "
      "data.chat_template=false."
    ) from error


def for_run(config: schema.Config, path: str | pathlib.Path) -> Tokenizer:
  """`load`, as the settings of a run say."""
  return load(
    path,
    eos_token=config.model.eos_token,
    pad_token=config.model.pad_token,
    chat=config.data.chat_template,
  )


def load(
  path: str | pathlib.Path,
  *,
  eos_token: str | None = None,
  pad_token: str | None = None,
  chat: bool = False,
) -> Tokenizer:
  """Loads a folder's tokenizer, without network.

  The eos ids of `generation_config.json` (or else `config.json`) end a response
  too. Its pad and beginning of sequence serve tokenizers that have none, such
  as Galactica's.

  Args:
    path: the folder.
    eos_token: as in `wrap`.
    pad_token: as in `wrap`.
    chat: as in `wrap`.

  Raises:
    UserError: the folder has no tokenizer, or an eos that is not an id; or as
      `wrap`.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise errors.UserError(
      f"no tokenizer folder at {str(path)!r}; give the folder of a downloaded "
      "model (it holds tokenizer.json)."
    )
  try:
    hf = transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True
    )
  except Exception as error:  # AutoTokenizer raises whatever its parts raise.
    reason = str(error).strip().partition("\n")[0]
    raise errors.UserError(
      f"{str(path)!r} holds no tokenizer that opens ({reason}); it needs "
      "tokenizer.json and tokenizer_config.json."
    ) from error
  first = {
    name: next(iter(_special_ids(folder, f"{name}_token_id")), None)
    for name in ("pad", "bos")
  }
  return wrap(
    hf,
    _special_ids(folder, "eos_token_id"),
    pad_id=first["pad"],
    bos_id=first["bos"],
    eos_token=eos_token,
    pad_token=pad_token,
    chat=chat,
  )


def _special_ids(folder: pathlib.Path, field: str) -> tuple[int, ...]:
  """The ids of a field, from the first of a folder's files that has it."""
  for name in ("generation_config.json", "config.json"):
    try:
      ids = json.loads((folder / name).read_text()).get(field)
    except FileNotFoundError:
      continue
    except (ValueError, AttributeError) as error:
      raise errors.UserError(
        f"{str(folder / name)!r} is not a JSON object ({error})."
      ) from error
    # Old Llamas have -1 for a missing pad.
    if ids is None or (ids == -1 and field != "eos_token_id"):
      continue
    listed = ids if isinstance(ids, list) else [ids]
    # Not by isinstance: true is an int.
    if not all(type(each) is int and each >= 0 for each in listed):
      raise errors.UserError(
        f"{str(folder / name)!r}: {field} is {ids!r:.40} but must be a "
        "token's id (a whole number, 0 or more) or a list of them."
      )
    return tuple(listed)
  return ()
