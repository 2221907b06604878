"""A run's folder as training leaves it, though its models know nothing."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import optax
import tiny

from reft_jax.config import loading
from reft_jax.learning import learner as learner_lib
from reft_jax.models import networks
from reft_jax.run import setup
from reft_jax.runtime import checkpoints


def write(
  folder: pathlib.Path, settings: Sequence[str]
) -> tuple[networks.Networks, dict[str, Any]]:
  """Writes a run's settings and models; returns its network and the models."""
  folder.mkdir()
  config = loading.load(["embedded"], settings)
  (folder / "config.yaml").write_text(loading.to_yaml(config))
  tokenizer, network = setup.open_model(config)
  run = tiny.change(
    tiny.run([], *settings), networks=network, tokenizer=tokenizer
  )
  init = jax.jit(network.init)
  models = {
    stage: jax.device_get(init(jax.random.key(seed)))
    for seed, stage in enumerate(("warmup", "reft"))
  }
  scorer = network.init_scorer(models["warmup"], jax.random.key(2))
  models["reward_model"] = jax.device_get(scorer)
  for stage, model in models.items():
    classifier = stage == "reward_model"
    run.save_model(folder / "models" / stage, model, {}, classifier=classifier)
  return network, models


def save_best(folder: pathlib.Path, step: int, model: Any) -> None:
  """Writes the parameters kept in a stage, such as `stages/sft/best`."""
  saved = checkpoints.Checkpoints(folder, keep=2)
  saved.save(step, model, {})
  saved.close()


def save_state(folder: pathlib.Path, step: int, params: Any) -> None:
  """Writes a checkpoint of training, such as `stages/sft/checkpoints`."""
  save_best(folder, step, learner_lib.init_state(params, optax.adam(1e-3)))
