"""The steps: what must be exact, and what must change nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from reft_jax import config as config_lib
from reft_jax import devices, optim, steps, types

ROWS = 8
PPO = steps.PPO(
  minibatch_size=ROWS, micro_batch_size=ROWS, vf_coef=0.7, kl_coef=0.1
)
SCORES = np.float32([1, 0, 0.1, 1, 0.1, 0, 1, 0.1])


def params_of(kind="shared"):
  policy = tiny.policy()
  value = tiny.make().init_value(policy, kind)
  # A critic that says something.
  head = {"w_D": jnp.linspace(-0.3, 0.3, 16), "b": jnp.float32(0.2)}
  return {"policy": policy, "value": {**value, "head": head}}


def learn(
  params,
  rollout,
  *,
  reference=None,
  ppo=PPO,
  scores=SCORES,
  network=None,
  optimizer=None,
  key=0,
):
  """One ReFT step after sampling; returns experience, state and metrics."""
  network = network or tiny.make()
  optimizer = optimizer or optax.sgd(0.1)
  reference = params["policy"] if reference is None else reference
  assessment = steps.assess(network, ppo, logit_chunk=16)(
    params, reference, rollout
  )
  experience, metrics = steps.score(ppo)(
    rollout, assessment, jnp.asarray(scores)
  )
  state = jax.tree.map(jnp.copy, steps.init_state(params, optimizer))
  state, learned = steps.ppo_update(network, optimizer, ppo, logit_chunk=16)(
    state, experience, jax.random.key(key)
  )
  means = {k: v.value() for k, v in jax.device_get(metrics | learned).items()}
  return experience, state, means


@pytest.mark.parametrize("kind", ["shared", "separate"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_kl_is_0_and_ratio_is_1_at_the_first_update(kind, temperature):
  ppo = dataclasses.replace(PPO, temperature=temperature, ppo_epochs=1)
  _, _, means = learn(params_of(kind), tiny.sample(temperature), ppo=ppo)
  assert means["kl"] == 0
  assert means["ratio/mean"] == 1
  assert means["ratio/first_deviation"] == 0
  assert means["ratio/kl"] == 0
  assert means["clip_fraction"] == 0
  # Not by the construction of the first update alone: the two forwards agree.
  assert means["old_logprob_gap"] < 1e-6
  assert means["sampler_gap"] < 1e-5


def test_a_wrong_temperature_shows_in_the_gaps():
  _, _, means = learn(params_of(), tiny.sample(0.7), ppo=PPO)
  assert means["sampler_gap"] > 0.01


def test_the_ratio_moves_after_the_first_update():
  _, _, means = learn(
    params_of(), tiny.sample(), ppo=dataclasses.replace(PPO, minibatch_size=4)
  )
  assert means["ratio/kl"] > 0


def losses_of(rollout, rows=None, **options):
  """Loss and gradient norm of a step; `rows` reorders it."""
  scores = SCORES
  if rows is not None:
    rollout, scores = tiny.take(rollout, rows), SCORES[np.asarray(rows)]
  ppo = dataclasses.replace(PPO, ppo_epochs=1, **options.pop("numbers", {}))
  _, state, means = learn(
    params_of(),
    rollout,
    ppo=ppo,
    scores=scores,
    reference=tiny.policy(1),
    **options,
  )
  kept = ("policy/loss", "value/loss", "grad_norm", "kl", "entropy")
  return {k: means[k] for k in kept}, jax.device_get(state.params)


def test_padding_changes_no_loss():
  rollout = tiny.sample()
  plain, params = losses_of(rollout)
  wide, wide_params = losses_of(tiny.widen(rollout))
  assert wide == pytest.approx(plain, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, wide_params, atol=1e-5)


def test_the_order_of_rows_changes_no_loss():
  plain, params = losses_of(tiny.sample())
  mixed, mixed_params = losses_of(tiny.sample(), [3, 1, 7, 0, 5, 2, 4, 6])
  assert mixed == pytest.approx(plain, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, mixed_params, atol=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_change_no_gradient(micro):
  whole, params = losses_of(tiny.sample())
  parts, part_params = losses_of(
    tiny.sample(), numbers={"micro_batch_size": micro}
  )
  assert parts == pytest.approx(whole, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, part_params, atol=1e-6)


@pytest.mark.parametrize(
  "shape", [(1, 1, 1), (1, 2, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
)
def test_devices_change_no_loss(shape):
  plain, params = losses_of(tiny.sample())
  mesh = tiny.mesh(shape)
  rollout = tiny.sample()
  with jax.set_mesh(mesh):
    placed = devices.put(mesh, params_of())
    _, state, means = learn(
      placed,
      devices.put_batch(mesh, rollout),
      reference=devices.put(mesh, tiny.policy(1)),
      ppo=dataclasses.replace(PPO, ppo_epochs=1),
      scores=devices.put_batch(mesh, SCORES),
    )
  for name, value in plain.items():
    assert means[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
  chex.assert_trees_all_close(params, jax.device_get(state.params), atol=1e-5)
  # Updates leave parameters on the shards they were put on.
  chex.assert_trees_all_equal(
    jax.tree.map(lambda x: x.sharding.spec, placed),
    jax.tree.map(lambda x: x.sharding.spec, state.params),
  )


def test_remat_and_compute_dtype():
  plain, params = losses_of(tiny.sample())
  for remat in ("block", "dots"):
    same, same_params = losses_of(tiny.sample(), network=tiny.make(remat=remat))
    assert same == pytest.approx(plain, rel=1e-5, abs=1e-6)
    chex.assert_trees_all_close(params, same_params, atol=1e-6)
  near, near_params = losses_of(
    tiny.sample(), network=tiny.make(compute_dtype="bfloat16")
  )
  assert near["entropy"] == pytest.approx(plain["entropy"], abs=0.05)
  chex.assert_tree_all_finite(near_params)


def test_eos_is_trained():
  """The gradient reaches the logit of the EOS that ended a row."""
  rollout = tiny.sample(batch=16)
  row = int(np.flatnonzero(np.asarray(rollout.ended_B))[0])
  last = int(rollout.response_lengths_B[row]) - 1
  experience = types.Experience(
    rollout=rollout,
    logprobs_BT=rollout.logprobs_BT,
    values_BT=jnp.zeros_like(rollout.logprobs_BT),
    advantages_BT=jnp.ones_like(rollout.logprobs_BT),
    returns_BT=jnp.zeros_like(rollout.logprobs_BT),
  )

  def loss(logprobs_BT):
    return steps.ppo_loss(
      logprobs_BT, experience.values_BT, experience, ppo=PPO, rows=16
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
  ppo = dataclasses.replace(PPO, micro_batch_size=1)
  assess = steps.assess(tiny.make(), ppo)
  logprobs = assess(params_of(), tiny.policy(), some).logprobs_BT
  assert column < some.response_lengths_B[0] - 1
  gap = jnp.where(some.mask_BT, logprobs - some.logprobs_BT, 0)
  assert jnp.max(jnp.abs(gap)) < 1e-4


def test_a_larger_kl_coef_keeps_the_policy_nearer():
  def drift(kl_coef):
    ppo = dataclasses.replace(
      PPO, kl_coef=kl_coef, whiten=False, vf_coef=0.0, ppo_epochs=1
    )
    reference = tiny.policy(1)
    update = steps.ppo_update(tiny.make(), optax.sgd(0.2), ppo)
    assess = steps.assess(tiny.make(), ppo)
    score = steps.score(ppo)
    state = jax.tree.map(
      jnp.copy, steps.init_state(params_of(), optax.sgd(0.2))
    )
    publish = jax.jit(tiny.make().publish)
    for step in range(20):
      rollout = tiny.sampler()(
        publish(state.params["policy"]), tiny.prompts(8), jax.random.key(step)
      )
      experience, metrics = score(
        rollout, assess(state.params, reference, rollout), jnp.zeros(8)
      )
      state, _ = update(state, experience, jax.random.key(step))
    return metrics["kl"].value()

  assert drift(1.0) < drift(0.0)


def test_a_gradient_that_is_not_finite_changes_nothing():
  params = params_of()
  scores = SCORES.copy()
  scores[0] = np.nan
  _, state, means = learn(params, tiny.sample(), scores=scores)
  assert means["skipped_updates"] == 1
  assert int(state.step) == 0
  chex.assert_trees_all_equal(
    jax.device_get(params), jax.device_get(state.params)
  )


# Supervised ------------------------------------------------------------------


def imitation(rows=6, slots=9, seed=0):
  rng = np.random.default_rng(seed)
  lengths_B = rng.integers(3, slots + 1, rows).astype(np.int32)
  start_B = rng.integers(1, 3, rows)
  at = np.arange(slots)[None]
  return types.SupervisedBatch(
    tokens_BS=rng.integers(0, tiny.CONFIG.vocab_size, (rows, slots)).astype(
      np.int32
    ),
    lengths_B=lengths_B,
    targets_BS=(at >= start_B[:, None]) & (at < lengths_B[:, None]),
  )


def imitate(batch, micro=6):
  optimizer = optax.sgd(0.1)
  update = steps.supervised(
    tiny.make(), optimizer, micro_batch_size=micro, logit_chunk=7
  )
  state = jax.tree.map(
    jnp.copy, steps.init_state({"policy": tiny.policy()}, optimizer)
  )
  state, metrics = update(state, batch)
  return metrics["loss"].value(), jax.device_get(state.params)


def test_supervised_loss_is_the_mean_over_target_tokens():
  batch = imitation()
  network, policy = tiny.make(), tiny.policy()
  hidden = network.hidden(
    policy["trunk"], jnp.asarray(batch.tokens_BS), batch.lengths_B
  )
  table = jax.nn.log_softmax(network.logits(policy, hidden))
  terms = [
    -float(table[row, slot - 1, batch.tokens_BS[row, slot]])
    for row, slot in np.argwhere(batch.targets_BS)
  ]
  assert imitate(batch)[0] == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_supervised_micro_batches_change_no_gradient(micro):
  loss, params = imitate(imitation())
  parts, part_params = imitate(imitation(), micro)
  assert parts == pytest.approx(loss, rel=1e-6)
  chex.assert_trees_all_close(params, part_params, atol=1e-6)


def test_filler_rows_and_padding_change_no_supervised_gradient():
  batch = imitation()
  wide = types.SupervisedBatch(
    tokens_BS=np.pad(batch.tokens_BS, ((0, 2), (0, 3)), constant_values=5),
    lengths_B=np.append(batch.lengths_B, [1, 1]).astype(np.int32),
    targets_BS=np.pad(batch.targets_BS, ((0, 2), (0, 3))),
  )
  loss, params = imitate(batch)
  padded, padded_params = imitate(wide, micro=8)
  assert padded == pytest.approx(loss, rel=1e-5)
  chex.assert_trees_all_close(params, padded_params, atol=1e-6)


def test_gradients_are_clipped_and_the_step_counts():
  config = config_lib.OptimizerConfig(
    learning_rate=1.0, schedule="constant", warmup_fraction=0.0, clip_norm=0.5
  )
  optimizer = optim.build(config, 10)
  state = steps.init_state({"policy": tiny.policy()}, optimizer)
  huge = jax.tree.map(lambda x: jnp.full_like(x, 1e6), state.params)
  clipped, _ = optimizer.update(huge, state.opt_state, state.params)
  assert bool(jnp.isfinite(optax.tree.norm(clipped)))
