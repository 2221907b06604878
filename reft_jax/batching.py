"""Rows of ids as padded arrays, and the order in which rows are visited.

The order is stateless: which rows make step n follows from the seed and n
alone, so resuming needs no iterator state.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from reft_jax import tokenizer as tokenizer_lib
from reft_jax import types
from reft_jax.tasks import prompts as prompt_texts
from reft_jax.tasks.problem import Problem


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem with its token ids, made once and used everywhere.

  `target` ends in EOS and is None where the problem has no rationale.
  """

  problem: Problem
  prompt: tuple[int, ...]
  target: tuple[int, ...] | None


def encode(
  problems: Sequence[Problem],
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  reasoning: str,
  add_bos: bool,
  max_prompt_tokens: int,
  max_response_tokens: int,
) -> tuple[list[Example], int]:
  """Examples, and how many were dropped for being too long.

  Prompt and target are tokenised apart and joined as ids, the same way for
  supervised training and for rollouts (paper: separate tokenisation).

  Deviation: too long prompts and targets are dropped and counted; the
  released code cuts them, which removes the trigger that asks for an answer.
  """
  bos = (tokenizer.bos_id,) if add_bos else ()
  kept, dropped = [], 0
  for problem in problems:
    prompt = bos + tuple(
      tokenizer.encode(prompt_texts.prompt(problem, reasoning))
    )
    target = None
    if problem.rationale is not None:
      text = prompt_texts.target(problem, reasoning)
      target = (*tokenizer.encode(text), tokenizer.eos_ids[0])
    too_long = len(prompt) > max_prompt_tokens or (
      target is not None and len(target) > max_response_tokens
    )
    if too_long:
      dropped += 1
    else:
      kept.append(Example(problem, prompt, target))
  return kept, dropped


def round_up(size: int, multiple: int = 8) -> int:
  """The next multiple: few distinct widths, few compilations."""
  return -(-size // multiple) * multiple


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
    requests_B[row] = request
  return types.Prompts(
    tokens_BP=tokens_BP, lengths_B=lengths_B, requests_B=requests_B
  )


def epoch_rows(size: int, *, seed: int, step: int, batch: int) -> list[int]:
  """Rows of a supervised step: each epoch is a permutation, its end short."""
  steps = -(-size // batch)
  epoch, place = divmod(step, steps)
  order = _permutation(size, seed, epoch)
  return order[place * batch : (place + 1) * batch].tolist()


def stream_rows(size: int, *, seed: int, step: int, batch: int) -> list[int]:
  """Rows of a reinforcement step: permutations end to end, always full."""
  positions = range(step * batch, (step + 1) * batch)
  return [
    int(_permutation(size, seed, place // size)[place % size])
    for place in positions
  ]


@functools.lru_cache(maxsize=8)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)
