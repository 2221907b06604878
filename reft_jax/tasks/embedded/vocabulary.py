"""The word tokenizer of the embedded task."""

import re
from typing import TYPE_CHECKING

from reft_jax.tasks import prompts
from reft_jax.tasks.embedded import generate, stories

if TYPE_CHECKING:
  import transformers

# Tokens keep their leading space, so decoding is concatenation.
_PHRASES = (
  prompts.INSTRUCTION,
  prompts.COT_TRIGGER,
  "." + prompts.ANSWER_TRIGGER.rstrip(),
  "We get",
  ", then",
  " That makes",
)
_CHOICE_PHRASES = (
  f"\n{generate.LETTERS[0]} )",
  *(f" , {letter} )" for letter in generate.LETTERS[1:]),
)
_PROGRAM_PHRASES = (
  *(prompts.DEFINITION.rstrip(), '    """', '"""'),
  *("    result", "    return", "    print"),
)


def tokenizer(
  *, choices: bool = False, programs: bool = False
) -> "transformers.PreTrainedTokenizerFast":
  """A tokenizer with one token for every word and number of the task.

  The tokens of options and programs come last, and only if asked for: they
  change no other id. AutoTokenizer opens what it saves; `<pad>`, `<eos>` and
  `<unk>` are three different tokens.
  """
  # Imported here because they load slowly and problems need neither.
  import tokenizers
  import transformers
  from tokenizers import decoders, models, pre_tokenizers

  verbs = (*stories.VERBS["+"], *stories.VERBS["-"], *stories.SCALINGS.values())
  words = (
    *("She", "He", "has", "them", "How", "many", "does", "have"),
    *(*stories.NAMES, *stories.THINGS, *stories.SIGHTS),
    *(*verbs, "sees", "is"),
    *(*"+-*/=()", *map(str, range(stories.LARGEST + 1))),
  )
  phrases = [*_PHRASES]
  vocabulary = [
    *("<pad>", "<eos>", "<unk>", *_PHRASES, ".", "?", *stories.NAMES),
    *(f" {word}" for word in words),
  ]
  if choices:
    phrases += _CHOICE_PHRASES
    vocabulary += [*_CHOICE_PHRASES, *(f" {each}" for each in generate.LETTERS)]
  if programs:
    phrases += _PROGRAM_PHRASES
    vocabulary += [*_PROGRAM_PHRASES, " result", "\n"]
  pattern = "|".join([*map(re.escape, phrases), r" ?\w+", r" ?[^\w\s]", r"\s"])
  ids = {token: index for index, token in enumerate(vocabulary)}
  core = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
  words_and_signs = tokenizers.Regex(pattern)
  core.pre_tokenizer = pre_tokenizers.Split(words_and_signs, "isolated")
  core.decoder = decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    pad_token="<pad>",
    eos_token="<eos>",
    unk_token="<unk>",
    clean_up_tokenization_spaces=False,
  )
