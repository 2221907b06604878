"""Tokenizers of the kinds that real models have, trained on a few lines."""

import functools

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

# How spaces are written: by a prefix of every text, of texts without one, or
# not at all.
KINDS = (
  "llama",  # SentencePiece, as converted by older transformers.
  "llama5",  # The same as transformers 5 builds it.
  "metaspace-always",
  "metaspace-first",
  "metaspace-never",
  "bytes",  # GPT-2.
  "bytes-prefix",
)
# Those that put a space in front of every text.
ALWAYS = ("llama",)
TEXTS = (
  "Question:\nHow many?\nAnswer reasoning:\n",
  "We get 3 + 4 = 7.\nTherefore, the answer is: 7.0",
  'def solution():\n    """How many?"""\n    a = 3\n    return a + 4',
)
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<|user|>", "<|end|>")

# A turn is <|user|>text<|end|>; the assistant's begins with <|assistant|>.
TEMPLATE = (
  "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As Gemma's: begins with bos, has no system message, trims, ends oddly.
STRICT_TEMPLATE = (
  "{{ bos_token }}{% if messages[0].role == 'system' %}"
  "{{ raise_exception('no system here') }}{% endif %}"
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}"
  "{{ ' <|end|>' if m.role == 'assistant' else '</s>' }}{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train(kind: str, **names) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer of a kind; `names` of its special tokens and template."""
  backend = _backend(kind).to_str()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer.from_str(backend), **names
  )


@functools.cache
def _backend(kind: str) -> tokenizers.Tokenizer:
  core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
  alphabet = [*map(chr, range(33, 127)), "\n", "▁"]
  llama = [decoders.Replace("▁", " "), decoders.Fuse()]
  if kind == "llama":
    core.normalizer = normalizers.Sequence(
      [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence([*llama, decoders.Strip(" ", 1, 0)])
  elif kind == "llama5":
    core.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme="first", split=False
    )
    core.decoder = decoders.Sequence([*llama, decoders.Strip(" ", 1, 0)])
  elif kind.startswith("metaspace"):
    scheme = kind.removeprefix("metaspace-")
    core.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme=scheme, split=False
    )
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
  else:
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
      add_prefix_space=kind == "bytes-prefix"
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=330,
    special_tokens=list(SPECIAL),
    initial_alphabet=alphabet,
    show_progress=False,
  )
  # By lines: as in Llama's and GPT-2's, no token goes on after a line's end.
  lines = [line for text in TEXTS for line in text.split("\n")]
  core.train_from_iterator(lines * 3, trainer)
  return core
