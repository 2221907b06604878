"""Rows of ids as padded arrays, and the order in which rows are visited.

The order is stateless: which rows make step n follows from the seed and n
alone, so resuming needs no iterator state.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reft_jax import tokenizer as tokenizer_lib
from reft_jax import types
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


def round_up(size: int, multiple: int = 8) -> int:
  """The next multiple: few distinct widths, few compilations."""
  return -(-size // multiple) * multiple


def micro_batches(rows: int, micro: int, ways: int) -> tuple[int, int]:
  """Into what rows are filled up: of one micro-batch, and of all of them.

  Args:
    rows: how many there are.
    micro: how many are wanted at once.
    ways: devices that share a micro-batch; they have as many rows each.
  """
  at_once = round_up(min(micro, rows), ways)
  return at_once, round_up(rows, at_once)


def width(lengths: Iterable[int], *, bucket: int, most: int) -> int:
  """Slots for rows of these lengths: a multiple of `bucket`, or `most`.

  Few distinct widths, few compilations, and little padding.
  """
  return min(round_up(max(lengths), bucket), most)


def supervised(
  rows: Sequence[tuple[Sequence[int], Sequence[int]]],
  *,
  batch: int,
  slots: int,
  pad_id: int,
) -> types.SupervisedBatch:
  """(prompt, target) ids as a batch; missing rows become filler rows."""
  tokens_BS = np.full((batch, slots), pad_id, np.int32)
  lengths_B = np.ones(batch, np.int32)
  targets_BS = np.zeros((batch, slots), bool)
  for row, (prompt, target) in enumerate(rows):
    end = len(prompt) + len(target)
    tokens_BS[row, : len(prompt)] = prompt
    tokens_BS[row, len(prompt) : end] = target
    lengths_B[row] = end
    targets_BS[row, max(len(prompt), 1) : end] = True
  return types.SupervisedBatch(
    tokens_BS=tokens_BS, lengths_B=lengths_B, targets_BS=targets_BS
  )


def labelled(
  rows: Sequence[Sequence[int]],
  labels: Sequence[int],
  *,
  batch: int,
  slots: int,
  pad_id: int,
) -> types.LabelledBatch:
  """Ids with their classes as a batch; missing rows become filler rows.

  Rows are cut at `slots`, as the released reward model's are at 700.
  """
  tokens_BS = np.full((batch, slots), pad_id, np.int32)
  lengths_B = np.ones(batch, np.int32)
  labels_B = np.zeros(batch, np.int32)
  for row, (ids, label) in enumerate(zip(rows, labels, strict=True)):
    length = min(len(ids), slots)
    tokens_BS[row, :length] = ids[:length]
    lengths_B[row] = length
    labels_B[row] = label
  return types.LabelledBatch(
    tokens_BS=tokens_BS,
    lengths_B=lengths_B,
    labels_B=labels_B,
    real_B=np.arange(batch) < len(rows),
  )


def prompts(
  rows: Sequence[Sequence[int]],
  requests: Sequence[int],
  *,
  batch: int,
  slots: int,
  pad_id: int,
) -> types.Prompts:
  """Prompt ids as a batch; missing rows become one-token filler prompts."""
  tokens_BP = np.full((batch, slots), pad_id, np.int32)
  lengths_B = np.ones(batch, np.int32)
  requests_B = np.zeros(batch, np.uint32)
  for row, (prompt, request) in enumerate(zip(rows, requests, strict=True)):
    tokens_BP[row, : len(prompt)] = prompt
    lengths_B[row] = len(prompt)
    requests_B[row] = request % 2**32
  return types.Prompts(
    tokens_BP=tokens_BP,
    lengths_B=lengths_B,
    requests_B=requests_B,
    real_B=np.arange(batch) < len(rows),
  )


def epoch_rows(size: int, *, seed: int, step: int, batch: int) -> list[int]:
  """Rows of a supervised step: each epoch is a permutation, its end short."""
  steps = -(-size // batch)
  epoch, place = divmod(step, steps)
  order = _permutation(size, seed, epoch)
  return order[place * batch : (place + 1) * batch].tolist()


def stream_requests(
  size: int, *, seed: int, step: int, batch: int
) -> list[int]:
  """Requests of a reinforcement step: permutations end to end, always full.

  A request is epoch * size + row. Its remainder is the row; as a number it
  names the row's random stream, so that a question which a batch holds twice,
  at the end of one epoch and the start of the next, is answered twice.
  """
  requests = []
  for place in range(step * batch, (step + 1) * batch):
    epoch, position = divmod(place, size)
    row = int(_permutation(size, seed, epoch)[position])
    requests.append(epoch * size + row)
  return requests


@functools.lru_cache(maxsize=8)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)
