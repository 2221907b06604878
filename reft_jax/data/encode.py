"""Problems as token ids."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.tasks import prompts as prompt_texts
from reft_jax.tasks.problem import Problem


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem with its token ids.

  `target` ends in EOS; it is None without a usable rationale.
  """

  problem: Problem
  prompt: tuple[int, ...]
  target: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The examples of a data split, and what was left out of it.

  Attributes:
    examples: in the order of the problems.
    long_prompts: the number of problems with too long prompts, left out.
    long_targets: the number of examples without a target because it is too
      long; they can still be answered.
    unusable_targets: the reasons why other examples have no target, such as a
      chain of thought in words in a run with programs.
    left_out: the number of problems that do not fit the run's task, such as a
      correct option without a number in a numeric task.
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

  Prompt and target are tokenised separately and joined as ids, in supervised
  training as in rollouts (paper: separate tokenisation). With `chat_template`
  the question is a user's message, after `system_prompt` if there is one, and
  the target is the assistant's turn; a program's start belongs to the prompt.

  Deviation: texts that are too long are left out and counted. The released code
  truncates them, which removes the prompt's trigger or the answer.

  Raises:
    UserError: the tokenizer lacks the token that `add_bos` needs, or the
      template that `chat_template` needs.
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
      prompt = [*bos, *prompt]
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
  """SHA-256 of all prompts, targets and answers, as 64 hex digits."""
  digest = hashlib.sha256()
  for name, split in splits.items():
    for each in split.examples:
      row = (name, each.problem.uid, each.prompt, each.target)
      digest.update(repr((*row, each.problem.answer)).encode())
  return digest.hexdigest()
