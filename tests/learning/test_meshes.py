"""Meshes change speed, never results: whole steps, and what they cost."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from reft_jax.config import loading
from reft_jax.learning import forward
from reft_jax.learning import ppo as ppo_lib
from reft_jax.models import networks, partition
from reft_jax.planner import hlo, measuring, programs, shapes, subject
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import rollouts as rollouts_lib
from reft_jax.tasks import embedded

# The same results ------------------------------------------------------------

STEPS = 20
ONE = (1, 1, 1)
SETTINGS = (
  "data.max_response_tokens=6",
  f"reft.steps={STEPS}",
  # Six questions, twelve rollouts, updates of six, three at a time: of these
  # eight devices can share nothing alike.
  "reft.batch_size=12",
  "reft.samples_per_question=2",
  "reft.minibatch_size=6",
  "reft.micro_batch_size=3",
  "reft.kl_target=0.5",
  "reft.kl_horizon=1000",
  "reft.optimizer.learning_rate=1e-3",
)


def questions(shape, sampler_tensor=None):
  """A run on a mesh: its model has fewer kv heads than some have shards.

  Nor do its 163 tokens divide.
  """
  run = tiny.run(embedded.problems(16, seed=0), *SETTINGS)
  model = dataclasses.replace(
    tiny.CONFIG, vocab_size=run.engine.tokenizer.vocab_size, layers=1, heads=8
  )
  mesh = sampling_mesh = tiny.mesh(shape)
  if sampler_tensor:
    laid_out = layout.Layout(*shape, "layer", sampler_tensor)
    mesh, sampling_mesh = mesh_lib.make_meshes(laid_out)
  return dataclasses.replace(
    run,
    engine=dataclasses.replace(
      run.engine,
      mesh=mesh,
      sampling_mesh=sampling_mesh,
      networks=networks.Networks(model),
    ),
    train=run.test,
  )


def grade(response_BT):
  """What depends on every token."""
  return np.float32([1.0, 0.1, 0.0])[response_BT.sum(axis=1) % 3]


@functools.cache
def start():
  """Policy and critic, on the host."""
  network = questions(ONE).engine.networks
  policy = jax.jit(network.init)(jax.random.key(3))
  value = network.init_value(policy, "shared")
  return jax.device_get({"policy": policy, "value": value})


@functools.cache
def twenty_steps(shape, sampler_tensor=None):
  """Of ReFT on a mesh: what is sampled, and all that is told."""
  run, tokens, logged = questions(shape, sampler_tensor), [], []
  config, engine = run.config.reft, run.engine
  learner = ppo_lib.PPOLearner(
    *run.learner_arguments(),
    name="reft",
    policy=start()["policy"],
    reft=config,
    optimizer=config.optimizer,
    updates=4 * STEPS,
  )
  with jax.set_mesh(engine.mesh):
    learner.start({}, start(), config.kl_coef)
    source = rollouts_lib.Rollouts(engine, run.train, "reft", config)
    for step in range(source.steps):
      rollout = source.sample(learner.model(), step)
      assessment = learner.assess(rollout.tokens)
      tokens.append(jax.device_get(rollout.tokens.response_BT))
      assert len(tokens[-1]) == len(rollout.examples) == config.batch_size
      experience, scored = learner.score(
        rollout.tokens, assessment, grade(tokens[-1])
      )
      metrics = jax.device_get(scored | learner.update(experience, step))
      logged.append({name: mean.value() for name, mean in metrics.items()})
  return np.stack(tokens), logged


@pytest.mark.parametrize(
  ("shape", "sampler_tensor"),
  [
    ((1, 8, 1), None),
    ((4, 2, 1), None),
    ((1, 2, 4), None),
    ((1, 1, 8), None),
    ((1, 8, 1), 4),
  ],
)
def test_twenty_steps_are_the_same_on_every_mesh(shape, sampler_tensor, caplog):
  tokens, told = twenty_steps(ONE)
  partition._log_replicated.cache_clear()
  with caplog.at_level(logging.WARNING):
    same_tokens, same_told = twenty_steps(shape, sampler_tensor)
  np.testing.assert_array_equal(same_tokens, tokens)
  for step, (means, same) in enumerate(zip(told, same_told, strict=True)):
    assert same == pytest.approx(means, rel=1e-5, abs=1e-5), step
  # It has learnt, and does not say the same again and again.
  assert told[-1]["kl"] > 1e-3
  assert len({tuple(row) for row in tokens.reshape(-1, 6)}) > 200
  # What does not divide is named; it lies whole on every device.
  said = {record.getMessage() for record in caplog.records}
  tensor = shape[2]
  for letter, size in (("lm_DV: V", 163), ("k_DKH: K", 2)):
    line = f"{letter}={size} does not divide by the mesh axis tensor={tensor};"
    assert (f"{line} replicated there." in said) == (size % tensor > 0)


# What it costs ---------------------------------------------------------------

ROWS, SLOTS = 64, 64
HIDDEN_BYTES = ROWS * SLOTS * 32 * 4


def compiled(name, shape, model, *settings):
  """A program of a ReFT step, compiled for a mesh."""
  config = loading.load(
    ["smoke"],
    [
      "stages=[base,reft]",
      f"data.max_prompt_tokens={SLOTS // 2}",
      f"data.max_response_tokens={SLOTS // 2}",
      *settings,
    ],
  )
  mesh = tiny.mesh(shape)
  found = {}

  def handle(program):
    if program.name == name:
      with jax.set_mesh(mesh):
        traced = program.function.trace(*program.arguments, **program.keywords)
        found[name] = traced.lower().compile()
    return measuring.count(program)[1]

  some = subject.Subject(config, model, "tiny", 100)
  programs.reinforced(shapes.Shapes(some, mesh), handle)
  return found[name]


@functools.cache
def spread(name, shape):
  """The same of a model whose activations are larger than its weights."""
  model = dataclasses.replace(
    tiny.CONFIG, width=32, heads=8, kv_heads=8, ffn=64, vocab_size=64
  )
  return compiled(
    name,
    shape,
    model,
    *(f"reft.{size}={ROWS}" for size in ("batch_size", "minibatch_size")),
  )


def temporaries(program):
  return program.memory_analysis().temp_size_in_bytes


def collectives(name, shape):
  return hlo.collectives(hlo.parse(spread(name, shape).as_text()))


def test_eight_devices_need_an_eighth_of_the_temporaries():
  ratio = temporaries(spread("update", (1, 8, 1))) / temporaries(
    spread("update", ONE)
  )
  assert ratio < 0.2


@pytest.mark.parametrize(
  ("name", "count"),
  [
    # In each of two epochs seven weights of each of two layers, the table and
    # the head are gathered, and gradients summed; the experience once.
    ("update", {"all-gather": 45, "all-reduce": 10}),
    # Whether all have ended, and what the host may know of them.
    ("decode", {"all-gather": 3, "all-reduce": 2}),
  ],
)
def test_no_collectives_but_these(name, count):
  found = hlo.by_kind(collectives(name, (1, 8, 1)))
  assert {each.kind: each.count for each in found} == count


def test_no_activations_are_gathered():
  gathered = [
    each.payload
    for each in collectives("update", (1, 8, 1))
    if each.kind in ("all-gather", "all-to-all")
  ]
  assert gathered
  assert max(gathered) < 0.1 * HIDDEN_BYTES


def dense(logits_fn, hidden_BTD, tokens_BT, *, temperature, chunk):
  """`logprobs.of_tokens` of all logits at once."""
  del chunk
  table_BTV = jax.nn.log_softmax(logits_fn(hidden_BTD) / temperature)
  logprobs_BT = jnp.take_along_axis(table_BTV, tokens_BT[..., None], axis=-1)[
    ..., 0
  ]
  return logprobs_BT, -jnp.sum(jnp.exp(table_BTV) * table_BTV, axis=-1)


def test_an_update_never_holds_all_logits(monkeypatch):
  update = functools.partial(
    compiled,
    "update",
    ONE,
    dataclasses.replace(tiny.CONFIG, layers=1, vocab_size=32_000),
    "reft.batch_size=16",
    "reft.minibatch_size=16",
    "model.logit_chunk=16",
  )
  ours = temporaries(update())
  monkeypatch.setattr(forward.logprobs, "of_tokens", dense)
  naive = temporaries(update())
  assert naive > 16 * (SLOTS // 2) * 32_000 * 4  # All logits, at least once.
  assert ours < 0.15 * naive
