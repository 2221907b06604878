"""Supervised updates: the loss, and what must change nothing."""

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
from reft_jax.learning import microbatch, optim
from reft_jax.learning import supervised as supervised_lib
from reft_jax.runtime import mesh as mesh_lib


def test_supervised_loss_is_the_mean_over_target_tokens():
  batch = steps.imitation()
  network, policy = tiny.make(), tiny.policy()
  hidden = network.hidden(
    policy["trunk"], jnp.asarray(batch.tokens_BS), batch.lengths_B
  )
  table = jax.nn.log_softmax(network.logits(policy, hidden))
  terms = [
    -float(table[row, slot - 1, batch.tokens_BS[row, slot]])
    for row, slot in np.argwhere(batch.targets_BS)
  ]
  assert steps.imitate(batch)[0] == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_supervised_micro_batches_change_no_gradient(micro):
  loss, params = steps.imitate(steps.imitation())
  parts, part_params = steps.imitate(steps.imitation(), micro)
  assert parts == pytest.approx(loss, rel=1e-6)
  chex.assert_trees_all_close(params, part_params, atol=1e-6)


def test_filler_rows_and_padding_change_no_supervised_gradient():
  batch = steps.imitation()
  wide = types.SupervisedBatch(
    tokens_BS=np.pad(batch.tokens_BS, ((0, 2), (0, 3)), constant_values=5),
    lengths_B=np.append(batch.lengths_B, [1, 1]).astype(np.int32),
    targets_BS=np.pad(batch.targets_BS, ((0, 2), (0, 3))),
  )
  loss, params = steps.imitate(batch)
  padded, padded_params = steps.imitate(wide, micro=8)
  assert padded == pytest.approx(loss, rel=1e-5)
  chex.assert_trees_all_close(params, padded_params, atol=1e-6)


def test_a_batch_twice_over_has_the_same_supervised_gradient():
  batch = steps.imitation()
  twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
  loss, params = steps.imitate(batch)
  doubled, doubled_params = steps.imitate(twice, micro=12)
  assert doubled == pytest.approx(loss, rel=1e-6)
  chex.assert_trees_all_close(params, doubled_params, atol=1e-6)


update_parts = supervised_lib.make_update(
  steps.NETWORK,
  steps.DESCENT,
  micro_batch=3,  # Of the larger batch; the smaller is computed at once.
  logit_chunk=7,
  weights={"correct": 0.5, "gold": 0.5},
)


def test_several_batches_weigh_the_same_whatever_they_hold():
  few, many = steps.imitation(rows=2, seed=1), steps.imitation()
  params = {"policy": tiny.policy()}
  state, metrics = update_parts(steps.started(params, steps.DESCENT), few, many)
  (few_loss, few_params), (many_loss, many_params) = map(
    steps.imitate, (few, many)
  )
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
  batch, params = steps.imitation(), {"policy": tiny.policy()}
  nothing = batch.replace(targets_BS=np.zeros_like(batch.targets_BS))
  state, metrics = update_parts(
    steps.started(params, steps.DESCENT), nothing, batch
  )
  loss, alone = steps.imitate(batch)
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
  for row in range(steps.ROWS):
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
  assert steps.imitate(batch, micro=8)[0] == pytest.approx(mean, abs=1e-5)


def imitate_parts(mesh=None):
  """The parameters after two minibatches, of three rows of a rollout each."""
  params, rollout = (
    {"policy": tiny.policy()},
    tiny.take(tiny.sample(), range(6)),
  )
  rows = (rollout, np.array([True, True, False] * 2), steps.imitation())
  if mesh is not None:
    params, rows = mesh_lib.put(mesh, params), mesh_lib.put_batch(mesh, rows)
  rollout, correct_B, gold = rows
  batches = (supervised_lib.imitations(rollout, correct_B), gold)
  state = steps.started(params, steps.DESCENT)
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
  state = steps.started({"policy": tiny.policy()}, optimizer)
  update = steps.compiled_imitation(optimizer, 6)
  for count in (1, 2):
    state, metrics = update(state, steps.imitation())
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
  batch = steps.imitation(rows)
  loss, params = steps.imitate(batch, micro=rows)
  mesh = tiny.mesh(shape)
  with jax.set_mesh(mesh):
    sharded, sharded_params = steps.imitate(
      mesh_lib.put_batch(mesh, batch),
      micro=micro,
      policy=mesh_lib.put(mesh, tiny.policy()),
    )
  assert sharded == pytest.approx(loss, rel=1e-6)
  chex.assert_trees_all_close(params, sharded_params, atol=1e-6)
