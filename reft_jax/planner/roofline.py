"""The least time that a step can take: FLOPs, bytes and links, by formula.

Everything is per device and counts what the program computes, with padding and
masked attention: rows have all their slots, and a query attends to every
column. The least time of a phase is the longest of three: its products at the
chip's peak, its memory traffic at the memory's bandwidth, its collectives at
the links' bandwidth. The other two are taken to overlap with it. Kernel
launches, waits for the host and imperfect kernels come on top: good programs
reach about half of this bound, small models less.

Letters are those of models.config.
"""

import dataclasses
import operator
from collections.abc import Collection

from reft_jax.models import config as configs
from reft_jax.planner import hardware

_ADAM_BYTES = 28  # A float32 gradient, weight and two moments; three written.


@dataclasses.dataclass(frozen=True)
class Layout:
  """The sizes of a mesh's axes."""

  data: int = 1  # Copies of the weights.
  fsdp: int = 1  # Shards of the weights that share the batch.
  # Shards of heads, hidden units and vocabulary, where it splits them (Model).
  tensor: int = 1
  node: int = 0  # Devices that share fast links; 0: all do.

  @property
  def num_shards(self) -> int:
    """The number of parts into which a batch is split."""
    return self.data * self.fsdp

  @property
  def devices(self) -> int:
    """The number of devices."""
    return self.num_shards * self.tensor


@dataclasses.dataclass(frozen=True)
class Model:
  """The sizes of a model that cost time, summed over a tensor axis's devices.

  What the axis does not split is replicated, and counts once for each device.
  """

  block: int  # Weights of all blocks, which every token is multiplied with.
  head: int  # Weights of the LM head, used for each token with logits.
  embedding: int  # Weights that are looked up and not multiplied.
  total: int  # All weights.
  trainable: int  # Weights with a gradient.
  layers: int  # L.
  width: int  # D.
  heads: int  # N.
  queries: int  # N x H.
  keys: int  # K x H.
  ffn: int  # F.
  vocab: int  # V.
  number: int = 2  # Bytes of a number in the compute dtype.
  remat: str = "none"  # What the backward pass recomputes (models.networks).
  sums: int = 2  # The all-reduces of a layer along tensor.

  @classmethod
  def of(
    cls,
    shape: configs.ModelConfig,
    total: int,
    trainable: int | None = None,
    *,
    compute_dtype: str = "bfloat16",
    remat: str = "none",
    tensor: int = 1,
    unsplit: Collection[str] = (),
  ) -> "Model":
    """The sizes of an architecture of `total` weights, by default trainable.

    `tensor` is the size of the mesh's axis, `unsplit` which of the letters N,
    K, F and V it does not split.
    """
    L, D, H = shape.layers, shape.width, shape.head_size
    times = {letter: tensor if letter in unsplit else 1 for letter in "NKFV"}
    weights = {
      "N": 2 * L * D * shape.heads * H,
      "K": 2 * L * D * shape.kv_heads * H,
      "F": (2 + shape.gated) * L * D * shape.ffn,
      "V": shape.vocab_size * (shape.embed_size or D),
    }
    head = times["V"] * weights["V"]
    copies = sum((times[x] - 1) * size for x, size in weights.items())
    if not shape.tied_head:
      copies += head - weights["V"]
    if trainable is None or trainable == total:
      trainable = total + copies
    return cls(
      block=sum(times[x] * weights[x] for x in "NKF"),
      head=head,
      embedding=0 if shape.tied_head else head,
      total=total + copies,
      trainable=trainable,
      layers=L,
      width=D,
      heads=times["N"] * shape.heads,
      queries=times["N"] * shape.heads * H,
      keys=times["K"] * shape.kv_heads * H,
      ffn=times["F"] * shape.ffn,
      vocab=times["V"] * shape.vocab_size,
      number=2 if compute_dtype == "bfloat16" else 4,
      remat=remat,
      sums=2 - len({"N", "F"} & set(unsplit)),
    )


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one device: FLOPs, bytes of memory, bytes sent."""

  flops: float = 0.0
  memory: float = 0.0
  near: float = 0.0
  far: float = 0.0

  def __add__(self, other: "Work") -> "Work":
    ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
    return Work(*map(operator.add, ours, theirs))

  def __mul__(self, times: float) -> "Work":
    return Work(*(times * value for value in dataclasses.astuple(self)))


def seconds(
  work: Work, target: hardware.Target, dtype: str
) -> dict[str, float]:
  """The least time that each resource needs, with products in `dtype`."""
  chip = target.chip
  network = work.near / chip.link
  if work.far:
    network += work.far / chip.network
  peak = chip.peak if dtype == "bfloat16" else chip.peak_float32
  memory = work.memory / chip.bandwidth
  return {"compute": work.flops / peak, "memory": memory, "network": network}


def forward_flops(model: Model, tokens: int, columns: int) -> float:
  """A token needs 2 x weights, and 4 N H L for each column it attends to."""
  attention = 4 * columns * model.queries * model.layers
  return tokens * (2 * model.block + attention)


def head_flops(model: Model, tokens: int) -> float:
  """2 x V D for each token with logits."""
  return 2 * model.head * tokens


def cache_bytes(model: Model, rows: int, columns: int) -> int:
  """Keys and values of all layers."""
  return 2 * model.layers * rows * columns * model.keys * model.number


def activation_bytes(model: Model, tokens: int, columns: int) -> float:
  """Memory traffic of one forward's products, norms and softmax.

  9 D + 3 N H + 2 K H + 6 F numbers a token and layer are written or read, and
  N scores for each column: float32 written and read, then the same in the
  compute dtype.
  """
  numbers = 9 * model.width + 3 * model.queries + 2 * model.keys + 6 * model.ffn
  scores = model.heads * columns * (8 + 2 * model.number)
  return model.layers * tokens * (numbers * model.number + scores)


def publish(model: Model, layout: Layout) -> Work:
  """Masters to the sampler's copy: cast, and all-gathered along fsdp."""
  whole = model.total * model.number / layout.tensor
  masters = 4 * model.total / (layout.fsdp * layout.tensor)
  return Work(memory=masters + whole) + _gathered(whole, layout)


def prefill(model: Model, layout: Layout, rows: int, slots: int) -> Work:
  """One forward of the prompts, which fills the cache."""
  tokens = rows * slots
  cache = cache_bytes(model, rows, slots) / layout.num_shards
  traffic = (model.total * model.number + cache) / layout.tensor
  traffic += activation_bytes(model, tokens, slots) / layout.devices
  flops = forward_flops(model, tokens, slots) / layout.devices
  return Work(flops, traffic) + _summed(model, layout, tokens, 1)


def decode(model: Model, layout: Layout, rows: int, columns: int) -> Work:
  """One token of each row, which reads all columns of the cache."""
  weights = (model.total - model.embedding) * model.number
  logits = 3 * 4 * rows * model.vocab
  cache = cache_bytes(model, rows, columns)
  traffic = weights / layout.tensor + (cache + logits) / layout.devices
  flops = forward_flops(model, rows, columns) + head_flops(model, rows)
  return Work(flops / layout.devices, traffic) + _summed(model, layout, rows, 1)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Whole rows of prompt and response."""

  number: int  # How many.
  micro: int  # How many pass through the model at once.
  slots: int  # The tokens of each.
  predicted: int  # How many of these have logits.

  @property
  def tokens(self) -> int:
    """The tokens of all rows."""
    return self.number * self.slots

  @property
  def logits(self) -> int:
    """The tokens of all rows that have logits."""
    return self.number * self.predicted

  @property
  def passes(self) -> int:
    """The number of micro-batches."""
    return max(1, self.number // self.micro)


def read(model: Model, layout: Layout, rows: Rows) -> Work:
  """One forward of whole rows."""
  flops = forward_flops(model, rows.tokens, rows.slots)
  flops += head_flops(model, rows.logits)
  traffic = activation_bytes(model, rows.tokens, rows.slots) / layout.devices
  traffic += _head_bytes(model, layout, rows.logits)
  traffic += rows.passes * sum(_weight_bytes(model, layout))
  gathers = _gathered(model.total * model.number / layout.tensor, layout)
  return (
    Work(flops=flops / layout.devices, memory=traffic)
    + gathers * rows.passes
    + _summed(model, layout, rows.tokens, 1)
  )


def learn(
  model: Model, layout: Layout, rows: Rows, gather: str = "layer"
) -> Work:
  """Forward, backward and optimizer of one update's rows.

  The backward pass costs two forwards, or one where weights have no gradient.
  Rematerialisation costs another one, with remat=dots only that of attention;
  logits are always recomputed (ops.logprobs). Weights are all-gathered once
  where `gather` is `step`, else forward and backward in each micro-batch.
  """
  backward = 1 if model.trainable < model.total else 2
  recomputed = model.remat == "block"
  forward = forward_flops(model, rows.tokens, rows.slots)
  blocks = forward * (1 + backward + recomputed)
  if model.remat == "dots":
    blocks += rows.tokens * 4 * rows.slots * model.queries * model.layers
  head = head_flops(model, rows.logits) * (2 + backward)
  forwards = 3 + (model.remat != "none")
  activations = activation_bytes(model, rows.tokens, rows.slots)
  traffic = forwards * activations / layout.devices
  traffic += 3 * _head_bytes(model, layout, rows.logits)
  passes = rows.passes
  copied, read = _weight_bytes(model, layout)
  copies = 1 if gather == "step" else passes * forwards
  traffic += copies * copied + passes * forwards * read
  shards = layout.fsdp * layout.tensor
  # Gradients are written, then added to in each further micro-batch.
  traffic += (4 + 12 * (passes - 1)) * model.trainable / shards
  traffic += _ADAM_BYTES * model.trainable / shards
  gathers = _gathered(model.total * model.number / layout.tensor, layout)
  return (
    Work(flops=(blocks + head) / layout.devices, memory=traffic)
    + gathers * (1 if gather == "step" else 2 * passes)
    + _scattered(4 * model.trainable / layout.tensor, layout) * passes
    + _summed(model, layout, rows.tokens, forwards - 1)
  )


def _weight_bytes(model: Model, layout: Layout) -> tuple[float, float]:
  """Bytes of gathering masters to a copy, and of reading the copy once."""
  shards = layout.fsdp * layout.tensor
  whole = model.total * model.number / layout.tensor
  cast = 0.0 if layout.fsdp == 1 and model.number == 4 else whole
  return 4 * model.total / shards + cast, whole


def _head_bytes(model: Model, layout: Layout, tokens: int) -> float:
  """Logits in float32: written, read for the sum and for the choice."""
  return 3 * 4 * tokens * model.vocab / layout.devices


def _gathered(whole: float, layout: Layout) -> Work:
  """An all-gather of an array of `whole` bytes along fsdp."""
  return _sent(whole * (layout.fsdp - 1) / layout.fsdp, layout, layout.fsdp)


def _scattered(whole: float, layout: Layout) -> Work:
  """A reduce-scatter of gradients along fsdp, an all-reduce along data."""
  share = 2 * (layout.data - 1) / layout.data
  sent = share * whole / layout.fsdp
  return _gathered(whole, layout) + _sent(sent, layout, layout.num_shards)


def _summed(model: Model, layout: Layout, tokens: int, forwards: int) -> Work:
  """All-reduces of the stream along tensor, at most two in each layer."""
  share = 2 * (layout.tensor - 1) / layout.tensor
  stream = tokens / layout.num_shards * model.width * model.number
  sent = model.sums * model.layers * share * stream * forwards
  return _sent(sent, layout, layout.tensor)


def _sent(sent: float, layout: Layout, span: int) -> Work:
  """Bytes sent among `span` devices of an axis, near or far.

  `tensor` is the innermost axis of a mesh, so a group along fsdp or data spans
  `tensor` times as many neighbours.
  """
  reach = span if span == layout.tensor else span * layout.tensor
  far = bool(layout.node) and reach > layout.node
  return Work(far=sent) if far else Work(near=sent)
