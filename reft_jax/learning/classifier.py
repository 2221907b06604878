"""The reward model's updates: is a solution correct?"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reft_jax import types
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import means, microbatch
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks as networks_lib


class ClassifierLearner(learner_lib.Learner):
  """Trains a classifier that starts from a policy's trunk.

  Args:
    policy: the one whose trunk is copied.
    micro_batch: rows of a batch computed at a time.
    **options: as of `Learner`.
  """

  part = "scorer"

  def __init__(
    self, *shared: Any, policy: Any, micro_batch: int, **options: Any
  ):
    super().__init__(*shared, **options)
    frozen, trainable = self.split_trainable(policy)
    scorer = self.init_sharded(
      self.networks.init_scorer, trainable, self.key("init")
    )
    del trainable  # The scorer has its own.
    self.start(frozen, {"scorer": scorer})
    self._update = make_update(
      self.networks, self.optimizer, micro_batch=micro_batch
    )

  def update(self, batch: types.LabelledBatch) -> means.Metrics:
    """One optimizer update; its metrics."""
    self.state, metrics = self._update(self.state, batch, base=self.base)
    return metrics


def make_update(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  *,
  micro_batch: int,
) -> Callable[..., tuple[types.TrainState, means.Metrics]]:
  """`update(state, batch, base)`: cross-entropy of two classes.

  Read at a row's last token and averaged over the real rows (paper section
  4.2); `state.params` is {"scorer": ...}.
  """

  def loss_fn(
    params: Any, batch: types.LabelledBatch, *, base: Any, rows: jax.Array
  ) -> tuple[jax.Array, means.Metrics]:
    scorer = lora_lib.join(base, params)["scorer"]
    logits_BC = _class_logits(
      networks, scorer, batch.tokens_BS, batch.lengths_B
    )
    losses_B = optax.softmax_cross_entropy_with_integer_labels(
      logits_BC, batch.labels_B
    )
    right_B = jnp.argmax(logits_BC, axis=-1) == batch.labels_B
    loss = means.over_mask(losses_B, batch.real_B)
    return loss.total / rows, {
      "loss": loss,
      "accuracy": means.over_mask(right_B, batch.real_B),
    }

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: types.TrainState, batch: types.LabelledBatch, base: Any = None
  ) -> tuple[types.TrainState, means.Metrics]:
    rows = jnp.maximum(jnp.sum(batch.real_B), 1)
    batch = microbatch.pad_rows(batch, micro_batch)
    base = networks.working_copy(base)
    grads, metrics = microbatch.gradient(
      networks,
      functools.partial(loss_fn, base=base, rows=rows),
      state.params,
      batch,
      micro_batch,
    )
    return learner_lib.apply_gradient(optimizer, state, grads, metrics)

  return update


def make_scores(networks: networks_lib.Networks) -> Callable[..., jax.Array]:
  """`scores(scorer, tokens_BS, lengths_B)`: probability_B of being correct."""

  @jax.jit
  def scores(
    scorer: Any, tokens_BS: jax.Array, lengths_B: jax.Array
  ) -> jax.Array:
    logits_BC = _class_logits(networks, scorer, tokens_BS, lengths_B)
    return jax.nn.softmax(logits_BC)[:, 1]

  return scores


def _class_logits(
  networks: networks_lib.Networks,
  scorer: Any,
  tokens_BS: jax.Array,
  lengths_B: jax.Array,
) -> jax.Array:
  """The logits_BC at each row's last token."""
  hidden_BSD = networks.hidden(scorer["trunk"], tokens_BS, lengths_B)
  last_B11 = (lengths_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BSD, last_B11, axis=1)[:, 0]
  return networks.class_logits(scorer, hidden_BD)
