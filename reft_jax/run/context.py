"""What the stages of one run share, and how it is put together."""

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches, encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import folders
from reft_jax.learning import steps
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.models.hf import peft
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import metrics
from reft_jax.sampling import sampler as sampler_lib
from reft_jax.tasks import embedded, sources
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks.problem import Problem

# Test problems come from a stream of their own.
_TEST_SEED = 1_000_003


@dataclasses.dataclass(frozen=True)
class Run:
  """One run: its settings, its data as ids, its model, its outputs.

  `sampling_mesh` has the devices of `mesh`, laid out as decoding likes it.
  """

  config: schema.Config
  directory: pathlib.Path
  mesh: jax.sharding.Mesh
  sampling_mesh: jax.sharding.Mesh
  networks: networks_lib.Networks
  tokenizer: tokenizer_lib.Tokenizer
  train: Sequence[encode.Example]
  dev: Sequence[encode.Example]
  test: Sequence[encode.Example]
  grader: grader_lib.Grader
  recorder: metrics.Recorder | metrics.Silent
  console: console_lib.Console

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
    return batches.round_up(max(len(each.prompt) for each in examples))

  def publish(self, policy: Any) -> Any:
    """A policy's fp32 shards as what the sampler reads, where it reads it."""
    with jax.set_mesh(self.sampling_mesh):
      return self._publish(policy)

  @functools.cached_property
  def _publish(self) -> Callable[[Any], Any]:
    return jax.jit(self.networks.publish)

  def sample(
    self,
    sampler: sampler_lib.Sampler,
    published: Any,
    prompts: types.Prompts,
    key: jax.Array,
    on_ended: sampler_lib.OnEnded,
  ) -> types.Rollout:
    """A sampler's rollout, on the mesh on which it is learnt from."""
    if self.sampling_mesh is self.mesh:
      return sampler(published, prompts, key, on_ended=on_ended)
    bits = jax.device_get(jax.random.key_data(key))
    with jax.set_mesh(self.sampling_mesh):
      # A key, too, belongs to the mesh on which it was made.
      key = jax.random.wrap_key_data(bits)
      sampled = sampler(published, prompts, key, on_ended=on_ended)
    return mesh_lib.put_batch(self.mesh, sampled)

  def start(
    self,
    params: Any,
    optimizer: optax.GradientTransformation,
    kl_coef: float = 0.0,
  ) -> types.TrainState:
    """The state before the first update, each part made on its shards.

    The parameters are copied: updates donate the state.
    """
    init = functools.partial(
      steps.init_state, optimizer=optimizer, kl_coef=kl_coef
    )
    return self.init_sharded(init, mesh_lib.put(self.mesh, params))

  def init_sharded(self, init: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of arrays, each part on its shards."""
    shardings = mesh_lib.shardings(self.mesh, jax.eval_shape(init, *arguments))
    return jax.jit(init, out_shardings=shardings)(*arguments)

  def split_trainable(self, policy: Any, stage: str) -> tuple[Any, Any]:
    """A policy as what a stage leaves alone, and what it learns.

    That is nothing and the policy or, with LoRA, the policy and an adapter of
    it before its first update; on the mesh.
    """
    policy, lora = mesh_lib.put(self.mesh, policy), self.config.lora
    if not lora.rank:
      return {}, policy
    init = functools.partial(
      lora_lib.init,
      self.networks.config,
      rank=lora.rank,
      targets=lora.targets,
    )
    return policy, self.init_sharded(init, self.key(stage, "adapter"))

  def save_model(
    self,
    folder: pathlib.Path,
    model: Any,
    notes: Mapping[str, Any],
    *,
    classifier: bool = False,
    adapter: peft.Adapter | None = None,
  ) -> None:
    """Writes a Hugging Face folder in one move, whole or not at all.

    Beside model and tokenizer it holds `notes` as training.json. The model is a
    policy, or a `classifier`; an `adapter` that was merged into it is written
    to a folder of its own in there.
    """
    folders.write(
      folder,
      self.networks.config,
      self.tokenizer,
      model,
      classifier=classifier,
      adapter=adapter,
      texts={"training.json": json.dumps(notes, indent=2) + "\n"},
    )

  def prompts(
    self,
    examples: Sequence[encode.Example],
    requests: Sequence[int],
    batch: int,
  ) -> types.Prompts:
    """Prompts where they are answered; `requests` names the random streams."""
    host = batches.prompts(
      [example.prompt for example in examples],
      requests,
      batch=batch,
      slots=self.prompt_slots,
      pad_id=self.tokenizer.pad_id,
    )
    return mesh_lib.put_batch(self.sampling_mesh, host)


def problems(config: schema.Config) -> dict[str, sources.Loaded]:
  """The problems to train on, to choose models on and to test on.

  Raises:
    UserError: they cannot be read, or the task is not known.
  """
  data = config.data
  if data.train == embedded.NAME:
    train, test = map(sources.Loaded, _generated(config))
  else:
    train, test = _load(data.train, data), sources.Loaded([])
  if data.test:
    test = _load(data.test, data)
  rest, dev = sources.carve_dev(train.problems, data.dev_size, config.seed)
  return {
    "train": dataclasses.replace(train, problems=rest),
    "dev": sources.Loaded(dev),
    "test": test,
  }


def _load(source: str, data: schema.DataConfig) -> sources.Loaded:
  return sources.load(source, data.task, calculator_marks=data.calculator_marks)


def _generated(
  config: schema.Config,
) -> tuple[list[Problem], list[Problem]]:
  """Embedded problems to learn from, dev's included, and to test on."""
  data, settings, seed = config.data, config.embedded, config.seed
  task = data.task or embedded.NAME
  if task not in embedded.TASKS:
    raise UserError(
      f"data.task={task}: data.train=embedded has the tasks "
      f"{', '.join(embedded.TASKS)}; choose one of them, or other data."
    )
  kind = {
    "choice": task == embedded.CHOICE,
    "reasoning": data.reasoning,
    "min_events": settings.min_events,
    "max_events": settings.max_events,
  }
  test = embedded.problems(settings.test, seed + _TEST_SEED, **kind)
  train = embedded.problems(
    settings.questions + data.dev_size,
    seed,
    merge=settings.merge,
    exclude=embedded.signatures(test),
    **kind,
  )
  return train, test


def encoded(
  config: schema.Config, tokenizer: tokenizer_lib.Tokenizer
) -> dict[str, encode.Encoded]:
  """The splits `train`, `dev` and `test` as ids, as many as are wanted.

  Raises:
    UserError: if all prompts of a split are too long.
  """
  data = config.data
  limits = {"train": data.train_limit, "dev": None, "test": data.test_limit}
  splits = {}
  for name, split in problems(config).items():
    encoded_split = encode.encode(
      split.problems[: limits[name]],
      tokenizer,
      reasoning=data.reasoning,
      add_bos=data.add_bos,
      max_prompt_tokens=data.max_prompt_tokens,
      max_response_tokens=data.max_response_tokens,
      chat_template=data.chat_template,
      system_prompt=data.system_prompt,
    )
    splits[name] = dataclasses.replace(encoded_split, left_out=split.left_out)
    if split.problems and not splits[name].examples:
      raise UserError(
        f"every prompt of the {name} split is longer than "
        f"data.max_prompt_tokens={data.max_prompt_tokens}; raise it."
      )
  return splits
