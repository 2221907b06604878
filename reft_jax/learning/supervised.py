"""Supervised updates: cross-entropy of solutions to be imitated."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reft_jax import types
from reft_jax.learning import forward, means, microbatch
from reft_jax.learning import learner as learner_lib
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib
from reft_jax.models import partition
from reft_jax.ops import logprobs, masked


class SupervisedLearner(learner_lib.Learner):
  """Trains a policy to imitate.

  Args:
    policy: where it starts from.
    micro_batch: rows of a batch computed at a time.
    weights: by name, what each of several batches weighs in the loss; None:
      there is one batch.
    adapters: whether the settings' LoRA applies; else all weights are trained.
    **options: as of `Learner`.
  """

  def __init__(
    self,
    *shared: Any,
    policy: Any,
    micro_batch: int,
    weights: dict[str, float] | None = None,
    adapters: bool = True,
    **options: Any,
  ):
    super().__init__(*shared, **options)
    frozen, trainable = (
      self.split_trainable(policy) if adapters else ({}, policy)
    )
    self.start(frozen, {"policy": trainable})
    del frozen, trainable  # The state has its own.
    self._update = make_update(
      self.networks,
      self.optimizer,
      micro_batch=micro_batch,
      logit_chunk=self.config.model.logit_chunk,
      weights=weights,
    )

  def update(self, *batches: types.SupervisedBatch) -> means.Metrics:
    """One optimizer update; the metrics of its batches."""
    self.state, metrics = self._update(self.state, *batches, base=self.base)
    return metrics


def make_update(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  *,
  micro_batch: int,
  logit_chunk: int = 1024,
  weights: dict[str, float] | None = None,
) -> Callable[..., tuple[types.TrainState, means.Metrics]]:
  """`update(state, *batches, base)`: cross-entropy of the answer and its EOS.

  The loss of a batch is the mean over all its target tokens. Deviation: the
  released code takes the mean of the means of its micro-batches.

  With several batches the loss is a weighted sum of theirs: online
  self-training's is CE(correct) / 2 + CE(annotated) / 2 (released code,
  `train_rl_sl.py`). A batch without targets adds 0 and the others keep their
  weight.

  Args:
    networks: the model.
    optimizer: what turns gradients into updates.
    micro_batch: rows of a batch computed at a time.
    logit_chunk: tokens for which a device has logits at a time.
    weights: of several batches, in their order, by name; each has its metric
      "loss/NAME" beside the "loss" of all. None: there is one batch.
  """

  def loss_fn(
    params: Any, batch: types.SupervisedBatch, *, base: Any, weight: jax.Array
  ) -> tuple[jax.Array, types.Mean]:
    policy = lora_lib.join(base, params)["policy"]
    hidden_BSD = networks.hidden(
      policy["trunk"], batch.tokens_BS, batch.lengths_B
    )
    logprobs_BS, _ = logprobs.of_tokens(
      functools.partial(networks.logits, policy),
      hidden_BSD[:, :-1],
      batch.tokens_BS[:, 1:],
      chunk=logit_chunk * partition.num_shards(),
    )
    targets_BS = batch.targets_BS[:, 1:]
    total = -masked.total(logprobs_BS, targets_BS)
    return weight * total, types.Mean(total=total, count=jnp.sum(targets_BS))

  def gradient(
    params: Any, batch: types.SupervisedBatch, base: Any, weight: float
  ) -> tuple[Any, types.Mean]:
    targets = jnp.maximum(jnp.sum(batch.targets_BS[:, 1:]), 1)
    return microbatch.gradient(
      networks,
      functools.partial(loss_fn, base=base, weight=weight / targets),
      params,
      batch,
      micro_batch,
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: types.TrainState,
    *batches: types.SupervisedBatch,
    base: Any = None,
  ) -> tuple[types.TrainState, means.Metrics]:
    padded = [microbatch.pad_rows(batch, micro_batch) for batch in batches]
    base = networks.working_copy(base)
    shares = list(weights.values()) if weights else [1.0]
    grads, losses = zip(
      *(
        gradient(state.params, batch, base, share)
        for batch, share in zip(padded, shares, strict=True)
      ),
      strict=True,
    )
    total = jax.tree.map(lambda *leaves: sum(leaves), *grads)
    if not weights:
      metrics = {"loss": losses[0]}
    else:
      loss = sum(
        share * each.total / jnp.maximum(each.count, 1)
        for share, each in zip(shares, losses, strict=True)
      )
      metrics = {"loss": means.single(loss)}
      for name, each in zip(weights, losses, strict=True):
        metrics[f"loss/{name}"] = each
    return learner_lib.apply_gradient(optimizer, state, total, metrics)

  return update


@jax.jit
def imitations(
  rollout: types.Rollout, correct_B: jax.Array
) -> types.SupervisedBatch:
  """The sampled solutions that are correct, to be imitated as they are.

  Rows that are not correct stay, without targets; S = P + T.
  """
  tokens_BS = forward.joined(rollout)
  slots_1S = jnp.arange(tokens_BS.shape[1])[None, :]
  sampled_BS = (slots_1S >= rollout.prompt_lengths_B[:, None]) & (
    slots_1S < rollout.lengths_B[:, None]
  )
  batch = types.SupervisedBatch(
    tokens_BS=tokens_BS,
    lengths_B=rollout.lengths_B,
    targets_BS=sampled_BS & correct_B[:, None],
  )
  return jax.tree.map(partition.pin_or_replicate, batch)
