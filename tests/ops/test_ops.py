"""The maths: properties first, then a number worked out by hand."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from reft_jax.ops import advantages, kl, logprobs, losses, masked, sequences

B, T, V = 5, 7, 11


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def lengths_mask(lengths, slots=T):
  return jnp.arange(slots)[None, :] < jnp.asarray(lengths)[:, None]


MASK = lengths_mask([1, 7, 3, 5, 2])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_the_plain_loop(gamma, lam):
  rewards, values = random(B, T, seed=1), random(B, T, seed=2)
  ours, returns = advantages.gae(rewards, values, MASK, gamma=gamma, lam=lam)
  expected = np.zeros((B, T))
  for row in range(B):
    length = int(MASK[row].sum())
    later = 0.0
    for t in reversed(range(length)):
      ahead = float(values[row, t + 1]) if t + 1 < length else 0.0
      delta = float(rewards[row, t]) + gamma * ahead - float(values[row, t])
      later = expected[row, t] = delta + gamma * lam * later
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  np.testing.assert_allclose(
    returns, np.where(MASK, expected + values, 0), atol=1e-5
  )


def test_lambda_1_returns_are_the_rewards_to_go():
  rewards, values = random(B, T, seed=1), random(B, T, seed=2)
  _, returns = advantages.gae(rewards, values, MASK, gamma=1.0, lam=1.0)
  kept = jnp.where(MASK, rewards, 0)
  to_go = jnp.cumsum(kept[:, ::-1], axis=1)[:, ::-1]
  np.testing.assert_allclose(returns, jnp.where(MASK, to_go, 0), atol=1e-5)


def test_what_lies_behind_the_last_action_changes_nothing():
  rewards, values = random(B, T, seed=1), random(B, T, seed=2)
  plain = advantages.gae(rewards, values, MASK, gamma=1.0, lam=0.95)
  poisoned = advantages.gae(
    jnp.where(MASK, rewards, jnp.nan),
    jnp.where(MASK, values, 1e6),
    MASK,
    gamma=1.0,
    lam=0.95,
  )
  chex.assert_trees_all_equal(plain, poisoned)


@hypothesis.given(
  lengths=st.lists(st.integers(1, T), min_size=2, max_size=6),
  kl_coef=st.sampled_from([0.0, 0.01, 0.5]),
)
@hypothesis.settings(max_examples=25)
def test_rewards_of_a_row_add_up_to_its_score_less_its_kl(lengths, kl_coef):
  rows = len(lengths)
  mask = lengths_mask(lengths)
  scores = random(rows, seed=3)
  rewards, kl = advantages.kl_penalised(
    scores,
    random(rows, T, seed=1),
    random(rows, T, seed=2),
    mask,
    kl_coef=kl_coef,
  )
  np.testing.assert_allclose(
    rewards.sum(axis=1), scores - kl_coef * kl.sum(axis=1), atol=1e-5
  )
  assert (np.asarray(rewards)[~np.asarray(mask)] == 0).all()


def test_scores_lie_at_the_last_action():
  # EOS first, cut at the limit, ended in between: worked out by hand.
  placed = advantages.terminal(
    jnp.array([1.0, 0.1, 1.0]), jnp.array([1, 3, 2]), 3
  )
  np.testing.assert_array_equal(
    placed, np.float32([[1, 0, 0], [0, 0, 0.1], [0, 1, 0]])
  )


def test_equal_policies_have_a_kl_of_exactly_0():
  same = random(B, T)
  rewards, kl = advantages.kl_penalised(
    jnp.zeros(B), same, same, MASK, kl_coef=0.5
  )
  assert not kl.any()
  assert not rewards.any()


# A policy and a reference over five symbols, and what is expected of samples.

POLICY_V = random(5, seed=6)
REFERENCE_V = random(5, seed=7)


def exact_kl(logits_V, reference_V):
  logs_V, reference_V = map(jax.nn.log_softmax, (logits_V, reference_V))
  return jnp.sum(jnp.exp(logs_V) * (logs_V - reference_V))


def estimated(name, logits_V):
  """An estimator at each of the five symbols."""
  return kl.ESTIMATORS[name](
    jax.nn.log_softmax(logits_V), jax.nn.log_softmax(REFERENCE_V)
  )


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_mean_of_an_estimator_is_the_kl(name):
  mean = jnp.sum(jax.nn.softmax(POLICY_V) * estimated(name, POLICY_V))
  assert float(mean) == pytest.approx(
    float(exact_kl(POLICY_V, REFERENCE_V)), rel=1e-5
  )


def test_k2_is_near_a_small_kl():
  near_V = REFERENCE_V + 0.01 * POLICY_V
  mean = jnp.sum(jax.nn.softmax(near_V) * estimated("k2", near_V))
  small = exact_kl(near_V, REFERENCE_V)
  assert float(mean) == pytest.approx(float(small), rel=0.02)


def test_only_k1_may_be_negative():
  assert (estimated("k1", POLICY_V) < 0).any()
  assert (estimated("k2", POLICY_V) >= 0).all()
  assert (estimated("k3", POLICY_V) >= 0).all()


def loss_gradient(name):
  """Of an estimator as a loss: the samples are drawn and do not move."""
  drawn_V = jax.nn.softmax(POLICY_V)
  return jax.grad(lambda x_V: jnp.sum(drawn_V * estimated(name, x_V)))(POLICY_V)


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_the_gradient_of_an_estimator_is_that_of_finite_differences(name):
  probs_V = np.float64(jax.nn.softmax(POLICY_V))

  def loss(logits_V):
    logs_V = logits_V - np.log(np.exp(logits_V).sum())
    reference_V = np.float64(REFERENCE_V)
    x_V = logs_V - (reference_V - np.log(np.exp(reference_V).sum()))
    by_hand = {"k1": x_V, "k2": x_V**2 / 2, "k3": np.exp(-x_V) - 1 + x_V}
    return (probs_V * by_hand[name]).sum()

  steps = 1e-5 * np.eye(5)
  start_V = np.float64(POLICY_V)
  want = [(loss(start_V + s) - loss(start_V - s)) / 2e-5 for s in steps]
  np.testing.assert_allclose(loss_gradient(name), want, atol=1e-5)


def test_what_each_estimator_teaches_as_a_loss():
  zeros_V = np.zeros(5)
  forward_V = jax.grad(exact_kl)(POLICY_V, REFERENCE_V)
  backward_V = jax.grad(exact_kl, argnums=1)(REFERENCE_V, POLICY_V)
  np.testing.assert_allclose(loss_gradient("k1"), zeros_V, atol=1e-6)
  np.testing.assert_allclose(loss_gradient("k2"), forward_V, atol=1e-6)
  np.testing.assert_allclose(loss_gradient("k3"), backward_V, atol=1e-6)


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_estimators_of_equal_policies_are_exactly_0(name):
  assert not kl.ESTIMATORS[name](POLICY_V, POLICY_V).any()


def test_the_coefficient_follows_the_kl_by_hand():
  def next_after(measured):
    return float(
      kl.adapted(
        jnp.float32(0.5), jnp.float32(measured), target=6, horizon=100, rows=10
      )
    )

  assert next_after(6.0) == 0.5
  assert next_after(6.6) == pytest.approx(0.5 * (1 + 0.1 * 10 / 100))
  assert next_after(60.0) == pytest.approx(0.5 * (1 + 0.2 * 10 / 100))
  assert next_after(0.0) == pytest.approx(0.5 * (1 - 0.2 * 10 / 100))
  fast = kl.adapted(0.5, jnp.float32(0.0), target=6.0, horizon=1, rows=10)
  assert fast == 0


def test_group_relative_advantages_by_hand():
  scores_QG = jnp.array([[1.0, 0.0, 0.0, 1.0]])
  # Around the mean 0.5; the variance with Bessel's correction is 4 / 4 / 3.
  centered = np.float32([0.5, -0.5, -0.5, 0.5])
  rows = {
    "grpo": centered / (np.sqrt(1 / 3) + 1e-4),
    "dr_grpo": centered,
    "rloo": np.float32([1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3]),
  }
  assert rows.keys() == advantages.GROUP_RELATIVE.keys()
  for name, row in rows.items():
    found_QG = advantages.GROUP_RELATIVE[name](scores_QG)
    np.testing.assert_allclose(found_QG[0], row, rtol=1e-5)


@pytest.mark.parametrize("group", [3, 7, 8])
@pytest.mark.parametrize("relative", advantages.GROUP_RELATIVE.values())
def test_where_all_earn_the_same_there_is_no_advantage_at_all(group, relative):
  # Not nearly none: Adam takes a whole step along the smallest gradient.
  scores_QG = jnp.float32([[0.1] * group, [1.0] * group, [0.7] * group])
  np.testing.assert_array_equal(jax.jit(relative)(scores_QG), 0 * scores_QG)
  costs_QG = jnp.full_like(scores_QG, 0.3)
  found_QG = jax.jit(relative)(scores_QG, costs_QG)
  np.testing.assert_array_equal(found_QG, 0 * scores_QG)


@hypothesis.given(st.permutations(range(4)), st.floats(-2, 2))
@hypothesis.settings(max_examples=20)
def test_group_advantages_follow_their_row_and_ignore_what_all_earn(
  order, more
):
  scores_QG = random(3, 4, seed=8)
  for relative in advantages.GROUP_RELATIVE.values():
    plain_QG = relative(scores_QG)
    np.testing.assert_allclose(
      relative(scores_QG[:, jnp.array(order)]),
      plain_QG[:, jnp.array(order)],
      atol=1e-5,
    )
    np.testing.assert_allclose(relative(scores_QG + more), plain_QG, atol=1e-4)
    np.testing.assert_allclose(plain_QG.sum(axis=1), 0, atol=1e-4)


def test_an_advantage_of_a_group_is_that_of_all_of_a_rows_actions():
  mask = lengths_mask([2, 1, 3, 3], 3)
  # Rewards of -1 an action and a score at the end: 1 - 2, 0 - 1, 1 - 3, 1 - 3.
  scores_B = jnp.array([1.0, 0, 1, 1])
  rewards_BT = jnp.where(mask, -1.0, jnp.nan) + advantages.terminal(
    scores_B, jnp.array([2, 1, 3, 3]), 3
  )
  found_BT = advantages.of_groups(
    scores_B, rewards_BT, mask, group=2, relative=advantages.dr_grpo
  )
  np.testing.assert_array_equal(found_BT, np.zeros((4, 3)))
  rewards_BT = rewards_BT.at[1, 0].add(3)
  found_BT = advantages.of_groups(
    scores_B, rewards_BT, mask, group=2, relative=advantages.dr_grpo
  )
  np.testing.assert_array_equal(
    found_BT[:2], np.float32([[-1.5, -1.5, 0], [1.5, 0, 0]])
  )


def test_grpo_does_not_blow_costs_up_where_all_earn_the_same():
  scores_QG = jnp.array([[1.0, 1, 1], [1, 0, 0]])
  costs_QG = jnp.array([[0.01, 0.02, 0.03], [0.01, 0.02, 0.03]])
  found_QG = advantages.grpo(scores_QG, costs_QG)
  np.testing.assert_allclose(found_QG[0], [0.01, 0, -0.01], atol=1e-6)
  np.testing.assert_allclose(
    found_QG - advantages.grpo(scores_QG),
    np.float32([[0.01, 0, -0.01]] * 2),
    atol=1e-6,
  )
  # The others are linear: costs are as good as lower scores.
  for relative in (advantages.dr_grpo, advantages.rloo):
    np.testing.assert_allclose(
      relative(scores_QG, costs_QG), relative(scores_QG - costs_QG), atol=1e-6
    )


def test_groups_of_equal_scores_have_no_signal():
  scores_B = jnp.array([1.0, 1, 1, 0.1, 0.1, 0.1, 0, 0, 0.1])
  np.testing.assert_array_equal(
    advantages.with_signal(scores_B, group=3), [False] * 6 + [True] * 3
  )


def test_whitened_advantages_have_mean_0_and_variance_1():
  white = masked.whiten(random(B, T) * 3 + 2, MASK)
  inside = np.asarray(white, np.float64)[np.asarray(MASK)]
  assert abs(inside.mean()) < 1e-6
  assert abs(inside.var(ddof=1) - 1) < 1e-5


def test_rows_of_padding_change_no_statistic():
  x = random(B, T)
  more = jnp.concatenate([x, jnp.full((2, T), jnp.nan)])
  more_mask = jnp.concatenate([MASK, jnp.zeros((2, T), bool)])
  np.testing.assert_allclose(
    masked.whiten(x, MASK), masked.whiten(more, more_mask)[:B], atol=1e-6
  )


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_of_almost_nothing_are_finite(count):
  mask = jnp.zeros((2, 3), bool).at[0, :count].set(True)
  white = masked.whiten(random(2, 3), mask)
  assert jnp.isfinite(white).all()
  assert float(masked.mean(random(2, 3), jnp.zeros((2, 3), bool))) == 0


def test_value_clipping_by_hand():
  # Old value 0, return 1, clip 0.2; in, above and below the band.
  loss = losses.clipped_value(
    jnp.array([[0.1, 0.9, -0.5]]),
    jnp.zeros((1, 3)),
    jnp.ones((1, 3)),
    clip=0.2,
  )
  expected = [0.5 * 0.9**2, 0.5 * 0.8**2, 0.5 * 1.5**2]
  np.testing.assert_allclose(loss[0], expected, rtol=1e-6)


def test_policy_clipping_by_hand():
  # Ratio 1.5 and 0.5 with an advantage of 1 and of -1; clip 0.2.
  ratios = jnp.array([[1.5, 0.5, 1.5, 0.5]])
  signs = jnp.array([[1.0, 1.0, -1.0, -1.0]])
  loss = losses.clipped_policy(ratios, signs, clip=0.2)
  np.testing.assert_allclose(loss[0], [-1.2, -0.5, 1.5, 0.8], rtol=1e-6)


def test_the_upper_clip_range_may_be_wider():
  ratios = jnp.array([[1.25, 1.5, 0.5]])
  loss = losses.clipped_policy(
    ratios, jnp.ones((1, 3)), clip=0.2, clip_high=0.28
  )
  np.testing.assert_allclose(loss[0], [-1.25, -1.28, -0.5], rtol=1e-6)
  low = losses.clip_ratio(jnp.array([[0.5]]), clip=0.2, clip_high=0.28)
  assert float(low[0, 0]) == pytest.approx(0.8)


@pytest.mark.parametrize(
  ("aggregation", "loss"),
  [
    ("sequence_mean", ((1 + 3) / 2 + 4) / 2),
    ("token_mean", (1 + 3 + 4) / 3),
    ("constant", (1 + 3 + 4) / (2 * 3)),
  ],
)
@pytest.mark.parametrize("fillers", [0, 2])
def test_weights_by_hand(aggregation, loss, fillers):
  losses_BT = jnp.array([[1.0, 3.0, jnp.nan], [4.0, jnp.inf, 9.0]])
  losses_BT = jnp.pad(losses_BT, ((0, fillers), (0, 0)))
  weights_BT = losses.weights(
    lengths_mask([2, 1] + [0] * fillers, 3), aggregation
  )
  assert float(losses.weighted(losses_BT, weights_BT)) == pytest.approx(loss)


@pytest.mark.parametrize("chunk", [1, 4, 35, 1000])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_chunked_logprobs_are_the_plain_ones(chunk, temperature):
  hidden, head = random(B, T, 6), random(6, V, seed=1)
  tokens = jnp.asarray(np.random.default_rng(2).integers(0, V, (B, T)))

  def chunked(hidden, head):
    return logprobs.of_tokens(
      lambda rows: rows @ head,
      hidden,
      tokens,
      temperature=temperature,
      chunk=chunk,
    )

  def plain(hidden, head):
    table = jax.nn.log_softmax(hidden @ head / temperature)
    chosen = jnp.take_along_axis(table, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(table) * table, axis=-1)

  def total(function):
    return lambda *args: sum(jnp.sum(x * MASK) for x in function(*args))

  chex.assert_trees_all_close(
    chunked(hidden, head), plain(hidden, head), atol=1e-5
  )
  chex.assert_trees_all_close(
    jax.grad(total(chunked), argnums=(0, 1))(hidden, head),
    jax.grad(total(plain), argnums=(0, 1))(hidden, head),
    atol=1e-5,
  )


def test_no_array_of_all_logits_exists():
  """The largest array of the gradient is a chunk's, not the batch's."""
  rows, width, vocabulary, chunk = 256, 8, 1000, 16
  tokens = jnp.zeros((1, rows), jnp.int32)

  def loss(hidden, head):
    found, _ = logprobs.of_tokens(
      lambda some: some @ head, hidden, tokens, chunk=chunk
    )
    return found.sum()

  compiled = (
    jax.jit(jax.grad(loss, argnums=(0, 1)))
    .lower(random(1, rows, width), random(width, vocabulary))
    .compile()
  )
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 0.3 * rows * vocabulary * 4


def test_join_and_the_one_shift():
  prompt = jnp.array([[5, 6, 0], [7, 0, 0]])
  response = jnp.array([[1, 2], [3, 9]])
  tokens = sequences.join(
    prompt, jnp.array([2, 1]), response, jnp.array([2, 1])
  )
  np.testing.assert_array_equal(tokens, [[5, 6, 1, 2, 0], [7, 3, 0, 0, 0]])
  # Hidden rows that say where they are: action t is predicted at P - 1 + t.
  hidden = jnp.broadcast_to(jnp.arange(5.0)[None, :, None], (2, 5, 1))
  rows = sequences.predicting(hidden, jnp.array([2, 1]), 2)
  np.testing.assert_array_equal(rows[..., 0], [[1, 2], [0, 1]])


def test_devices_share_the_work_of_the_head():
  """Each device computes the logits of its own rows and of no other's."""
  rows, slots, width, vocabulary = 8, 64, 16, 512
  tokens = jnp.zeros((rows, slots), jnp.int32)

  def loss(hidden, head):
    found, _ = logprobs.of_tokens(
      lambda some: some @ head, hidden, tokens, chunk=64
    )
    return found.sum()

  def flops(devices):
    mesh = jax.make_mesh(
      (devices,),
      ("fsdp",),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:devices],
    )
    spread = jax.NamedSharding(mesh, jax.P("fsdp"))
    whole = jax.NamedSharding(mesh, jax.P())
    compiled = (
      jax.jit(jax.grad(loss, argnums=(0, 1)), in_shardings=(spread, whole))
      .lower(random(rows, slots, width), random(width, vocabulary))
      .compile()
    )
    assert f"f32[{rows},{slots},{width}]" not in compiled.as_text() or (
      devices == 1
    )
    return compiled.cost_analysis()["flops"]

  assert flops(8) < 0.2 * flops(1)
