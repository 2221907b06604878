"""A Hugging Face fast tokenizer, reduced to what training and sampling need."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

# Its tokenizers work without torch; it need not say so at every start.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import transformers

from reft_jax import errors


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to ids and back, and which ids are special.

  Attributes:
    hf: the wrapped tokenizer, for what is not said here.
    pad_id: fills what is not part of a row. May equal an eos id: masks are made
      from lengths, never from ids.
    eos_ids: every id that ends a response; the first is the one that training
      appends.
    bos_id: None if the tokenizer has none. Never added unless asked for.
  """

  hf: transformers.PreTrainedTokenizerBase
  pad_id: int
  eos_ids: tuple[int, ...]
  bos_id: int | None

  @functools.cached_property
  def vocab_size(self) -> int:
    """Every id is below this."""
    return max(self.hf.get_vocab().values()) + 1

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the tokenizer and its special ids, as 64 hex digits."""
    special = json.dumps([self.pad_id, self.eos_ids, self.bos_id])
    text = self.hf.backend_tokenizer.to_str() + special
    return hashlib.sha256(text.encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The text's ids, without special tokens at either end."""
    return self.encode_all([text])[0]

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts at once: far faster than one after the other."""
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
    """The ids' text without special tokens, spaces as the tokens have them."""
    kept = [int(each) for each in ids if each not in self.eos_ids]
    return self.hf.decode(
      kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the files that `load` and AutoTokenizer open."""
    self.hf.save_pretrained(path)


def wrap(
  hf: transformers.PreTrainedTokenizerBase, more_eos_ids: Sequence[int] = ()
) -> Tokenizer:
  """Reads the special ids of a tokenizer that is already in memory.

  A missing pad falls back on eos: padding is never trained on nor attended to,
  because masks come from lengths.

  Args:
    hf: a fast tokenizer.
    more_eos_ids: what else ends a response, such as a chat model's end of turn.

  Raises:
    UserError: the tokenizer is not a fast one or nothing ends a response.
  """
  if not hf.is_fast:
    raise errors.UserError(
      f"{type(hf).__name__} is not a fast tokenizer; save it with a "
      "tokenizer.json."
    )
  own = () if hf.eos_token_id is None else (hf.eos_token_id,)
  eos_ids = tuple(dict.fromkeys((*own, *more_eos_ids)))
  if not eos_ids:
    raise errors.UserError(
      f"the tokenizer {hf.name_or_path!r} has no end-of-sequence token, so a "
      "response could never stop; set eos_token in its tokenizer_config.json."
    )
  pad_id = hf.pad_token_id
  if pad_id is None:
    pad_id = eos_ids[0]
  return Tokenizer(hf, pad_id, eos_ids, hf.bos_token_id)


def load(path: str | pathlib.Path) -> Tokenizer:
  """Opens a folder's tokenizer, without network.

  Beside the tokenizer's own eos, those of `generation_config.json` (or else
  `config.json`) end a response.

  Raises:
    UserError: no such folder, no tokenizer in it, no end of sequence, or one
      that is not an id.
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
  return wrap(hf, _eos_ids(folder))


def _eos_ids(folder: pathlib.Path) -> tuple[int, ...]:
  for name in ("generation_config.json", "config.json"):
    try:
      ids = json.loads((folder / name).read_text()).get("eos_token_id")
    except FileNotFoundError:
      continue
    except (ValueError, AttributeError) as error:
      raise errors.UserError(
        f"{str(folder / name)!r} is not a JSON object ({error})."
      ) from error
    if ids is None:
      continue
    listed = ids if isinstance(ids, list) else [ids]
    # Not by isinstance: to Python true is an int.
    if not all(type(each) is int and each >= 0 for each in listed):
      raise errors.UserError(
        f"{str(folder / name)!r}: eos_token_id is {ids!r:.40} but must be a "
        "token's id (a whole number, 0 or more) or a list of them."
      )
    return tuple(listed)
  return ()
