"""The reward model's updates: the loss, and what must change nothing."""

import functools

import chex
import jax
import numpy as np
import pytest
import steps
import tiny

from reft_jax import types
from reft_jax.learning import classifier
from reft_jax.runtime import mesh as mesh_lib


def labelled(rows=6, fillers=0, slots=9):
  batch = steps.imitation(rows, slots)
  pad = ((0, fillers),)
  return types.LabelledBatch(
    tokens_BS=np.pad(batch.tokens_BS, (*pad, (0, 0)), constant_values=5),
    lengths_B=np.pad(batch.lengths_B, pad, constant_values=1),
    labels_B=np.pad(np.arange(rows, dtype=np.int32) % 3 % 2, pad),
    real_B=np.arange(rows + fillers) < rows,
  )


@functools.cache
def scorer():
  return steps.NETWORK.init_scorer(tiny.policy(), jax.random.key(5))


@functools.cache
def compiled_classifier(micro):
  return classifier.make_update(steps.NETWORK, steps.DESCENT, micro_batch=micro)


def judge(batch, micro=6, params=None):
  """Loss and accuracy of a batch, and the scorer after one update."""
  state = steps.started({"scorer": params or scorer()}, steps.DESCENT)
  state, metrics = compiled_classifier(micro)(state, batch)
  means = {name: metrics[name].value() for name in ("loss", "accuracy")}
  return means, jax.device_get(state.params["scorer"])


def test_a_classifier_learns_from_the_probability_it_tells():
  batch = labelled()
  probability_B = np.asarray(
    classifier.make_scores(steps.NETWORK)(
      scorer(), batch.tokens_BS, batch.lengths_B
    )
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
