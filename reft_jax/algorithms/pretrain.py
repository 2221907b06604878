"""The embedded run's base model: the stand-in for a pretrained one.

It is trained once on a generated corpus and kept as a Hugging Face folder
outside the run, for later runs with the same base settings.
"""

import dataclasses
import hashlib
import json
import pathlib

from reft_jax import files, types
from reft_jax.algorithms import sft
from reft_jax.config import schema
from reft_jax.learning import optim, steps
from reft_jax.models import config as model_config
from reft_jax.models.hf import pretrained, scratch
from reft_jax.run import context
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
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


def cached(config: schema.Config) -> pathlib.Path:
  """The folder that holds, or will hold, this config's base model."""
  root = files.expand_user(config.base.cache or "~/.cache/reft_jax")
  relevant = {
    "version": _VERSION,
    "seed": config.seed,
    "base": dataclasses.asdict(config.base) | {"cache": None},
    # The annotator's habits touch neither the corpus nor what it leaves out.
    "embedded": dataclasses.asdict(config.embedded) | {"merge": None},
    "dev_size": config.data.dev_size,
    "compute_dtype": config.model.compute_dtype,
    # Learned positions are as many as the context has tokens.
    "context": config.data.max_prompt_tokens + config.data.max_response_tokens,
  }
  text = json.dumps(relevant, sort_keys=True)
  return root / f"base-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def train_once(run: Run, name: str) -> tuple[loop_lib.Trained, bool]:
  """The base model and whether it was in the cache; it is there afterwards.

  Each machine may have a cache of its own: where theirs do not hold the same
  model, all train it and the first keeps it.
  """
  folder = cached(run.config)
  notes = folder / "training.json"
  kept = multihost.allgather_json(notes.read_text() if notes.exists() else None)
  if None not in kept and len(set(kept)) == 1:
    run.console.line(f"{name}: taken from {folder}")
    _, policy = pretrained.load(folder, mesh_lib.placement(run.mesh))
    return loop_lib.Trained(model=policy, **json.loads(notes.read_text())), True
  trained = train(run, name)
  run.save_model(folder, trained.model, trained.metadata())
  return trained, False


def train(run: Run, name: str) -> loop_lib.Trained:
  """Trains the base model on the corpus, next token by next token."""
  base = run.config.base
  optimizer = optim.build(base.optimizer, base.steps)
  schedule = optim.schedule(base.optimizer, base.steps)
  policy = run.networks.init(run.key(name, "init"))
  update = steps.supervised(
    run.networks,
    optimizer,
    micro_batch_size=base.batch_size,
    logit_chunk=run.config.model.logit_chunk,
  )
  with loop_lib.Loop(run, name, steps=base.steps) as loop:
    batch = sft.batches(run, corpus(run), base.batch_size)
    state, start = loop.restore(run.start({"policy": policy}, optimizer))
    for step in range(start, base.steps):
      state, metrics = update(state, batch(step))
      metrics["learning_rate"] = types.Mean.of(schedule(step))
      loop.end_step(step + 1, state, metrics)
    return loop.result(state, base.optimizer.learning_rate)


def corpus(run: Run) -> list[sft.Row]:
  """The documents as ids, each a target without a prompt, ending in EOS.

  No document holds a dev or test problem, used in this run or not.
  """
  settings = run.config.embedded
  splits = context.problems(run.config)
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
      [*splits["dev"].problems, *splits["test"].problems]
    ),
  )
  end = run.tokenizer.eos_ids[0]
  return [((), [*ids, end]) for ids in run.tokenizer.encode_all(texts)]
