"""Optimizers and learning-rate schedules, built from their config."""

from typing import Any

import jax
import optax
from optax import contrib

from reft_jax.config import schema


def schedule(
  config: schema.OptimizerConfig, steps: int, *, peak: float | None = None
) -> optax.Schedule:
  """Learning rate by optimizer update.

  Linear warm-up over `warmup_fraction` of the updates, then constant, linear
  or cosine decay to `final_fraction` of the peak (paper section 4.3: 10 %
  warm-up, linear decay to 0 in supervised training; constant in PPO).

  Deviation: counts optimizer updates in PPO too; the released code steps its
  (constant) schedule once a rollout batch.
  """
  peak = config.learning_rate if peak is None else peak
  warmup = int(config.warmup_fraction * steps)
  rest = max(steps - warmup, 1)
  end = peak * config.final_fraction
  match config.schedule:
    case "constant":
      decay = optax.constant_schedule(peak)
    case "linear":
      decay = optax.linear_schedule(peak, end, rest)
    case "cosine":
      decay = optax.cosine_decay_schedule(peak, rest, config.final_fraction)
  if not warmup:
    return decay
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup), decay], [warmup]
  )


def build(
  config: schema.OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Gradient clipping by global norm, then AdamW or Muon.

  Deviation: weight decay, 0 in the paper, is for all parameters alike; the
  released code spares biases and LayerNorm weights.

  With Muon, what is no matrix of a block gets optax's choice for it, Adam
  with Nesterov momentum and its own learning rate.
  """
  clip = (
    optax.identity()
    if config.clip_norm is None
    else optax.clip_by_global_norm(config.clip_norm)
  )
  rate = schedule(config, steps)
  if config.kind == "adamw":
    rule = optax.adamw(
      rate,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    )
  else:
    rule = contrib.muon(
      rate,
      weight_decay=config.weight_decay,
      adam_b1=config.b1,
      adam_b2=config.b2,
      adam_weight_decay=config.weight_decay,
      adam_learning_rate=schedule(
        config, steps, peak=config.adam_learning_rate
      ),
      muon_weight_dimension_numbers=_matrices,
    )
  return optax.chain(clip, rule)


def _matrices(params: Any) -> Any:
  """Which axes of a block's weight are its inputs and which its outputs.

  Read off the letters of its name. Embeddings, heads, norms and biases are
  None: Adam's.
  """

  def axes_of(path: Any, leaf: Any) -> Any:
    names = [entry.key for entry in path]
    *words, letters = names[-1].split("_")
    vector = {"bias", "norm"} & set(words)
    matrix = letters.isupper() and len(letters) > 1 and not vector
    if "blocks" not in names or not matrix:
      return None
    axes = tuple(range(leaf.ndim - len(letters), leaf.ndim))
    # q_DNH reads D and o_NHD writes it; q_b_RNH reads an adapter's R.
    split = 1 if letters[0] in "DR" else -1
    return contrib.MuonDimensionNumbers(axes[:split], axes[split:])

  return jax.tree_util.tree_map_with_path(axes_of, params)
