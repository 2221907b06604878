"""Problems as token ids: what every stage reads."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.tasks import prompts as prompt_texts
from reft_jax.tasks.problem import Problem


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem with its token ids, made once and used everywhere.

  `target` ends in EOS; None where there is no rationale, or too long a one.
  """

  problem: Problem
  prompt: tuple[int, ...]
  target: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Examples of a data split, and how many problems gave up what.

  Attributes:
    examples: in the order of the problems.
    long_prompts: problems left out because their prompts are too long.
    long_targets: examples left without a target because it is too long; they
      can still be answered.
    unusable_targets: why other examples have no target, such as a chain of
      thought in words where programs are wanted.
    left_out: problems that cannot be asked in the run's task, such as options
      without numbers where the answer is to be a number.
  """

  examples: list[Example]
  long_prompts: int
  long_targets: int
  unusable_targets: tuple[str, ...] = ()
  left_out: int = 0


def encode(
  problems: Sequence[Problem],
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  reasoning: str,
  add_bos: bool,
  max_prompt_tokens: int,
  max_response_tokens: int,
  chat_template: bool = False,
  system_prompt: str | None = None,
) -> Encoded:
  """Problems as ids.

  Prompt and target are tokenised apart and joined as ids, the same way for
  supervised training and for rollouts (paper: separate tokenisation). With
  `chat_template` the question is a user's message, after `system_prompt` if
  there is one, and the target the assistant's turn: what a program starts with
  belongs to the prompt there too.

  Deviation: what is too long is left out and counted; the released code cuts
  it, which removes the trigger that asks for an answer, or the answer.

  Raises:
    UserError: if `add_bos` asks for a token that the tokenizer lacks, or
      `chat_template` for a template.
  """
  if add_bos and tokenizer.bos_id is None:
    raise UserError(
      "data.add_bos=true, but the tokenizer has no beginning-of-sequence "
      "token; set data.add_bos=false."
    )
  bos = (tokenizer.bos_id,) if add_bos else ()
  end = tokenizer.eos_ids[0]
  examples, unusable, long_prompts, long_targets = [], [], 0, 0
  for problem in problems:
    if chat_template:
      prompt = tokenizer.chat(
        prompt_texts.prompt(problem),
        system_prompt,
        start=prompt_texts.start(problem, reasoning),
      )
    else:
      prompt = tokenizer.encode(prompt_texts.prompt(problem, reasoning))
    if tuple(prompt[:1]) != bos:  # A template may have put it there.
      prompt = (*bos, *prompt)
    if len(prompt) > max_prompt_tokens:
      long_prompts += 1
      continue
    target = None
    if problem.rationale is not None:
      try:
        text = prompt_texts.target(problem, reasoning)
      except UserError as error:
        unusable.append(str(error))
      else:
        target = (*tokenizer.encode(text), end)
    if target is not None and len(target) > max_response_tokens:
      long_targets += 1
      target = None
    examples.append(Example(problem, tuple(prompt), target))
  return Encoded(examples, long_prompts, long_targets, tuple(unusable))


def fingerprint(splits: Mapping[str, Encoded]) -> str:
  """SHA-256 of all that is learnt from and tested on, as 64 hex digits."""
  digest = hashlib.sha256()
  for name, split in splits.items():
    for each in split.examples:
      row = (name, each.problem.uid, each.prompt, each.target)
      digest.update(repr((*row, each.problem.answer)).encode())
  return digest.hexdigest()
