"""Rows of ids as padded arrays, and the order of the rows.

The order is stateless: the seed and n alone give the rows of step n, so
resuming needs no iterator state.
"""

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from reft_jax import types


def round_up(size: int, multiple: int = 8) -> int:
  """The next multiple: few distinct widths mean few compilations."""
  return -(-size // multiple) * multiple


def micro_batches(rows: int, micro: int, num_shards: int) -> tuple[int, int]:
  """The padded numbers of rows of one micro-batch, and of all of them.

  Args:
    rows: the rows before padding.
    micro: the rows wanted in a micro-batch.
    num_shards: the shards of a micro-batch, each with the same number of rows.
  """
  size = round_up(min(micro, rows), num_shards)
  return size, round_up(rows, size)


def width(lengths: Iterable[int], *, bucket: int, most: int) -> int:
  """The slots for rows of these lengths: a multiple of `bucket`, or `most`.

  Few distinct widths mean few compilations and little padding.
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
  """The rows of a supervised step; an epoch's last batch may be short."""
  steps = -(-size // batch)
  epoch, place = divmod(step, steps)
  order = _permutation(size, seed, epoch)
  return order[place * batch : (place + 1) * batch].tolist()


def stream_requests(
  size: int, *, seed: int, step: int, batch: int
) -> list[int]:
  """The requests of a reinforcement step: a full batch across epochs.

  A request is epoch * size + row. It selects the random stream of the response,
  so a question that a batch holds twice, at the end of one epoch and the start
  of the next, gets two different responses.
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
