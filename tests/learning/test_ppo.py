"""ReFT's updates: what must be exact, and what must change nothing."""

import contextlib
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import steps
import tiny

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import forward, objectives
from reft_jax.learning import ppo as ppo_lib
from reft_jax.ops import losses
from reft_jax.runtime import mesh as mesh_lib


def one_epoch(**changes) -> schema.ReftConfig:
  return dataclasses.replace(steps.PPO, **{"ppo_epochs": 1} | changes)


@pytest.mark.parametrize(
  ("kind", "temperature"),
  [("shared", 0.7), ("shared", 1.0), ("separate", 1.0), ("separate", 1.6)],
)
def test_kl_is_0_and_ratio_is_1_at_the_first_update(kind, temperature):
  ppo = one_epoch(temperature=temperature)
  _, _, means = steps.learn(
    steps.params_of(kind), tiny.sample(temperature), ppo=ppo
  )
  assert means["kl"] == 0
  assert means["ratio/mean"] == 1
  assert means["ratio/first_deviation"] == 0
  assert means["ratio/kl"] == 0
  assert means["clip_fraction"] == 0
  # Not by the construction of the first update alone: the two forwards agree.
  assert means["old_logprob_gap"] < 1e-6
  assert means["sampler_gap"] < 1e-5


def test_a_wrong_temperature_shows_in_the_gaps():
  _, _, means = steps.learn(steps.params_of(), tiny.sample(0.7), ppo=steps.PPO)
  assert means["sampler_gap"] > 0.01


def test_the_ratio_moves_after_the_first_update():
  ppo = dataclasses.replace(steps.PPO, minibatch_size=4)
  _, state, means = steps.learn(steps.params_of(), tiny.sample(), ppo=ppo)
  assert means["ratio/kl"] > 0
  assert state.step == 4  # Two epochs of two minibatches.


def step(
  rollout=None,
  *,
  rows=None,
  scores=steps.SCORES,
  mesh=None,
  critic="shared",
  reference=None,
  network=steps.NETWORK,
  response_slots=None,
  **settings,
):
  """Metrics of a step of one epoch, and the state after it.

  `rows` reorders the rollout; on a mesh, parameters stay on their shards.
  """
  rollout = tiny.sample() if rollout is None else rollout
  if rows is not None:
    rollout, scores = tiny.take((rollout, scores), rows)
  ppo = one_epoch(**settings)
  params = steps.params_of(critic if ppo.has_critic else None)
  reference = reference or tiny.policy(1)
  if mesh is not None:
    params, reference = mesh_lib.put(mesh, (params, reference))
    rollout, scores = mesh_lib.put_batch(mesh, (rollout, scores))
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    _, state, means = steps.learn(
      params,
      rollout,
      reference=reference,
      ppo=ppo,
      scores=scores,
      network=network,
      response_slots=response_slots,
    )
  jax.tree.map(assert_on_the_same_shards, params, state.params)
  return means, jax.device_get((state.params, state.kl_coef, state.step))


def assert_on_the_same_shards(a, b):
  assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def assert_same(found, wanted, atol=1e-5):
  assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(found[1], wanted[1], atol=atol)


@functools.cache
def plain():
  """What must not change."""
  return step()


def test_slots_that_no_row_uses_may_be_cut_off():
  some = tiny.sample()
  wide = tiny.widen(some, prompt=0)
  chex.assert_trees_all_equal(forward.trimmed(wide, tiny.RESPONSE_SLOTS), some)


def test_a_constant_does_not_follow_the_width_of_a_rollout():
  constant = functools.partial(step, aggregation="constant", response_slots=11)
  assert_same(constant(tiny.widen(tiny.sample())), constant())


def test_padding_changes_no_loss():
  assert_same(step(tiny.widen(tiny.sample())), plain())


def test_the_order_of_rows_changes_no_loss():
  assert_same(step(rows=[3, 1, 7, 0, 5, 2, 4, 6]), plain())


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_change_no_gradient(micro):
  assert_same(step(micro_batch_size=micro), plain(), atol=1e-6)


def test_the_gradient_of_a_batch_is_the_mean_of_its_halves():
  params, rollout = steps.params_of(), tiny.sample()
  assess, *_ = steps.compiled(steps.NETWORK, steps.PPO, steps.DESCENT)
  assessment = assess(params, tiny.policy(1), rollout)
  descent = optax.sgd(1.0)

  def gradient(rows):
    ppo = one_epoch(
      whiten=False,  # It looks at the whole batch.
      minibatch_size=len(rows),
      micro_batch_size=len(rows),
    )
    _, score, update = steps.compiled(steps.NETWORK, ppo, descent)
    some = tiny.take((rollout, assessment, steps.SCORES), rows)
    experience, _ = score(*some, ppo.kl_coef)
    state = steps.started(params, descent)
    state, _ = update(state, experience, jax.random.key(0))
    return jax.tree.map(jnp.subtract, params, state.params)

  whole = gradient(range(8))
  left, right = gradient(range(4)), gradient(range(4, 8))
  mean = jax.tree.map(lambda a, b: (a + b) / 2, left, right)
  chex.assert_trees_all_close(whole, mean, atol=1e-6)
  assert optax.tree.norm(jax.tree.map(jnp.subtract, left, right)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape", [(1, 1, 1), (1, 2, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
)
def test_devices_change_no_loss(shape):
  assert_same(step(mesh=tiny.mesh(shape)), plain())


@pytest.mark.slow
def test_remat_and_compute_dtype():
  for remat in ("block", "dots"):
    assert_same(step(network=tiny.make(remat=remat)), plain(), atol=1e-6)
  near, state = step(network=tiny.make(compute_dtype="bfloat16"))
  assert near["entropy"] == pytest.approx(plain()[0]["entropy"], abs=0.05)
  chex.assert_tree_all_finite(state)


def test_eos_is_trained():
  """The gradient reaches the logit of the EOS that ended a row."""
  rollout = tiny.sample(batch=16)
  row = int(np.flatnonzero(np.asarray(rollout.ended_B))[0])
  last = int(rollout.response_lengths_B[row]) - 1
  zeros_BT = jnp.zeros_like(rollout.logprobs_BT)
  experience = types.Experience(
    rollout=rollout,
    logprobs_BT=rollout.logprobs_BT,
    reference_logprobs_BT=rollout.logprobs_BT,
    values_BT=zeros_BT,
    advantages_BT=zeros_BT + 1,
    returns_BT=zeros_BT,
    counts_B=jnp.ones(16, bool),
  )
  weights_BT = losses.weights(rollout.mask_BT, "sequence_mean")

  def loss(logprobs_BT):
    outputs = ppo_lib.PolicyOutputs(
      logprobs_BT=logprobs_BT, entropies_BT=zeros_BT, values_BT=zeros_BT
    )
    return objectives.build(steps.PPO)(
      ppo_lib.loss_inputs(outputs, experience, weights_BT, 0.0, steps.PPO)
    )[0]

  grads_BT = jax.grad(loss)(rollout.logprobs_BT)
  assert int(rollout.response_BT[row, last]) in tiny.EOS
  assert float(grads_BT[row, last]) < 0  # A good end is made likelier.
  assert not grads_BT[row, last + 1 :].any()


def test_a_sampled_pad_is_scored_like_any_token():
  rollout = tiny.sample(batch=32)
  inside = np.asarray(rollout.mask_BT & (rollout.response_BT == tiny.PAD))
  row, column = np.argwhere(
    inside[:, :-1] & np.asarray(rollout.mask_BT)[:, 1:]
  )[0]
  some = tiny.take(rollout, [row])
  ppo = dataclasses.replace(steps.PPO, micro_batch_size=1)
  assess = ppo_lib.make_assess(tiny.make(), ppo)
  logprobs = assess(steps.params_of(), tiny.policy(), some).logprobs_BT
  assert column < some.response_lengths_B[0] - 1
  gap = jnp.where(some.mask_BT, logprobs - some.logprobs_BT, 0)
  assert jnp.max(jnp.abs(gap)) < 1e-4


@pytest.mark.slow
def test_a_larger_kl_coef_keeps_the_policy_nearer():
  rows = 32

  def drift(kl_coef):
    """KL in the last five of twenty steps without any reward."""
    ppo = one_epoch(
      kl_coef=kl_coef,
      whiten=False,
      vf_coef=0.0,
      minibatch_size=rows,
      micro_batch_size=rows,
    )
    reference, descent = tiny.policy(1), optax.sgd(0.2)
    assess, score, update = steps.compiled(steps.NETWORK, ppo, descent)
    state = steps.started(steps.params_of(), descent)
    publish = jax.jit(steps.NETWORK.publish)
    kls = []
    for step in range(20):
      rollout = tiny.sampler()(
        publish(state.params["policy"]),
        tiny.prompts(rows),
        jax.random.key(step),
      )
      experience, metrics = score(
        rollout,
        assess(state.params, reference, rollout),
        jnp.zeros(rows),
        kl_coef,
      )
      state, _ = update(state, experience, jax.random.key(step))
      kls.append(metrics["kl"].value())
    return np.mean(kls[-5:])

  # They are 8 and 12 nats.
  assert drift(1.0) < drift(0.0) - 2


def test_a_gradient_that_is_not_finite_changes_nothing():
  params = steps.params_of()
  scores = steps.SCORES.copy()
  scores[0] = np.nan
  _, state, means = steps.learn(params, tiny.sample(), scores=scores)
  assert means["skipped_updates"] == 1
  assert int(state.step) == 0
  chex.assert_trees_all_equal(
    jax.device_get(params), jax.device_get(state.params)
  )


# Other objectives ------------------------------------------------------------

# Between them, every switch. Two pairs of rows, or all rows, earn the same.
PAIR_SCORES = np.float32([1, 1, 0.1, 1, 0.1, 0.1, 0, 1])
SAME_SCORES = np.ones(steps.ROWS, np.float32)
NO_REWARD = {"advantages": "dr_grpo", "samples_per_question": 2}
OBJECTIVES = {
  "token_mean": {
    "aggregation": "token_mean",
    "kl_in": "loss",
    "kl_estimator": "k3",
    "entropy_coef": 0.3,
    "clip_high": 0.28,
  },
  "constant": {
    "aggregation": "constant",
    "advantages": "grpo",
    "samples_per_question": 4,
    "kl_estimator": "k2",
  },
  "dropped": {
    "advantages": "rloo",
    "samples_per_question": 2,
    "filter_zero_variance_groups": True,
    "kl_in": "loss",
    "kl_estimator": "k2",
  },
  "dropped from gae": {
    "samples_per_question": 2,
    "filter_zero_variance_groups": True,
  },
}


@functools.cache
def of_objective(objective):
  return step(scores=PAIR_SCORES, **OBJECTIVES[objective])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["token_mean", "constant", "dropped"])
@pytest.mark.parametrize(("micro", "shape"), [(1, None), (4, (1, 2, 1))])
def test_micro_batches_and_devices_change_no_objective(objective, micro, shape):
  same = step(
    scores=PAIR_SCORES,
    mesh=shape and tiny.mesh(shape),
    micro_batch_size=micro,
    **OBJECTIVES[objective],
  )
  assert_same(same, of_objective(objective))


@pytest.mark.parametrize("objective", ["dropped", "dropped from gae"])
def test_a_dropped_group_might_as_well_not_be_there(objective):
  alone = step(
    rows=[2, 3, 6, 7],
    scores=PAIR_SCORES,
    minibatch_size=4,
    micro_batch_size=4,
    **OBJECTIVES[objective] | {"filter_zero_variance_groups": False},
  )
  chex.assert_trees_all_close(of_objective(objective)[1], alone[1], atol=1e-6)


def test_a_batch_without_signal_is_no_reason_to_move():
  means, (params, *_) = step(scores=SAME_SCORES, **OBJECTIVES["dropped"])
  assert means["reward/groups_with_signal"] == 0
  assert means["grad_norm"] == 0
  chex.assert_trees_all_equal(params, steps.params_of(None))


def test_without_a_critic_there_are_no_values():
  experience, state, means = steps.learn(
    steps.params_of(None),
    tiny.sample(),
    ppo=one_epoch(**OBJECTIVES["constant"]),
    scores=PAIR_SCORES,
  )
  assert experience.values_BT is None
  assert experience.returns_BT is None
  assert state.params.keys() == {"policy"}
  assert not [name for name in means if name.startswith("value")]
  assert means["ratio/first_deviation"] == 0


def test_at_the_reference_a_kl_loss_has_no_gradient():
  kl_loss = functools.partial(
    step,
    scores=SAME_SCORES,
    kl_in="loss",
    kl_estimator="k3",
    kl_coef=100.0,
    **NO_REWARD,
  )
  (at, _), (away, _) = kl_loss(reference=tiny.policy()), kl_loss()
  assert at["policy/kl_loss"] < 1e-10
  assert at["grad_norm"] < 1e-2
  assert away["policy/kl_loss"] > 0.1
  assert away["grad_norm"] > 100


def test_the_kl_coefficient_is_adapted_to_its_target():
  target = 1e3
  means, (_, kl_coef, _) = step(kl_target=target, kl_horizon=16)
  assert means["kl_coef"] == pytest.approx(steps.PPO.kl_coef)
  assert means["kl"] < target
  want = steps.PPO.kl_coef * (1 - 0.2 * steps.ROWS / 16)
  assert float(kl_coef) == pytest.approx(want)


def test_the_critic_alone_learns_at_first():
  ppo = dataclasses.replace(steps.PPO, minibatch_size=4, value_warmup_steps=2)
  optimizer = optax.adam(1e-2)
  assess, score, update = steps.compiled(steps.NETWORK, ppo, optimizer)
  state = steps.started(steps.params_of(), optimizer, ppo.kl_coef)
  for step in range(3):
    rollout = tiny.sample()
    before = jax.device_get(state.params)
    experience, _ = score(
      rollout,
      assess(state.params, tiny.policy(1), rollout),
      jnp.asarray(steps.SCORES),
      state.kl_coef,
    )
    state, _ = update(state, experience, jax.random.key(step))
    after = jax.device_get(state.params)
    for leaf, was in zip(
      jax.tree.leaves(after["value"]),
      jax.tree.leaves(before["value"]),
      strict=True,
    ):
      assert (leaf != was).any()
    if step < 2:
      chex.assert_trees_all_equal(after["policy"], before["policy"])
    else:
      moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), after["policy"], before["policy"]
      )
      # Its moments are those of all three steps: no leap when it thaws.
      assert 1e-3 < max(jax.tree.leaves(moved)) < 0.05
  assert update._cache_size() == 1


def test_an_entropy_bonus_raises_the_entropy():
  means, _ = step(
    scores=SAME_SCORES,
    ppo_epochs=8,
    entropy_coef=1.0,
    kl_coef=0.0,
    **NO_REWARD,
  )
  assert means["entropy"] > plain()[0]["entropy"] + 0.05


# Rows that the devices, or micro-batches, cannot share alike: six of them, in
# updates of three or of all.
UNEVEN = {
  "gae": {
    "critic": "separate",
    "ppo_epochs": 2,
    "minibatch_size": 3,
    "kl_target": 2.0,
    "kl_horizon": 40,
  },
  "rloo": OBJECTIVES["dropped"]
  | {
    "ppo_epochs": 2,
    "aggregation": "token_mean",
    "entropy_coef": 0.3,
    "minibatch_size": 6,
  },
}


@functools.cache
def uneven(objective, micro, shape=None):
  return step(
    rows=range(6),
    scores=PAIR_SCORES,
    mesh=shape and tiny.mesh(shape),
    micro_batch_size=micro,
    **UNEVEN[objective],
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("objective", "micro", "shape"),
  [
    ("gae", 2, None),
    ("gae", 1, (1, 2, 1)),
    ("gae", 2, (2, 4, 1)),
    ("rloo", 4, None),
    ("rloo", 2, (1, 4, 2)),
  ],
)
def test_rows_that_do_not_divide_change_no_step(objective, micro, shape):
  plain = uneven(objective, UNEVEN[objective]["minibatch_size"])
  assert_same(uneven(objective, micro, shape), plain)
  assert plain[0]["reward/mean"] == pytest.approx(PAIR_SCORES[:6].mean())
