"""A model small enough to test with, and rollouts of it."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import types
from reft_jax.config import loading
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import config, networks
from reft_jax.run import context
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import metrics
from reft_jax.sampling import engine as engine_lib
from reft_jax.sampling import sampler as sampler_lib
from reft_jax.tasks import embedded, grader

CONFIG = config.ModelConfig(
  vocab_size=29,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_size=4,
  ffn=24,
  init_scale=0.35,
)
PROMPT_SLOTS, RESPONSE_SLOTS = 6, 7
EOS = (3,)
PAD = 0


def make(**changes) -> networks.Networks:
  return networks.Networks(CONFIG, **changes)


_init = jax.jit(make().init)


@functools.cache
def policy(seed: int = 0):
  return _init(jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def logits(network: networks.Networks, policy, tokens_BS, lengths_B):
  """fp32 logits_BSV of a full forward."""
  hidden_BSD = network.hidden(policy["trunk"], tokens_BS, lengths_B)
  return network.logits(policy, hidden_BSD)


@functools.cache
def sampler(temperature: float = 1.0, samples: int = 1, eos=EOS, pad=PAD):
  return sampler_lib.Sampler(
    make(),
    response_tokens=RESPONSE_SLOTS,
    eos_ids=eos,
    pad_id=pad,
    temperature=temperature,
    samples=samples,
    chunk=3,
  )


def mesh(shape: tuple[int, int, int]) -> jax.sharding.Mesh:
  """Data x fsdp x tensor, of as many devices as that takes."""
  data, fsdp, tensor = shape
  return mesh_lib.make_mesh(
    data=data,
    fsdp=fsdp,
    tensor=tensor,
    devices=jax.devices()[: data * fsdp * tensor],
  )


def run(problems, *settings: str, executor=None, **fields) -> context.Run:
  """A run of the embedded experiment whose test problems are these.

  Args:
    problems: the test problems.
    *settings: as on the command line.
    executor: what runs programs.
    **fields: fields of the run, such as its `directory`.
  """
  options = loading.load(["embedded"], settings)
  words = options.embedded
  tokenizer = tokenizer_lib.wrap(
    embedded.tokenizer(choices=words.choices > 0, programs=words.programs > 0)
  )
  network = networks.Networks(
    dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, layers=1)
  )
  examples = encode.encode(
    problems,
    tokenizer,
    reasoning=options.data.reasoning,
    add_bos=False,
    max_prompt_tokens=200,
    max_response_tokens=100,
  ).examples
  engine = engine_lib.Engine(
    config=options,
    networks=network,
    mesh=mesh((1, 2, 1)),
    sampling_mesh=mesh((1, 2, 1)),
    tokenizer=tokenizer,
    grader=grader.Grader(
      options.data.reasoning, options.data.answers, executor
    ),
    prompt_slots=engine_lib.prompt_slots(examples) if examples else 0,
  )
  outputs = {
    "directory": pathlib.Path(),
    "recorder": metrics.Silent(),
    "console": console_lib.Console(quiet=True),
  }
  splits = {"train": [], "dev": [], "test": examples}
  return context.Run(
    config=options, engine=engine, **{**outputs, **splits, **fields}
  )


def change(run: context.Run, **fields) -> context.Run:
  """The same run with other fields of its engine."""
  return dataclasses.replace(
    run, engine=dataclasses.replace(run.engine, **fields)
  )


def prompts(batch: int = 8, seed: int = 0) -> types.Prompts:
  rng = np.random.default_rng(seed)
  lengths_B = rng.integers(1, PROMPT_SLOTS + 1, batch).astype(np.int32)
  tokens_BP = rng.integers(0, CONFIG.vocab_size, (batch, PROMPT_SLOTS))
  slots = np.arange(PROMPT_SLOTS)[None]
  return types.Prompts(
    tokens_BP=np.where(slots < lengths_B[:, None], tokens_BP, PAD).astype(
      np.int32
    ),
    lengths_B=lengths_B,
    requests_B=np.arange(batch, dtype=np.uint32) + 100,
    real_B=np.ones(batch, bool),
  )


def sample(
  temperature: float = 1.0, batch: int = 8, seed: int = 0, **options
) -> types.Rollout:
  """A rollout in which some rows end and some are cut."""
  return sampler(temperature, **options)(
    jax.jit(make().publish)(policy(seed)),
    prompts(batch, seed),
    jax.random.key(seed),
  )


def take(tree, rows):
  """Some rows of everything that has rows."""
  return jax.tree.map(lambda x: jnp.asarray(x)[jnp.asarray(rows)], tree)


def widen(some: types.Rollout, prompt: int = 3, response: int = 2):
  """The same rollout with more padding, of an id that means something."""

  def pad(x, slots):
    return jnp.pad(x, ((0, 0), (0, slots)), constant_values=EOS[0])

  return some.replace(
    prompt_BP=pad(some.prompt_BP, prompt),
    response_BT=pad(some.response_BT, response),
    logprobs_BT=jnp.pad(some.logprobs_BT, ((0, 0), (0, response))),
  )
