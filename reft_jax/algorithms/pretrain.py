"""The embedded run's base model: the stand-in for a pretrained one.

It is trained once on a generated corpus and kept as a Hugging Face folder
outside the run, for later runs with the same base settings.
"""

import dataclasses
import json
import pathlib

from reft_jax import files, manifest
from reft_jax.algorithms import sft
from reft_jax.config import schema
from reft_jax.data import splits
from reft_jax.learning import supervised
from reft_jax.models import config as model_config
from reft_jax.models.hf import read as reader
from reft_jax.models.hf import scratch
from reft_jax.run import context
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost
from reft_jax.tasks import embedded

# Part of the cache's key: raise it when the corpus or the model changes.
_VERSION = 1


def architecture(
  config: schema.Config, vocab_size: int
) -> model_config.ModelConfig:
  """The base model's shape, with a tied head."""
  base, data = config.base, config.data
  return scratch.architecture(
    base.family,
    vocab_size=vocab_size,
    width=base.width,
    layers=base.layers,
    heads=base.heads,
    kv_heads=base.kv_heads,
    ffn=base.ffn,
    max_positions=data.max_prompt_tokens + data.max_response_tokens,
  )


def cache_folder(config: schema.Config) -> pathlib.Path:
  """The folder that holds, or will hold, this config's base model."""
  root = files.expand_user(config.base.cache or "~/.cache/reft_jax")
  described = manifest.Manifest(
    "base model",
    {
      "version": _VERSION,
      "seed": config.seed,
      "base": dataclasses.asdict(config.base) | {"cache": None},
      # The annotator's habits change neither the corpus nor what it excludes.
      "embedded": dataclasses.asdict(config.embedded) | {"merge": None},
      "dev_size": config.data.dev_size,
      "compute_dtype": config.model.compute_dtype,
      # Learned positions are as many as the context has tokens.
      "context": config.data.max_prompt_tokens
      + config.data.max_response_tokens,
    },
  )
  return root / f"base-{described.fingerprint}"


def train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """The base model, from the cache or trained; it is in the cache afterwards.

  Each machine may have a cache of its own: where these do not hold the same
  model, all processes train it and the lead keeps it.
  """
  folder = cache_folder(run.config)
  file = folder / "training.json"
  kept = multihost.allgather_json(file.read_text() if file.exists() else None)
  if None not in kept and len(set(kept)) == 1:
    run.console.line(f"{stage.name}: taken from {folder}")
    placement = mesh_lib.placement(run.engine.mesh)
    _, policy = reader.load(folder, placement)
    metadata = json.loads(file.read_text())
    return context.Trained(model=policy, **metadata, cached=True)
  trained = _train(run, stage)
  run.save_model(folder, trained.model, trained.metadata())
  return trained


def _train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """Trains the base model on the corpus, next token by next token."""
  base = run.config.base
  learner = supervised.SupervisedLearner(
    *run.learner_arguments(),
    name=stage.name,
    policy=run.engine.networks.init(run.key(stage.name, "init")),
    adapters=False,
    optimizer=base.optimizer,
    updates=base.steps,
    micro_batch=base.batch_size,
  )
  with loop_lib.Loop(run, stage, learner, steps=base.steps) as loop:
    batch = sft.epoch_batches(run, corpus(run), base.batch_size)
    for step in loop:
      metrics = learner.update(batch(step))
      loop.end_step(step, metrics | learner.learning_rate(step))
    return loop.result()


def corpus(run: context.Run) -> list[sft.Row]:
  """The documents as ids, each a target without a prompt, ending in EOS.

  No document holds a dev or test problem, used in this run or not.
  """
  settings, tokenizer = run.config.embedded, run.engine.tokenizer
  problems = splits.problems(run.config)
  texts = embedded.corpus(
    settings.documents,
    run.config.seed,
    noise=settings.noise,
    answer_phrase=settings.answer_phrase,
    drills=settings.drills,
    choices=settings.choices,
    programs=settings.programs,
    min_events=settings.min_events,
    max_events=settings.max_events,
    exclude=embedded.signatures(
      [*problems["dev"].problems, *problems["test"].problems]
    ),
  )
  eos = tokenizer.eos_ids[0]
  return [((), [*ids, eos]) for ids in tokenizer.encode_all(texts)]
