"""The jitted steps: imitate, classify, assess and score rollouts, PPO.

Each builder binds what is static (networks, numbers from the config) and
returns functions of arrays alone. States are donated; metrics are `Mean`s.
A minibatch may be computed a micro-batch at a time: losses are sums whose
terms are weighted by what the whole minibatch holds, so the gradient is the
same whatever the split over micro-batches and devices. Rows that these cannot
share alike are filled up with copies that count for nothing, and only where
they are computed: what a step takes and returns has its own rows.

What updates a state takes a `base` too: parameters beside the state's, which
are no part of it. They are read, and nothing else happens to them: no gradient,
no moments, no donation (models.adapters).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from reft_jax import types
from reft_jax.data import batches as batches_lib
from reft_jax.models import lora, partition
from reft_jax.models import networks as networks_lib
from reft_jax.ops import advantages, kl, logprobs, losses, masked, sequences

Metrics = dict[str, types.Mean]


@dataclasses.dataclass(frozen=True)
class PPO:
  """The numbers of the PPO objective; defaults are the paper's (nl).

  Attributes:
    ppo_epochs: passes over a rollout.
    minibatch_size: rows in an update.
    micro_batch_size: rows computed at a time.
    samples_per_question: rows in a group, which are consecutive.
    response_slots: what the aggregation "constant" divides by, whatever a
      rollout was trimmed to; None: the rollout's.
    temperature: the sampler's.
    advantages: "gae" with a critic, or one of advantages.GROUP_RELATIVE
      without: then `params` and experience have no values.
    gamma: discount of gae.
    lam: lambda of gae.
    whiten: whether gae's advantages are whitened over the rollout.
    aggregation: one of losses.AGGREGATIONS.
    kl_coef: cost of a nat of KL to the reference, to begin with.
    kl_in: "reward", a penalty by action, or "loss", with a gradient.
    kl_estimator: one of kl.ESTIMATORS.
    kl_target: nats of a response that `kl_coef` is adapted to; None: it stays.
    kl_horizon: how slowly it is adapted.
    clip: range of the ratio.
    clip_high: its range above 1; None: `clip`.
    value_clip: range of the values.
    vf_coef: weight of the value loss.
    value_warmup_steps: rollouts at first from which the critic alone learns.
    entropy_coef: weight of the policy's entropy.
    filter_zero_variance_groups: whether groups of equal scores are left out.
  """

  ppo_epochs: int = 2
  minibatch_size: int = 32
  micro_batch_size: int = 32
  samples_per_question: int = 1
  response_slots: int | None = None
  temperature: float = 1.0
  advantages: str = "gae"
  gamma: float = 1.0
  lam: float = 0.95
  whiten: bool = True
  aggregation: str = "sequence_mean"
  kl_coef: float = 0.05
  kl_in: str = "reward"
  kl_estimator: str = "k1"
  kl_target: float | None = None
  kl_horizon: int = 10_000
  clip: float = 0.2
  clip_high: float | None = None
  value_clip: float = 0.2
  vf_coef: float = 5.0
  value_warmup_steps: int = 0
  entropy_coef: float = 0.0
  filter_zero_variance_groups: bool = False

  @property
  def critic(self) -> bool:
    """Whether a value function is learnt."""
    return self.advantages == "gae"


@chex.dataclass(frozen=True)
class Assessment:
  """What the networks say of a rollout, by action, before it is graded."""

  logprobs_BT: chex.Array
  reference_logprobs_BT: chex.Array
  values_BT: chex.Array | None


def init_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  kl_coef: float = 0.0,
) -> types.TrainState:
  """A state before its first update; it shares no array with `params`."""
  params = jax.tree.map(jnp.array, params)
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    kl_coef=jnp.float32(kl_coef),
  )


# Supervised ------------------------------------------------------------------


def supervised(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  *,
  micro_batch_size: int,
  logit_chunk: int = 1024,
  parts: Sequence[str] = (),
  shares: Sequence[float] = (),
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """`update(state, *batches, base)`: cross-entropy of the answer and its EOS.

  The loss of a batch is the mean over all its target tokens. Deviation: the
  released code takes the mean of the means of its micro-batches.

  With several batches the loss is a weighted sum of theirs: online
  self-training's is CE(correct) / 2 + CE(gold) / 2 (released code,
  `train_rl_sl.py`). A batch without targets adds 0 and the others keep their
  weight.

  Args:
    networks: the model.
    optimizer: what turns gradients into updates.
    micro_batch_size: rows of a batch computed at a time.
    logit_chunk: tokens for which a device has logits at a time.
    parts: what the batches are called, if there are several; each has its
      metric "loss/NAME" beside the "loss" of all.
    shares: the weight of each of them; equal if left out.
  """

  def loss_fn(params, batch, *, base, weight):
    policy = lora.join(base, params)["policy"]
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

  def gradient(params, batch, base, share):
    targets = jnp.maximum(jnp.sum(batch.targets_BS[:, 1:]), 1)
    return _gradient(
      networks,
      functools.partial(loss_fn, base=base, weight=share / targets),
      params,
      batch,
      micro_batch_size,
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, *batches, base=None):
    batches = [pad_rows(batch, micro_batch_size) for batch in batches]
    base = networks.working_copy(base)
    weights = shares or (1 / len(batches),) * len(batches)
    grads, means = zip(
      *(
        gradient(state.params, batch, base, weight)
        for batch, weight in zip(batches, weights, strict=True)
      ),
      strict=True,
    )
    total = jax.tree.map(lambda *leaves: sum(leaves), *grads)
    if not parts:
      (loss,) = means
      return _apply(optimizer, state, total, {"loss": loss})
    loss = sum(
      weight * mean.total / jnp.maximum(mean.count, 1)
      for weight, mean in zip(weights, means, strict=True)
    )
    metrics = {"loss": _single(loss)}
    for part, mean in zip(parts, means, strict=True):
      metrics[f"loss/{part}"] = mean
    return _apply(optimizer, state, total, metrics)

  return update


@jax.jit
def imitations(
  rollout: types.Rollout, correct_B: jax.Array
) -> types.SupervisedBatch:
  """The sampled solutions that are correct, to be imitated as they are.

  Rows that are not correct stay, as filler without targets; S = P + T.
  """
  tokens_BS = _joined(rollout)
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


@functools.partial(jax.jit, static_argnums=1)
def trimmed(rollout: types.Rollout, slots: int) -> types.Rollout:
  """A rollout with its first `slots` response slots, if others are unused."""
  return rollout.replace(
    response_BT=partition.pin_or_replicate(rollout.response_BT[:, :slots]),
    logprobs_BT=partition.pin_or_replicate(rollout.logprobs_BT[:, :slots]),
  )


@functools.partial(jax.jit, static_argnums=2)
def slice_rows(tree: Any, first: chex.Numeric, count: int) -> Any:
  """`count` rows of each array, from `first` on, spread over the devices."""
  rows = functools.partial(
    jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=count
  )
  return jax.tree.map(lambda x: partition.pin_or_replicate(rows(x)), tree)


# Classifier ------------------------------------------------------------------


def classify(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  *,
  micro_batch_size: int,
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """`update(state, batch, base)`: is a solution correct? (paper's reranker).

  The loss is the cross-entropy of two classes, read at a row's last token and
  averaged over the real rows; `state.params` is {"scorer": ...}.
  """

  def loss_fn(params, batch, *, base, rows):
    scorer = lora.join(base, params)["scorer"]
    logits_BC = _class_logits(
      networks, scorer, batch.tokens_BS, batch.lengths_B
    )
    losses_B = optax.softmax_cross_entropy_with_integer_labels(
      logits_BC, batch.labels_B
    )
    right_B = jnp.argmax(logits_BC, axis=-1) == batch.labels_B
    loss = _masked_mean(losses_B, batch.real_B)
    return loss.total / rows, {
      "loss": loss,
      "accuracy": _masked_mean(right_B, batch.real_B),
    }

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, batch, base=None):
    rows = jnp.maximum(jnp.sum(batch.real_B), 1)
    batch = pad_rows(batch, micro_batch_size)
    base = networks.working_copy(base)
    grads, metrics = _gradient(
      networks,
      functools.partial(loss_fn, base=base, rows=rows),
      state.params,
      batch,
      micro_batch_size,
    )
    return _apply(optimizer, state, grads, metrics)

  return update


def scores(networks: networks_lib.Networks) -> Callable[..., jax.Array]:
  """`run(scorer, tokens_BS, lengths_B)`: probability_B of being correct."""

  @jax.jit
  def run(scorer, tokens_BS, lengths_B):
    logits_BC = _class_logits(networks, scorer, tokens_BS, lengths_B)
    return jax.nn.softmax(logits_BC)[:, 1]

  return run


def _class_logits(networks, scorer, tokens_BS, lengths_B):
  """The logits_BC at each row's last token."""
  hidden_BSD = networks.hidden(scorer["trunk"], tokens_BS, lengths_B)
  last_B11 = (lengths_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BSD, last_B11, axis=1)[:, 0]
  return networks.class_logits(scorer, hidden_BD)


# PPO -------------------------------------------------------------------------


def assess(
  networks: networks_lib.Networks, ppo: PPO, *, logit_chunk: int = 1024
) -> Callable[..., Assessment]:
  """`run(params, reference, rollout)`: log-probs of both policies, values.

  The policy and its reference go through one executable, so that equal
  parameters give a KL of exactly 0.
  """
  by_action, values = make_forward(networks, ppo, logit_chunk=logit_chunk)

  def run(params: Any, reference: Any, rollout: types.Rollout) -> Assessment:
    critic = params["value"] if ppo.critic else {"head": None}
    head = None if "trunk" in critic else critic["head"]
    logprobs_BT, values_BT = by_action((params["policy"], head), rollout)
    reference_BT, _ = by_action((reference, head), rollout)
    if "trunk" in critic:
      values_BT = values(critic, rollout)
    return Assessment(
      logprobs_BT=logprobs_BT,
      reference_logprobs_BT=reference_BT,
      values_BT=values_BT,
    )

  return run


def make_forward(
  networks: networks_lib.Networks, ppo: PPO, *, logit_chunk: int = 1024
) -> tuple[Callable[..., Any], Callable[..., jax.Array]]:
  """The two jitted functions that `assess` calls.

  `by_action((policy, head), rollout)` is log-probs and, where `head` is one on
  the policy's trunk and not None, values; `values(critic, rollout)` are those
  of a critic with a trunk of its own.
  """

  def by_action(params, rollout):
    policy, head = params
    hidden_BTD = _response_hidden(networks, policy["trunk"], rollout)
    logprobs_BT, _ = _token_logprobs(
      networks, policy, hidden_BTD, rollout, ppo, logit_chunk
    )
    if head is None:
      return logprobs_BT, None
    return logprobs_BT, networks.values(head, hidden_BTD)

  def values(critic, rollout):
    hidden_BTD = _response_hidden(networks, critic["trunk"], rollout)
    return networks.values(critic["head"], hidden_BTD)

  micro = ppo.micro_batch_size
  by_action = jax.jit(functools.partial(_map_rows, by_action, micro=micro))
  values = jax.jit(functools.partial(_map_rows, values, micro=micro))
  return by_action, values


def score(ppo: PPO) -> Callable[..., tuple[types.Experience, Metrics]]:
  """`run(rollout, assessment, scores_B, kl_coef)`: rewards to advantages.

  `kl_coef` is the state's. The metric "kl" is that of whole responses, in
  nats, by `ppo.kl_estimator`; it is what `ppo.kl_target` is compared to.
  """
  return jax.jit(functools.partial(_score, ppo=ppo))


def _score(rollout, assessment, scores_B, kl_coef, *, ppo):
  mask_BT = rollout.mask_BT
  rewards_BT, kl_BT = advantages.kl_penalised(
    scores_B,
    assessment.logprobs_BT,
    assessment.reference_logprobs_BT,
    mask_BT,
    kl_coef=kl_coef if ppo.kl_in == "reward" else 0.0,
    estimator=kl.ESTIMATORS[ppo.kl_estimator],
  )
  sampler_gap_BT = jnp.abs(rollout.logprobs_BT - assessment.logprobs_BT)
  metrics = {
    "reward/mean": _mean(scores_B),
    "kl": _mean(jnp.sum(kl_BT, axis=1)),
    "kl_coef": _single(kl_coef),
    "response/length": _mean(rollout.response_lengths_B),
    "response/ended": _mean(rollout.ended_B),
    "sampler_gap": _masked_mean(sampler_gap_BT, mask_BT),
  }
  group = ppo.samples_per_question
  counts_B = jnp.ones_like(scores_B, dtype=bool)
  if group > 1:
    signal_B = advantages.with_signal(scores_B, group=group)
    metrics["reward/groups_with_signal"] = _mean(signal_B)
    if ppo.filter_zero_variance_groups:
      counts_B = signal_B
  if ppo.critic:
    values_BT = assessment.values_BT
    advantages_BT, returns_BT = advantages.gae(
      rewards_BT, values_BT, mask_BT, gamma=ppo.gamma, lam=ppo.lam
    )
    explained = masked.explained_variance(returns_BT, values_BT, mask_BT)
    metrics["value/mean"] = _masked_mean(values_BT, mask_BT)
    metrics["value/explained_variance"] = _single(explained)
    if ppo.whiten:
      advantages_BT = masked.whiten(advantages_BT, mask_BT & counts_B[:, None])
  else:
    values_BT = returns_BT = None
    advantages_BT = advantages.of_groups(
      scores_B,
      rewards_BT,
      mask_BT,
      group=group,
      relative=advantages.GROUP_RELATIVE[ppo.advantages],
    )
  experience = types.Experience(
    rollout=rollout,
    logprobs_BT=assessment.logprobs_BT,
    reference_logprobs_BT=assessment.reference_logprobs_BT,
    values_BT=values_BT,
    advantages_BT=advantages_BT,
    returns_BT=returns_BT,
    counts_B=counts_B,
  )
  return jax.tree.map(partition.pin_or_replicate, experience), metrics


@chex.dataclass(frozen=True)
class PolicyOutputs:
  """What the networks being updated say of a rollout, by action."""

  logprobs_BT: chex.Array
  entropies_BT: chex.Array
  values_BT: chex.Array | None


def ppo_loss(
  outputs: PolicyOutputs,
  experience: types.Experience,
  weights_BT: jax.Array,
  kl_coef: chex.Numeric,
  *,
  ppo: PPO,
) -> tuple[jax.Array, Metrics]:
  """What some rows add to the loss of their minibatch.

  policy loss + vf_coef x value loss, and where they are asked for + kl_coef x
  KL - entropy_coef x entropy: each a sum over actions with `weights_BT`, which
  are `losses.weights` of the whole minibatch.
  """
  mask_BT = experience.mask_BT
  # Masked slots get ratio 1: `where` after the exp would not save gradients.
  logprobs_BT = jnp.where(mask_BT, outputs.logprobs_BT, 0.0)
  old_logprobs_BT = jnp.where(mask_BT, experience.logprobs_BT, 0.0)
  log_ratio_BT = logprobs_BT - old_logprobs_BT
  ratio_BT = jnp.exp(log_ratio_BT)
  # A minibatch's losses are the sums over its micro-batches, each a share.
  _, filled = _micro_batches(ppo.minibatch_size, ppo.micro_batch_size)
  share = mask_BT.shape[0] / filled
  metrics = {
    "ratio/mean": _masked_mean(ratio_BT, mask_BT),
    "ratio/kl": _masked_mean(ratio_BT - 1.0 - log_ratio_BT, mask_BT),
    "clip_fraction": _masked_mean(
      losses.clip_ratio(ratio_BT, clip=ppo.clip, clip_high=ppo.clip_high)
      != ratio_BT,
      mask_BT,
    ),
    "entropy": _masked_mean(outputs.entropies_BT, mask_BT),
  }

  def aggregate(name, losses_BT):
    loss = losses.weighted(losses_BT, weights_BT)
    metrics[name] = types.Mean(total=loss, count=jnp.float32(share))
    return loss

  loss = aggregate(
    "policy/loss",
    losses.clipped_policy(
      logprobs_BT,
      old_logprobs_BT,
      experience.advantages_BT,
      clip=ppo.clip,
      clip_high=ppo.clip_high,
    ),
  )
  if ppo.critic:
    value_BT = losses.clipped_value(
      outputs.values_BT,
      experience.values_BT,
      experience.returns_BT,
      clip=ppo.value_clip,
    )
    loss += ppo.vf_coef * aggregate("value/loss", value_BT)
  if ppo.kl_in == "loss":
    reference_BT = jnp.where(mask_BT, experience.reference_logprobs_BT, 0.0)
    kl_BT = kl.ESTIMATORS[ppo.kl_estimator](logprobs_BT, reference_BT)
    loss += kl_coef * aggregate("policy/kl_loss", kl_BT)
  if ppo.entropy_coef:
    loss -= ppo.entropy_coef * losses.weighted(outputs.entropies_BT, weights_BT)
  return loss, metrics


def ppo_update(
  networks: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  ppo: PPO,
  *,
  logit_chunk: int = 1024,
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """`update(state, experience, key, base)`: epochs, minibatches in one jit.

  At the first minibatch the parameters are still those that assessed the
  rollout, so its old log-probs are taken from the very forward that is
  differentiated: the ratio is exactly 1 in any precision. How far the two
  forwards are apart is the metric `old_logprob_gap`, so a mask or temperature
  that differs between them still shows.

  What depends on how long training has gone on follows from the state: the
  policy waits for `value_warmup_steps` rollouts' worth of updates, and the KL's
  coefficient is adapted once a rollout.
  """

  def read(params, rollout):
    policy = params["policy"]
    hidden_BTD = _response_hidden(networks, policy["trunk"], rollout)
    logprobs_BT, entropies_BT = _token_logprobs(
      networks, policy, hidden_BTD, rollout, ppo, logit_chunk
    )
    values_BT = None
    if ppo.critic:
      critic = params["value"]
      if "trunk" in critic:
        hidden_BTD = _response_hidden(networks, critic["trunk"], rollout)
      values_BT = networks.values(critic["head"], hidden_BTD)
    return PolicyOutputs(
      logprobs_BT=logprobs_BT, entropies_BT=entropies_BT, values_BT=values_BT
    )

  def loss_fn(params, rows, *, base, kl_coef, first):
    experience, weights_BT = rows
    outputs = read(lora.join(base, params), experience.rollout)
    now_BT = jax.lax.stop_gradient(outputs.logprobs_BT)
    gap_BT = jnp.abs(now_BT - experience.logprobs_BT)
    experience = experience.replace(
      logprobs_BT=jnp.where(first, now_BT, experience.logprobs_BT)
    )
    loss, metrics = ppo_loss(outputs, experience, weights_BT, kl_coef, ppo=ppo)
    mask_BT = experience.rollout.mask_BT
    metrics["old_logprob_gap"] = _masked_mean(gap_BT, mask_BT & first)
    metrics["ratio/first_deviation"] = _masked_mean(
      jnp.abs(jnp.exp(now_BT - experience.logprobs_BT) - 1.0), mask_BT & first
    )
    return loss, metrics

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, experience, key, base=None):
    batch = experience.advantages_BT.shape[0]
    orders_EB = jax.vmap(lambda k: jax.random.permutation(k, batch))(
      jax.random.split(key, ppo.ppo_epochs)
    )
    minibatches = orders_EB.reshape(-1, ppo.minibatch_size)
    frozen = None
    if ppo.value_warmup_steps:
      warmup = ppo.value_warmup_steps * minibatches.shape[0]
      frozen = state.step < warmup

    def one(state, xs):
      indices, first = xs
      rows = jax.tree.map(lambda x: partition.pin(x[indices]), experience)
      rows = pad_rows(rows, ppo.micro_batch_size)
      weights_BT = losses.weights(
        rows.mask_BT, ppo.aggregation, ppo.response_slots
      )
      grads, metrics = _gradient(
        networks,
        functools.partial(
          loss_fn, base=base, kl_coef=state.kl_coef, first=first
        ),
        state.params,
        (rows, weights_BT),
        ppo.micro_batch_size,
      )
      return _apply(optimizer, state, grads, metrics, frozen)

    base = networks.working_copy(base)
    first = jnp.arange(minibatches.shape[0]) == 0
    state, metrics = jax.lax.scan(one, state, (minibatches, first))
    if ppo.kl_target is not None:
      adapted = _adapted(state.kl_coef, experience, ppo)
      if frozen is not None:
        adapted = jnp.where(frozen, state.kl_coef, adapted)
      state = state.replace(kl_coef=adapted)
    return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

  return update


def _adapted(kl_coef, experience, ppo):
  """The KL's next coefficient, by what it was when the rollout was sampled."""
  kl_BT = kl.ESTIMATORS[ppo.kl_estimator](
    experience.logprobs_BT, experience.reference_logprobs_BT
  )
  kl_B = masked.total(kl_BT, experience.rollout.mask_BT, axis=1)
  return kl.adapted(
    kl_coef,
    jnp.mean(kl_B),
    target=ppo.kl_target,
    horizon=ppo.kl_horizon,
    rows=kl_B.size,
  )


# Shared ----------------------------------------------------------------------


def _joined(rollout):
  """tokens_BS: each prompt and its response as one row."""
  return sequences.join(
    rollout.prompt_BP,
    rollout.prompt_lengths_B,
    rollout.response_BT,
    rollout.response_lengths_B,
  )


def _response_hidden(networks, trunk, rollout):
  """The hidden rows that predict the response, from one full forward."""
  hidden_BSD = networks.hidden(trunk, _joined(rollout), rollout.lengths_B)
  return sequences.predicting(
    hidden_BSD, rollout.prompt_lengths_B, rollout.response_BT.shape[1]
  )


def _token_logprobs(networks, policy, hidden_BTD, rollout, ppo, chunk):
  return logprobs.of_tokens(
    functools.partial(networks.logits, policy),
    hidden_BTD,
    rollout.response_BT,
    temperature=ppo.temperature,
    chunk=chunk * partition.num_shards(),
  )


def _micro_batches(rows: int, micro: int) -> tuple[int, int]:
  """Rows of a micro-batch, and of all, on the devices that share them."""
  return batches_lib.micro_batches(rows, micro, partition.num_shards())


def pad_rows(rows, micro: int):
  """Rows as whole micro-batches: behind them copies that count for nothing.

  A copy of the first row can be read as that can.
  """
  size = jax.tree.leaves(rows)[0].shape[0]
  _, filled = _micro_batches(size, micro)
  if filled == size:
    return rows
  missing = filled - size
  copies = jax.tree.map(lambda x: jnp.repeat(x[:1], missing, axis=0), rows)
  return jax.tree.map(
    lambda *parts: partition.pin(jnp.concatenate(parts)),
    rows,
    copies.masked_out(),
  )


def _split(tree, micro: int):
  """Rows as [micro-batches, micro, ...]; each takes rows of every device."""

  def one(x):
    batches = x.shape[0] // micro
    return x.reshape(micro, batches, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(one, tree)


def _map_rows(function, params, rows, *, micro: int):
  """function(params, rows), a micro-batch at a time."""
  size = jax.tree.leaves(rows)[0].shape[0]
  rows = pad_rows(rows, micro)
  micro, filled = _micro_batches(size, micro)
  if micro >= filled:
    out = function(params, rows)
  else:
    out = jax.lax.map(functools.partial(function, params), _split(rows, micro))
    out = jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(filled, *x.shape[2:]), out
    )
  if filled == size:
    return out
  return jax.tree.map(lambda x: partition.pin_or_replicate(x[:size]), out)


def _gradient(networks, loss_fn, params, rows, micro: int):
  """Gradient and metrics of a sum over rows, a micro-batch at a time.

  The rows are those of whole micro-batches (`pad_rows`). Gradients are fp32
  and lie where their parameters do.
  """
  copy = networks.working_copy(params)

  def grad_fn(rows):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(copy, rows)
    if copy is not params:
      grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
      grads = partition.scatter(grads)
    return grads, metrics

  size = jax.tree.leaves(rows)[0].shape[0]
  micro, _ = _micro_batches(size, micro)
  if micro >= size:
    return grad_fn(rows)
  micro_batches = _split(rows, micro)

  def add(total, rows):
    return jax.tree.map(jnp.add, total, grad_fn(rows)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], micro_batches)),
  )
  total, _ = jax.lax.scan(add, zeros, micro_batches)
  return total


def _apply(optimizer, state, grads, metrics, frozen=None):
  """One optimizer update; a non-finite gradient changes nothing.

  Nor does one of exactly 0, which a batch without anything to learn from has:
  the momentum of earlier ones does not go on alone.

  Where `frozen` is true the policy stays as it is. The optimizer sees its
  gradients all the same, so that its moments are ready when the policy thaws.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  learns = finite & (norm > 0)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  if frozen is not None:
    policy = jax.tree.map(
      lambda update: jnp.where(frozen, 0, update), updates["policy"]
    )
    updates = updates | {"policy": policy}
  updated = state.replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )
  state = jax.tree.map(
    lambda new, old: jnp.where(learns, new, old), updated, state
  )
  metrics = dict(metrics)
  metrics["grad_norm"] = _single(norm)
  metrics["skipped_updates"] = _single(~finite)
  return state, metrics


def _single(x) -> types.Mean:
  return types.Mean(total=jnp.float32(x), count=jnp.float32(1))


def _mean(x) -> types.Mean:
  return types.Mean(
    total=jnp.sum(x, dtype=jnp.float32), count=jnp.float32(x.size)
  )


def _masked_mean(x, mask) -> types.Mean:
  return types.Mean(
    total=masked.total(x.astype(jnp.float32), mask),
    count=jnp.sum(mask, dtype=jnp.float32),
  )
