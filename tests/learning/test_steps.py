"""The steps: what must be exact, and what must change nothing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches as batches_lib
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.learning import classifier, forward, microbatch, objectives, optim
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import ppo as ppo_lib
from reft_jax.learning import supervised as supervised_lib
from reft_jax.ops import losses
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts as prompt_texts

ROWS = 8
PPO = schema.ReftConfig(
  minibatch_size=ROWS, micro_batch_size=ROWS, vf_coef=0.7, kl_coef=0.1
)
NETWORK, DESCENT = tiny.make(), optax.sgd(0.1)
SCORES = np.float32([1, 0, 0.1, 1, 0.1, 0, 1, 0.1])


def params_of(kind="shared"):
  policy = tiny.policy()
  if kind is None:
    return {"policy": policy}
  value = tiny.make().init_value(policy, kind)
  # A critic that says something.
  head = {"w_D": jnp.linspace(-0.3, 0.3, 16), "b": jnp.float32(0.2)}
  return {"policy": policy, "value": {**value, "head": head}}


@functools.cache
def compiled(network, ppo, optimizer, response_slots=None):
  """A step's three functions, the same for all tests that learn alike."""
  return (
    ppo_lib.make_assess(network, ppo, logit_chunk=16),
    ppo_lib.make_score(ppo),
    ppo_lib.make_update(
      network,
      optimizer,
      ppo,
      response_slots=response_slots,
      logit_chunk=16,
    ),
  )


def started(params, optimizer, kl_coef=0.0):
  """A state that may be donated: `params` and its like stay whole."""
  state = learner_lib.init_state(params, optimizer, kl_coef)
  return jax.tree.map(jnp.copy, state)


def learn(
  params,
  rollout,
  *,
  reference=None,
  ppo=PPO,
  scores=SCORES,
  network=NETWORK,
  optimizer=DESCENT,
  response_slots=None,
  key=0,
):
  """One ReFT step after sampling; returns experience, state and metrics."""
  assess, score, update = compiled(network, ppo, optimizer, response_slots)
  reference = params["policy"] if reference is None else reference
  assessment = assess(params, reference, rollout)
  state = started(params, optimizer, ppo.kl_coef)
  experience, metrics = score(
    rollout, assessment, jnp.asarray(scores), state.kl_coef
  )
  state, learned = update(state, experience, jax.random.key(key))
  means = {k: v.value() for k, v in jax.device_get(metrics | learned).items()}
  return experience, state, means


@pytest.mark.parametrize(
  ("kind", "temperature"),
  [("shared", 0.7), ("shared", 1.0), ("separate", 1.0), ("separate", 1.6)],
)
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
  ppo = dataclasses.replace(PPO, minibatch_size=4)
  _, state, means = learn(params_of(), tiny.sample(), ppo=ppo)
  assert means["ratio/kl"] > 0
  assert state.step == 4  # Two epochs of two minibatches.


def losses_of(rollout, rows=None, scores=SCORES, **options):
  """Loss and gradient norm of a step; `rows` reorders it."""
  if rows is not None:
    rollout, scores = tiny.take(rollout, rows), scores[np.asarray(rows)]
  ppo = dataclasses.replace(PPO, ppo_epochs=1, **options.pop("numbers", {}))
  _, state, means = learn(
    params_of("shared" if ppo.has_critic else None),
    rollout,
    ppo=ppo,
    scores=scores,
    reference=tiny.policy(1),
    **options,
  )
  kept = ("policy/loss", "value/loss", "grad_norm", "kl", "entropy")
  return {k: means[k] for k in kept if k in means}, jax.device_get(state.params)


def test_slots_that_no_row_uses_may_be_cut_off():
  some = tiny.sample()
  wide = tiny.widen(some, prompt=0)
  chex.assert_trees_all_equal(forward.trimmed(wide, tiny.RESPONSE_SLOTS), some)


def test_a_constant_does_not_follow_the_width_of_a_rollout():
  options = {"numbers": {"aggregation": "constant"}, "response_slots": 11}
  wide, _ = losses_of(tiny.widen(tiny.sample()), **options)
  narrow, _ = losses_of(tiny.sample(), **options)
  assert wide == pytest.approx(narrow, rel=1e-4, abs=1e-6)


@functools.cache
def plain_losses():
  """What must not change."""
  return losses_of(tiny.sample())


def test_padding_changes_no_loss():
  plain, params = plain_losses()
  wide, wide_params = losses_of(tiny.widen(tiny.sample()))
  assert wide == pytest.approx(plain, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, wide_params, atol=1e-5)


def test_the_order_of_rows_changes_no_loss():
  plain, params = plain_losses()
  mixed, mixed_params = losses_of(tiny.sample(), [3, 1, 7, 0, 5, 2, 4, 6])
  assert mixed == pytest.approx(plain, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, mixed_params, atol=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_change_no_gradient(micro):
  whole, params = plain_losses()
  parts, part_params = losses_of(
    tiny.sample(), numbers={"micro_batch_size": micro}
  )
  assert parts == pytest.approx(whole, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, part_params, atol=1e-6)


def test_the_gradient_of_a_batch_is_the_mean_of_its_halves():
  params, rollout = params_of(), tiny.sample()
  assess, *_ = compiled(NETWORK, PPO, DESCENT)
  assessment = assess(params, tiny.policy(1), rollout)
  descent = optax.sgd(1.0)

  def gradient(rows):
    ppo = dataclasses.replace(
      PPO,
      ppo_epochs=1,
      whiten=False,  # It looks at the whole batch.
      minibatch_size=len(rows),
      micro_batch_size=len(rows),
    )
    _, score, update = compiled(NETWORK, ppo, descent)
    some = tiny.take((rollout, assessment, SCORES), rows)
    experience, _ = score(*some, ppo.kl_coef)
    state = started(params, descent)
    state, _ = update(state, experience, jax.random.key(0))
    return jax.tree.map(jnp.subtract, params, state.params)

  whole = gradient(range(8))
  left, right = gradient(range(4)), gradient(range(4, 8))
  mean = jax.tree.map(lambda a, b: (a + b) / 2, left, right)
  chex.assert_trees_all_close(whole, mean, atol=1e-6)
  assert optax.tree.norm(jax.tree.map(jnp.subtract, left, right)) > 0.1


def assert_on_the_same_shards(a, b):
  assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape", [(1, 1, 1), (1, 2, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
)
def test_devices_change_no_loss(shape):
  plain, params = plain_losses()
  mesh = tiny.mesh(shape)
  rollout = tiny.sample()
  with jax.set_mesh(mesh):
    placed = mesh_lib.put(mesh, params_of())
    _, state, means = learn(
      placed,
      mesh_lib.put_batch(mesh, rollout),
      reference=mesh_lib.put(mesh, tiny.policy(1)),
      ppo=dataclasses.replace(PPO, ppo_epochs=1),
      scores=mesh_lib.put_batch(mesh, SCORES),
    )
  for name, value in plain.items():
    assert means[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
  chex.assert_trees_all_close(params, jax.device_get(state.params), atol=1e-5)
  # Updates leave parameters on the shards they were put on.
  jax.tree.map(assert_on_the_same_shards, placed, state.params)


@pytest.mark.slow
def test_remat_and_compute_dtype():
  plain, params = plain_losses()
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
    return objectives.build(PPO)(
      ppo_lib.loss_inputs(outputs, experience, weights_BT, 0.0, PPO)
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
  assess = ppo_lib.make_assess(tiny.make(), ppo)
  logprobs = assess(params_of(), tiny.policy(), some).logprobs_BT
  assert column < some.response_lengths_B[0] - 1
  gap = jnp.where(some.mask_BT, logprobs - some.logprobs_BT, 0)
  assert jnp.max(jnp.abs(gap)) < 1e-4


@pytest.mark.slow
def test_a_larger_kl_coef_keeps_the_policy_nearer():
  rows = 32

  def drift(kl_coef):
    """KL in the last five of twenty steps without any reward."""
    ppo = dataclasses.replace(
      PPO,
      kl_coef=kl_coef,
      whiten=False,
      vf_coef=0.0,
      ppo_epochs=1,
      minibatch_size=rows,
      micro_batch_size=rows,
    )
    reference, descent = tiny.policy(1), optax.sgd(0.2)
    assess, score, update = compiled(NETWORK, ppo, descent)
    state = started(params_of(), descent)
    publish = jax.jit(NETWORK.publish)
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
  params = params_of()
  scores = SCORES.copy()
  scores[0] = np.nan
  _, state, means = learn(params, tiny.sample(), scores=scores)
  assert means["skipped_updates"] == 1
  assert int(state.step) == 0
  chex.assert_trees_all_equal(
    jax.device_get(params), jax.device_get(state.params)
  )


# Other objectives ------------------------------------------------------------

# Between them, every switch. Two pairs of rows, or all rows, earn the same.
PAIR_SCORES = np.float32([1, 1, 0.1, 1, 0.1, 0.1, 0, 1])
SAME_SCORES = np.ones(ROWS, np.float32)
NO_REWARD = dataclasses.replace(
  PPO, ppo_epochs=1, advantages="dr_grpo", samples_per_question=2
)
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
def objective_losses(objective):
  return losses_of(
    tiny.sample(), scores=PAIR_SCORES, numbers=OBJECTIVES[objective]
  )


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["token_mean", "constant", "dropped"])
def test_micro_batches_change_no_gradient_of_any_objective(objective):
  whole, params = objective_losses(objective)
  parts, part_params = losses_of(
    tiny.sample(),
    scores=PAIR_SCORES,
    numbers=OBJECTIVES[objective] | {"micro_batch_size": 1},
  )
  assert parts == pytest.approx(whole, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(params, part_params, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["token_mean", "constant", "dropped"])
def test_devices_change_no_loss_of_any_objective(objective):
  plain, params = objective_losses(objective)
  mesh = tiny.mesh((1, 2, 1))
  ppo = dataclasses.replace(
    PPO, ppo_epochs=1, micro_batch_size=4, **OBJECTIVES[objective]
  )
  with jax.set_mesh(mesh):
    _, state, means = learn(
      mesh_lib.put(mesh, params_of("shared" if ppo.has_critic else None)),
      mesh_lib.put_batch(mesh, tiny.sample()),
      reference=mesh_lib.put(mesh, tiny.policy(1)),
      ppo=ppo,
      scores=mesh_lib.put_batch(mesh, PAIR_SCORES),
    )
  for name, value in plain.items():
    assert means[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
  chex.assert_trees_all_close(params, jax.device_get(state.params), atol=1e-5)


@pytest.mark.parametrize("objective", ["dropped", "dropped from gae"])
def test_a_dropped_group_might_as_well_not_be_there(objective):
  _, params = objective_losses(objective)
  _, alone = losses_of(
    tiny.sample(),
    rows=[2, 3, 6, 7],
    scores=PAIR_SCORES,
    numbers=OBJECTIVES[objective]
    | {
      "filter_zero_variance_groups": False,
      "minibatch_size": 4,
      "micro_batch_size": 4,
    },
  )
  chex.assert_trees_all_close(params, alone, atol=1e-6)


def test_a_batch_without_signal_is_no_reason_to_move():
  _, state, means = learn(
    params_of(None),
    tiny.sample(),
    reference=tiny.policy(1),
    ppo=dataclasses.replace(PPO, ppo_epochs=1, **OBJECTIVES["dropped"]),
    scores=SAME_SCORES,
  )
  assert means["reward/groups_with_signal"] == 0
  assert means["grad_norm"] == 0
  chex.assert_trees_all_equal(state.params, params_of(None))


def test_without_a_critic_there_are_no_values():
  experience, state, means = learn(
    params_of(None),
    tiny.sample(),
    ppo=dataclasses.replace(PPO, ppo_epochs=1, **OBJECTIVES["constant"]),
    scores=PAIR_SCORES,
  )
  assert experience.values_BT is None
  assert experience.returns_BT is None
  assert state.params.keys() == {"policy"}
  assert not [name for name in means if name.startswith("value")]
  assert means["ratio/first_deviation"] == 0


def test_at_the_reference_a_kl_loss_has_no_gradient():
  ppo = dataclasses.replace(
    NO_REWARD, kl_in="loss", kl_estimator="k3", kl_coef=100.0
  )

  def kl_loss(reference):
    return learn(
      params_of(None),
      tiny.sample(),
      reference=reference,
      ppo=ppo,
      scores=SAME_SCORES,
    )[2]

  at, away = kl_loss(tiny.policy()), kl_loss(tiny.policy(1))
  assert at["policy/kl_loss"] < 1e-10
  assert at["grad_norm"] < 1e-2
  assert away["policy/kl_loss"] > 0.1
  assert away["grad_norm"] > 100


def test_the_kl_coefficient_is_adapted_to_its_target():
  target = 1e3
  ppo = dataclasses.replace(PPO, ppo_epochs=1, kl_target=target, kl_horizon=16)
  _, state, means = learn(
    params_of(), tiny.sample(), reference=tiny.policy(1), ppo=ppo
  )
  assert means["kl_coef"] == pytest.approx(ppo.kl_coef)
  assert means["kl"] < target
  want = ppo.kl_coef * (1 - 0.2 * ROWS / 16)
  assert float(state.kl_coef) == pytest.approx(want)


def test_the_critic_alone_learns_at_first():
  ppo = dataclasses.replace(PPO, minibatch_size=4, value_warmup_steps=2)
  optimizer = optax.adam(1e-2)
  assess, score, update = compiled(NETWORK, ppo, optimizer)
  state = started(params_of(), optimizer, ppo.kl_coef)
  for step in range(3):
    rollout = tiny.sample()
    before = jax.device_get(state.params)
    experience, _ = score(
      rollout,
      assess(state.params, tiny.policy(1), rollout),
      jnp.asarray(SCORES),
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
  ppo = dataclasses.replace(
    NO_REWARD, ppo_epochs=8, entropy_coef=1.0, kl_coef=0.0
  )
  _, _, means = learn(
    params_of(None), tiny.sample(), ppo=ppo, scores=SAME_SCORES
  )
  assert means["entropy"] > plain_losses()[0]["entropy"] + 0.05


# Rows that the devices, or micro-batches, cannot share alike: six of them, in
# updates of three or of all.
UNEVEN = {
  "gae": {"minibatch_size": 3, "kl_target": 2.0, "kl_horizon": 40},
  "rloo": OBJECTIVES["dropped"]
  | {"aggregation": "token_mean", "entropy_coef": 0.3, "minibatch_size": 6},
}


def learn_uneven(objective, micro, mesh=None):
  """All metrics of a step, and the state after it."""
  ppo = dataclasses.replace(PPO, micro_batch_size=micro, **UNEVEN[objective])
  inputs = {
    "params": params_of("separate" if ppo.has_critic else None),
    "reference": tiny.policy(1),
  }
  rows = tiny.take((tiny.sample(), PAIR_SCORES), range(6))
  if mesh is not None:
    inputs, rows = mesh_lib.put(mesh, inputs), mesh_lib.put_batch(mesh, rows)
  rollout, scores = rows
  experience, state, means = learn(
    rollout=rollout, scores=scores, ppo=ppo, **inputs
  )
  assert experience.advantages_BT.shape[0] == 6
  return means, jax.device_get((state.params, state.kl_coef, state.step))


@functools.cache
def uneven(objective):
  """The same, of whole minibatches on one device."""
  return learn_uneven(objective, UNEVEN[objective]["minibatch_size"])


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
  plain, changed = uneven(objective)
  if shape is None:
    same, same_changed = learn_uneven(objective, micro)
  else:
    mesh = tiny.mesh(shape)
    with jax.set_mesh(mesh):
      same, same_changed = learn_uneven(objective, micro, mesh)
  assert same == pytest.approx(plain, rel=1e-5, abs=1e-5)
  chex.assert_trees_all_close(same_changed, changed, atol=1e-5)
  assert plain["reward/mean"] == pytest.approx(PAIR_SCORES[:6].mean())


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


@functools.cache
def compiled_imitation(optimizer, micro):
  return supervised_lib.make_update(
    NETWORK, optimizer, micro_batch=micro, logit_chunk=7
  )


def imitate(batch, micro=6, policy=None):
  """Loss of a batch, and the parameters after one update."""
  params = {"policy": tiny.policy() if policy is None else policy}
  state = started(params, DESCENT)
  state, metrics = compiled_imitation(DESCENT, micro)(state, batch)
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


def test_a_batch_twice_over_has_the_same_supervised_gradient():
  batch = imitation()
  twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
  loss, params = imitate(batch)
  doubled, doubled_params = imitate(twice, micro=12)
  assert doubled == pytest.approx(loss, rel=1e-6)
  chex.assert_trees_all_close(params, doubled_params, atol=1e-6)


update_parts = supervised_lib.make_update(
  NETWORK,
  DESCENT,
  micro_batch=3,  # Of the larger batch; the smaller is computed at once.
  logit_chunk=7,
  weights={"correct": 0.5, "gold": 0.5},
)


def test_several_batches_weigh_the_same_whatever_they_hold():
  few, many = imitation(rows=2, seed=1), imitation()
  params = {"policy": tiny.policy()}
  state, metrics = update_parts(started(params, DESCENT), few, many)
  (few_loss, few_params), (many_loss, many_params) = map(imitate, (few, many))
  mean = jax.tree.map(lambda a, b: (a + b) / 2, few_params, many_params)
  chex.assert_trees_all_close(jax.device_get(state.params), mean, atol=1e-6)
  want = {
    "loss/correct": few_loss,
    "loss/gold": many_loss,
    "loss": (few_loss + many_loss) / 2,
  }
  found = {name: metrics[name].value() for name in want}
  assert found == pytest.approx(want, rel=1e-6)


def test_a_batch_without_targets_leaves_the_other_its_weight():
  batch, params = imitation(), {"policy": tiny.policy()}
  nothing = batch.replace(targets_BS=np.zeros_like(batch.targets_BS))
  state, metrics = update_parts(started(params, DESCENT), nothing, batch)
  loss, alone = imitate(batch)
  half = jax.tree.map(lambda a, b: (a + b) / 2, params, alone)
  chex.assert_trees_all_close(state.params, half, atol=1e-6)
  assert metrics["loss"].value() == pytest.approx(loss / 2, rel=1e-6)
  assert metrics["skipped_updates"].value() == 0


def test_imitated_are_the_actions_of_correct_rows():
  rollout = tiny.sample()
  correct_B = np.array([True, False] * 4)
  batch = jax.device_get(
    supervised_lib.imitations(rollout, jnp.asarray(correct_B))
  )
  for row in range(ROWS):
    start = int(rollout.prompt_lengths_B[row])
    length = int(rollout.response_lengths_B[row])
    prompt = rollout.prompt_BP[row, :start].tolist()
    response = rollout.response_BT[row, :length].tolist()
    assert batch.tokens_BS[row, : start + length].tolist() == prompt + response
    assert batch.lengths_B[row] == start + length
    want = range(start, start + length) if correct_B[row] else ()
    assert np.flatnonzero(batch.targets_BS[row]).tolist() == [*want]
  # What the sampler says of them is what they cost.
  kept_BT = np.asarray(rollout.mask_BT) & correct_B[:, None]
  mean = -np.asarray(rollout.logprobs_BT)[kept_BT].mean()
  assert imitate(batch, micro=8)[0] == pytest.approx(mean, abs=1e-5)


def imitate_parts(mesh=None):
  """The parameters after two minibatches, of three rows of a rollout each."""
  params, rollout = (
    {"policy": tiny.policy()},
    tiny.take(tiny.sample(), range(6)),
  )
  rows = (rollout, np.array([True, True, False] * 2), imitation())
  if mesh is not None:
    params, rows = mesh_lib.put(mesh, params), mesh_lib.put_batch(mesh, rows)
  rollout, correct_B, gold = rows
  batches = (supervised_lib.imitations(rollout, correct_B), gold)
  state = started(params, DESCENT)
  held = []
  for first in (0, 3):
    some = microbatch.slice_rows(batches, first, 3)
    held.append(jax.device_get(some))
    state, _ = update_parts(state, *some)
  return held, jax.device_get(state.params)


@pytest.mark.slow
def test_minibatches_hold_the_same_rows_on_any_number_of_devices():
  held, params = imitate_parts()
  mesh = tiny.mesh((1, 4, 1))
  with jax.set_mesh(mesh):
    same_held, same_params = imitate_parts(mesh)
  chex.assert_trees_all_equal(same_held, held)
  chex.assert_trees_all_close(same_params, params, atol=1e-6)


def test_gradients_are_clipped_and_updates_counted():
  largest = 0.01
  config = schema.OptimizerConfig(
    learning_rate=1e-3,
    schedule="constant",
    warmup_fraction=0.0,
    b1=0.0,  # The first moment is then the last gradient.
    clip_norm=largest,
  )
  optimizer = optim.build(config, 10)
  state = started({"policy": tiny.policy()}, optimizer)
  update = compiled_imitation(optimizer, 6)
  for count in (1, 2):
    state, metrics = update(state, imitation())
    assert state.step == count
    # Told as it was before clipping.
    assert metrics["grad_norm"].value() > 10 * largest
    norm = optax.tree.norm(optax.tree.get(state.opt_state, "mu"))
    assert norm == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize(
  ("rows", "micro", "shape"),
  [(8, 8, (1, 2, 1)), (8, 8, (1, 8, 1)), (6, 4, (1, 4, 1)), (6, 4, (2, 4, 1))],
)
def test_devices_change_no_supervised_loss(rows, micro, shape):
  batch = imitation(rows)
  loss, params = imitate(batch, micro=rows)
  mesh = tiny.mesh(shape)
  with jax.set_mesh(mesh):
    sharded, sharded_params = imitate(
      mesh_lib.put_batch(mesh, batch),
      micro=micro,
      policy=mesh_lib.put(mesh, tiny.policy()),
    )
  assert sharded == pytest.approx(loss, rel=1e-6)
  chex.assert_trees_all_close(params, sharded_params, atol=1e-6)


# Classifier ------------------------------------------------------------------


def labelled(rows=6, fillers=0, slots=9):
  batch = imitation(rows, slots)
  pad = ((0, fillers),)
  return types.LabelledBatch(
    tokens_BS=np.pad(batch.tokens_BS, (*pad, (0, 0)), constant_values=5),
    lengths_B=np.pad(batch.lengths_B, pad, constant_values=1),
    labels_B=np.pad(np.arange(rows, dtype=np.int32) % 3 % 2, pad),
    real_B=np.arange(rows + fillers) < rows,
  )


@functools.cache
def scorer():
  return NETWORK.init_scorer(tiny.policy(), jax.random.key(5))


@functools.cache
def compiled_classifier(micro):
  return classifier.make_update(NETWORK, DESCENT, micro_batch=micro)


def judge(batch, micro=6, params=None):
  """Loss and accuracy of a batch, and the scorer after one update."""
  state = started({"scorer": params or scorer()}, DESCENT)
  state, metrics = compiled_classifier(micro)(state, batch)
  means = {name: metrics[name].value() for name in ("loss", "accuracy")}
  return means, jax.device_get(state.params["scorer"])


def test_a_classifier_learns_from_the_probability_it_tells():
  batch = labelled()
  probability_B = np.asarray(
    classifier.make_scores(NETWORK)(scorer(), batch.tokens_BS, batch.lengths_B)
  )
  means, params = judge(batch)
  right_B = np.where(batch.labels_B, probability_B, 1 - probability_B)
  assert means["loss"] == pytest.approx(-np.log(right_B).mean(), rel=1e-5)
  assert means["accuracy"] == np.mean(right_B > 0.5)
  moved = jax.tree.map(lambda a, b: (a != b).any(), params, scorer())
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(("micro", "fillers"), [(1, 0), (4, 2)])
def test_micro_batches_and_fillers_change_no_classifier(micro, fillers):
  means, params = judge(labelled())
  same, same_params = judge(labelled(fillers=fillers), micro)
  assert same == pytest.approx(means, rel=1e-5)
  chex.assert_trees_all_close(params, same_params, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("rows", "micro", "shape"), [(8, 4, (1, 2, 2)), (6, 3, (1, 4, 1))]
)
def test_devices_change_no_classifier(rows, micro, shape):
  means, params = judge(labelled(rows), micro=rows)
  mesh = tiny.mesh(shape)
  with jax.set_mesh(mesh):
    same, sharded = judge(
      mesh_lib.put_batch(mesh, labelled(rows)),
      micro=micro,
      params=mesh_lib.put(mesh, scorer()),
    )
  assert same == pytest.approx(means, rel=1e-5)
  chex.assert_trees_all_close(params, sharded, atol=1e-6)


# Ids of the special tokens ---------------------------------------------------

# The same 29 tokens under other ids: pad, bos and eos are 0, 1 and 3, or 7, 11
# and 13. `names_V[v]` is what token v is called.
PAD, BOS, EOS = 0, 1, 3
DIGITS = [*"0123456789"]
USUAL = np.arange(tiny.CONFIG.vocab_size)
OTHER = USUAL.copy()
OTHER[[0, 1, 3, 7, 11, 13]] = [7, 11, 13, 0, 1, 3]


def word_tokenizer(names_V) -> tokenizer_lib.Tokenizer:
  """A token a word, for problems of digits."""
  phrases = (
    prompt_texts.INSTRUCTION,
    prompt_texts.COT_TRIGGER,
    prompt_texts.ANSWER_TRIGGER,
  )
  words = iter([*" ".join(phrases).split(), *DIGITS, *"abcdefghi"])
  special = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
  core = tokenizers.Tokenizer(
    models.WordLevel(
      {special.get(v) or next(words): int(names_V[v]) for v in USUAL}
    )
  )
  core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return tokenizer_lib.wrap(
    transformers.PreTrainedTokenizerFast(
      tokenizer_object=core,
      pad_token="<pad>",
      bos_token="<bos>",
      eos_token="<eos>",
    )
  )


def renamed(policy, names_V):
  """The policy that takes and gives the same tokens under other ids."""
  order_V = np.argsort(names_V)
  trunk = policy["trunk"] | {"embed_VD": policy["trunk"]["embed_VD"][order_V]}
  return {"trunk": trunk, "lm_DV": policy["lm_DV"][:, order_V]}


def from_text_to_losses(names_V):
  """All that special ids may touch, with ids turned back into the usual."""
  rng = np.random.default_rng(0)
  tokenizer = word_tokenizer(names_V)
  special = [tokenizer.pad_id, tokenizer.bos_id, *tokenizer.eos_ids]
  assert special == names_V[[PAD, BOS, EOS]].tolist()
  problems = [
    problem_lib.Problem(
      uid="embedded_0",
      task="embedded",
      question=" ".join(rng.choice(DIGITS, 1 + row % 2)),
      rationale=" ".join(rng.choice(DIGITS, 1 + row % 4)),
      answer="7",
    )
    for row in range(ROWS)
  ]
  examples = encode.encode(
    problems,
    tokenizer,
    reasoning="nl",
    add_bos=True,
    max_prompt_tokens=tiny.PROMPT_SLOTS,
    max_response_tokens=16,
  ).examples

  # Of a seed whose greedy rows end and are cut.
  policy, reference = (renamed(tiny.policy(seed), names_V) for seed in (7, 1))
  batch = batches_lib.supervised(
    [(example.prompt, example.target) for example in examples],
    batch=ROWS,
    slots=24,
    pad_id=tokenizer.pad_id,
  )
  loss, imitated = imitate(batch, ROWS, policy)

  # Greedily: what a random number picks depends on the order of the ids.
  sampler = tiny.sampler(0.0, eos=tokenizer.eos_ids, pad=tokenizer.pad_id)
  prompts = batches_lib.prompts(
    [example.prompt for example in examples],
    range(ROWS),
    batch=ROWS,
    slots=tiny.PROMPT_SLOTS,
    pad_id=tokenizer.pad_id,
  )
  rollout = sampler(
    jax.jit(tiny.make().publish)(policy), prompts, jax.random.key(0)
  )
  params = {**params_of(), "policy": policy}
  _, state, means = learn(params, rollout, reference=reference)
  back_V = np.argsort(names_V)
  return {
    "tokens": back_V[batch.tokens_BS],
    "prompts": back_V[rollout.prompt_BP],
    "responses": back_V[rollout.response_BT],
    "lengths": np.asarray(rollout.response_lengths_B),
    "ended": np.asarray(rollout.ended_B),
    "texts": [tokenizer.decode(row) for row in rollout.response_BT],
  }, {
    "logprobs": rollout.logprobs_BT,
    "loss": loss,
    "means": means,
    "imitated": renamed(imitated["policy"], back_V),
    "learnt": renamed(state.params["policy"], back_V),
  }


def test_ids_of_special_tokens_change_nothing():
  exact, near = from_text_to_losses(USUAL)
  other_exact, other_near = from_text_to_losses(OTHER)
  assert exact["ended"].any()
  assert not exact["ended"].all()
  np.testing.assert_equal(other_exact, exact)
  chex.assert_trees_all_close(other_near, near, atol=1e-5, rtol=1e-4)
