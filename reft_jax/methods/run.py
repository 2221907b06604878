"""What the stages of one run share, and how it is put together."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax

from reft_jax import batching, devices, metrics, terminal
from reft_jax import config as config_lib
from reft_jax import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.models import networks as networks_lib
from reft_jax.tasks import embedded, sources
from reft_jax.tasks.problem import Problem

# Test problems come from a stream of their own.
_TEST_SEED = 1_000_003


@dataclasses.dataclass(frozen=True)
class Run:
  """One run: its settings, its data as ids, its model, its outputs."""

  config: config_lib.Config
  directory: pathlib.Path
  mesh: jax.sharding.Mesh
  networks: networks_lib.Networks
  tokenizer: tokenizer_lib.Tokenizer
  train: Sequence[batching.Example]
  dev: Sequence[batching.Example]
  test: Sequence[batching.Example]
  recorder: metrics.Recorder
  terminal: terminal.Terminal

  def key(self, *path: int | str) -> jax.Array:
    """The random key of a purpose, such as `key("reft", "update", step)`.

    A function of the seed and the path alone: a resumed run draws what the
    unbroken one would have drawn.
    """
    key = jax.random.key(self.config.seed)
    for part in path:
      number = part if isinstance(part, int) else zlib.crc32(part.encode())
      key = jax.random.fold_in(key, number)
    return key

  @functools.cached_property
  def prompt_slots(self) -> int:
    """P: the longest prompt, rounded up; one width, so one compilation."""
    examples = (*self.train, *self.dev, *self.test)
    return batching.round_up(max(len(each.prompt) for each in examples))

  @functools.cached_property
  def publish(self) -> Any:
    """Jitted: a policy's fp32 shards to what the sampler reads."""
    return jax.jit(self.networks.publish)

  def place(self, params: Any) -> Any:
    """Parameters onto their shards, always as new arrays."""
    return jax.tree.map(lambda x: x.copy(), devices.put(self.mesh, params))

  def prompts(
    self,
    examples: Sequence[batching.Example],
    requests: Sequence[int],
    batch: int,
  ):
    """Prompts on the devices; `requests` names the rows' random streams."""
    host = batching.prompts(
      [example.prompt for example in examples],
      requests,
      batch=batch,
      slots=self.prompt_slots,
      pad_id=self.tokenizer.pad_id,
    )
    return devices.put_batch(self.mesh, host)


def problems(
  config: config_lib.Config,
) -> tuple[list[Problem], list[Problem], list[Problem]]:
  """The problems to train on, to choose models on and to test on."""
  data, seed = config.data, config.seed
  if data.train == embedded.NAME:
    settings = config.embedded
    events = {
      "min_events": settings.min_events,
      "max_events": settings.max_events,
    }
    test = embedded.problems(settings.test, seed + _TEST_SEED, **events)
    train = embedded.problems(
      settings.questions + data.dev_size,
      seed,
      merge=settings.merge,
      exclude=embedded.signatures(test),
      **events,
    )
  else:
    train, test = sources.load(data.train, data.task), []
  if data.test:
    test = sources.load(data.test, data.task)
  train, dev = sources.carve_dev(train, data.dev_size, seed)
  return train[: data.train_limit], dev, test[: data.test_limit]


def encoded(
  config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> tuple[list[list[batching.Example]], list[str]]:
  """Train, dev and test examples, and what had to be left out of each."""
  splits, notes = [], []
  names = ("train", "dev", "test")
  for name, some in zip(names, problems(config), strict=True):
    examples, dropped = batching.encode(
      some,
      tokenizer,
      reasoning=config.data.reasoning,
      add_bos=config.data.add_bos,
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
    )
    if dropped:
      notes.append(
        f"{name}: {dropped} of {len(some)} problems are left out; their "
        "prompts or answers are longer than data.max_prompt_tokens="
        f"{config.data.max_prompt_tokens} or data.max_response_tokens="
        f"{config.data.max_response_tokens}."
      )
    if some and not examples:
      raise UserError(f"{notes[-1]} Nothing is left.")
    splits.append(examples)
  return splits, notes
