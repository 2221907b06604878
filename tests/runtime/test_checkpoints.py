"""States that are saved and restored, and checkpoints that are damaged."""

import gc
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from reft_jax import types
from reft_jax.config import schema
from reft_jax.errors import UserError
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import optim
from reft_jax.runtime import checkpoints
from reft_jax.runtime import mesh as mesh_lib

SMALL = {"w_DF": np.arange(32, dtype=np.float32).reshape(8, 4)}


def train_state(kind) -> types.TrainState:
  """A state with every kind of leaf that training has, all different."""
  model = tiny.make()
  optimizer = optim.build(schema.OptimizerConfig(kind=kind), 10)

  def init(key):
    policy = model.init(key)
    params = {"policy": policy, "value": model.init_value(policy, "shared")}
    return learner_lib.init_state(params, optimizer)

  random = np.random.default_rng(0)

  def fill(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return np.asarray(random.integers(1, 1000), leaf.dtype)
    return random.standard_normal(leaf.shape).astype(leaf.dtype)

  return jax.tree.map(fill, jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture
def opened(tmp_path):
  """Opens checkpoints below tmp_path; closes them at the end."""
  made = []

  def open_(name="checkpoints", keep=2) -> checkpoints.Checkpoints:
    made.append(checkpoints.Checkpoints(tmp_path / name, keep=keep))
    return made[-1]

  yield open_
  for each in made:
    each.close()


@pytest.fixture
def saved(opened):
  """Three saved steps of a small state, the values 1, 2 and 3 times SMALL."""

  def save(**options) -> checkpoints.Checkpoints:
    kept = opened(**options)
    for step in (1, 2, 3):
      state = jax.tree.map(lambda x, n=step: jnp.array(n * x), SMALL)
      kept.save(step, state, {"step": step})
    kept.wait()
    return kept

  return save


def found(kept: checkpoints.Checkpoints) -> int | None:
  """The step that is restored, after a look at what came with it."""
  restored = kept.restore(jax.tree.map(jnp.zeros_like, SMALL))
  if restored is None:
    return None
  state, notes = restored
  want = jax.tree.map(lambda x: notes["step"] * x, SMALL)
  chex.assert_trees_all_equal(jax.device_get(state), want)
  return notes["step"]


def damage(folder, kind) -> None:
  """What a full disk or a careless copy does to a checkpoint."""
  if kind.startswith("no "):
    shutil.rmtree(folder / kind.removeprefix("no "))
    return
  kept, place = (10, "state/d/*") if kind == "truncated arrays" else (0, "**/*")
  for file in folder.glob(place):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:kept])


DAMAGES = ["truncated arrays", "no state", "no notes", "empty files"]


def notes(kept: checkpoints.Checkpoints) -> int:
  return kept.notes()["step"]


@pytest.mark.parametrize(
  ("kind", "shape"),
  [
    ("adamw", (8, 1, 1)),
    pytest.param("muon", (1, 4, 2), marks=pytest.mark.slow),
  ],
)
def test_a_training_state_is_restored_bit_by_bit(opened, kind, shape):
  host = train_state(kind)
  written = mesh_lib.put(tiny.mesh((1, 4, 2)), host)
  kept = opened()
  kept.save(7, written, {"step": 7})
  kept.wait()
  # A run may resume on another mesh.
  like = mesh_lib.put(tiny.mesh(shape), jax.tree.map(np.zeros_like, host))
  restored, notes = kept.restore(like)
  assert notes == {"step": 7}
  assert isinstance(restored, types.TrainState)
  chex.assert_trees_all_equal_shapes_and_dtypes(restored, host)
  chex.assert_trees_all_equal(jax.device_get(restored), host)
  chex.assert_trees_all_equal(
    jax.tree.map(lambda leaf: leaf.sharding, restored),
    jax.tree.map(lambda leaf: leaf.sharding, like),
  )


def test_types_and_scalars_are_kept(opened):
  state = {
    "half": jnp.array([1.1, -2.2], jnp.bfloat16),
    "odd": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45]),
    "count": jnp.array(2**31 - 1, jnp.int32),
    "request": jnp.array(2**32 - 1, jnp.uint32),
    "mask": jnp.array([True, False]),
  }
  notes = {"step": 3, "accuracy": 0.1 + 0.2, "name": "sft-lr1e-05", "no": None}
  kept = opened()
  kept.save(3, state, notes)
  restored, read = kept.restore(jax.tree.map(jnp.zeros_like, state))
  chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
  for name, leaf in state.items():
    assert np.asarray(restored[name]).tobytes() == np.asarray(leaf).tobytes()
  assert read == notes
  assert type(read["step"]) is int


def test_the_state_may_be_donated_while_it_is_written(opened):
  kept = opened()
  state = jax.tree.map(jnp.array, SMALL)
  kept.save(1, state, {"step": 1})
  jax.tree.map(lambda leaf: leaf.delete(), state)
  assert found(kept) == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(saved, opened, tmp_path, keep):
  kept = saved(keep=keep)
  left = {int(each.name) for each in (tmp_path / "checkpoints").iterdir()}
  assert left == set(range(4 - keep, 4))
  kept.close()
  # As another process would.
  again = opened(keep=keep)
  assert again.notes() == {"step": 3}
  assert found(again) == 3
  again.save(4, jax.tree.map(lambda x: 4 * jnp.array(x), SMALL), {"step": 4})
  assert found(again) == 4


def test_an_empty_folder_has_no_checkpoint(opened, tmp_path):
  kept = opened()
  assert kept.notes() is None
  assert found(kept) is None
  assert kept.newest == 0
  assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_that_would_be_lost_is_an_error(saved, step):
  kept = saved()
  assert kept.newest == 3
  state = jax.tree.map(jnp.array, SMALL)
  with pytest.raises(RuntimeError, match=f"{step} was not saved after 3"):
    kept.save(step, state, {"step": step})
  assert found(kept) == 3


def test_an_unfinished_checkpoint_is_removed(saved, opened, tmp_path):
  saved().close()
  folder = tmp_path / "checkpoints"
  (folder / "4.orbax-checkpoint-tmp").mkdir()
  assert found(opened()) == 3
  assert {each.name for each in folder.iterdir()} == {"2", "3"}


@pytest.mark.parametrize(
  ("kind", "ask"),
  [(kind, found) for kind in DAMAGES] + [(kind, notes) for kind in DAMAGES[2:]],
)
def test_a_damaged_checkpoint_is_set_aside(
  saved, opened, tmp_path, caplog, kind, ask
):
  saved(keep=3).close()
  folder = tmp_path / "checkpoints"
  damage(folder / "3", kind)
  kept = opened(keep=3)
  assert ask(kept) == 2
  (aside,) = tmp_path.glob("damaged-*")
  assert not (folder / "3").exists()
  assert f"{folder}: checkpoint 3 is damaged" in caplog.text
  # Training resumes from there, and does step 3 again.
  kept.save(3, jax.tree.map(lambda x: 3 * jnp.array(x), SMALL), {"step": 3})
  assert found(kept) == 3
  assert aside.is_dir()


@pytest.mark.parametrize("ask", [found, checkpoints.Checkpoints.notes])
def test_damage_to_all_checkpoints_is_an_error(saved, opened, tmp_path, ask):
  saved().close()
  folder = tmp_path / "checkpoints"
  for step in ("2", "3"):
    damage(folder / step, "empty files")
  # Nothing is renamed: the second time is like the first.
  for _ in range(2):
    with pytest.raises(UserError) as error:
      ask(opened())
    message = str(error.value)
    assert message.startswith(f"{folder}: none of the checkpoints [3, 2]")
    assert "remove the run's folder" in message
    assert "\n" not in message
  assert not [*tmp_path.glob("damaged-*")]


def test_neighbours_may_be_damaged_at_the_same_step(saved, opened, tmp_path):
  for name in ("checkpoints", "best"):
    saved(name=name).close()
    damage(tmp_path / name / "3", "empty files")
    assert found(opened(name=name)) == 2
  assert len([*tmp_path.glob("damaged-*")]) == 2


def small_on(mesh):
  """SMALL's description, sharded."""
  return jax.tree.map(
    lambda array, sharding: jax.ShapeDtypeStruct(
      array.shape, array.dtype, sharding=sharding
    ),
    SMALL,
    mesh_lib.shardings(mesh, SMALL),
  )


def test_a_part_is_read_and_nothing_removed(opened, tmp_path):
  state = {"params": {"policy": SMALL, "value": SMALL}, "step": np.int32(3)}
  kept = opened()
  kept.save(7, jax.tree.map(jnp.asarray, state), {})
  kept.wait()
  folder = tmp_path / "checkpoints/7/state"
  half_written = tmp_path / "checkpoints/8.orbax-checkpoint-tmp"
  half_written.mkdir()
  shapes = {"policy": {"w_DF": (8, 4)}, "value": {"w_DF": (8, 4)}}
  assert checkpoints.shapes(folder) == {"params": shapes, "step": ()}
  like = small_on(tiny.mesh((1, 4, 2)))
  part = checkpoints.read(folder, {"params": {"policy": like}})
  assert list(part["params"]) == ["policy"]
  read = part["params"]["policy"]["w_DF"]
  assert read.sharding == like["w_DF"].sharding
  np.testing.assert_array_equal(read, SMALL["w_DF"])
  assert half_written.is_dir()


@pytest.mark.parametrize("kind", ["truncated arrays", "no state"])
def test_a_damaged_state_is_not_read(saved, tmp_path, kind):
  saved().wait()
  damage(tmp_path / "checkpoints/3", kind)
  folder = tmp_path / "checkpoints/3/state"
  with pytest.raises(UserError, match="checkpoints/3/state: no checkpoint"):
    checkpoints.read(folder, small_on(tiny.mesh((1, 8, 1))))
  if kind == "no state":
    with pytest.raises(UserError, match="checkpoints/3/state: no checkpoint"):
      checkpoints.shapes(folder)


def test_a_damaged_state_is_reported_once(opened, tmp_path, caplog):
  # Orbax stops at the first broken array; the others must not report later.
  state = {f"w{i}": jnp.ones(200 * i + 1) for i in range(20)}
  kept = opened(keep=5)
  for step in range(1, 6):
    kept.save(step, state, {"step": step})
  kept.wait()
  for step in range(2, 6):
    damage(tmp_path / f"checkpoints/{step}", "truncated arrays")
  assert opened(keep=5).restore(state)[1] == {"step": 1}
  gc.collect()
  assert {record.name for record in caplog.records} == {checkpoints.__name__}
