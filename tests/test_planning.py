"""The plan of a run: steps, starts and rollouts by hand."""

import pytest

from reft_jax import config as configs
from reft_jax import devices, errors
from reft_jax.methods import planning

ALL = "stages=[base,warmup,sft,offline_st,online_st,reft,reward_model]"


def plan(*settings: str, counts=None) -> dict[str, dict]:
  """The planned stages of an embedded run, by their names."""
  config = configs.load(["embedded"], settings)
  configs.validate(config)
  return {
    stage: planning.stage_row(config, stage, counts) for stage in config.stages
  }


def test_steps_by_hand():
  rows = plan(
    ALL,
    "base.steps=33",
    "warmup.batch_size=4",
    "warmup.epochs=3",
    "sft.epochs=7",
    "sft.learning_rates=[1e-3,1e-2]",
    "draws.samples=6",
    "offline_st.batch_size=8",
    "offline_st.epochs=2",
    "offline_st.keep=4",
    "online_st.batch_size=6",
    "online_st.samples_per_question=2",
    "online_st.epochs=5",
    "reft.steps=9",
    "reward_model.batch_size=16",
    "reward_model.epochs=3",
    counts=planning.Counts(questions=10, annotated=9, exact=True),
  )
  assert {stage: row["steps"] for stage, row in rows.items()} == {
    "base": "33",
    "warmup": "9",  # 3 epochs of 9 rows, 4 at once
    "sft": "7",
    "offline_st": "≤ 14",  # 2 epochs of 9 + 10 * 4 rows, 8 at once
    "online_st": "20",  # 5 epochs of 10 questions, 3 at once
    "reft": "9",
    "reward_model": "≤ 12",  # 3 epochs of 60 rows, 16 at once
  }
  assert rows["sft"]["learning rate"] == "0.001, 0.01"
  sampled = {stage: row["rollouts"] for stage, row in rows.items()}
  assert sampled["online_st"] == 20 * 6
  assert sampled["reft"] == 9 * 256
  assert sampled["sft"] is None


def test_starts():
  rows = plan(ALL)
  assert {stage: row["from"] for stage, row in rows.items()} == {
    "base": None,
    "warmup": "base",
    "sft": "warmup",
    "offline_st": "base",
    "online_st": "warmup",
    "reft": "warmup",
    "reward_model": "warmup",
  }


def test_the_official_choice_may_repeat_annotations():
  counts = planning.Counts(questions=10, annotated=10, exact=True)
  settings = ("stages=[base,offline_st]", "offline_st.batch_size=1")
  settings = (*settings, "offline_st.epochs=1", "draws.samples=4")
  random = plan(*settings, counts=counts)
  official = plan(*settings, "offline_st.choose=official", counts=counts)
  assert random["offline_st"]["steps"] == "≤ 50"
  assert official["offline_st"]["steps"] == "≤ 60"


def test_what_is_not_known_is_not_told():
  rows = plan("reft.steps=null", "reft.epochs=3")
  assert rows["sft"]["steps"] == "30 epochs"
  assert rows["reft"]["steps"] == "3 epochs"
  assert rows["reft"]["rollouts"] is None
  counts = planning.Counts(questions=16, annotated=16, exact=False)
  assert plan(counts=counts)["sft"]["steps"] == "≤ 30"


@pytest.mark.parametrize(
  "setting",
  [
    "base.batch_size=12",
    "offline_st.batch_size=12",
    "offline_st.micro_batch_size=12",
    "reward_model.batch_size=12",
    "reward_model.micro_batch_size=12",
    "online_st.micro_batch_size=4",
  ],
)
def test_batches_of_all_stages_are_shared_by_the_devices(setting):
  config = configs.load(
    ["embedded"], [ALL, "offline_st.batch_size=48", setting]
  )
  mesh = devices.make_mesh(data=1, fsdp=8, tensor=1)
  with pytest.raises(errors.UserError, match=f"^{setting} must be a multiple"):
    planning.check_batches(config, mesh)


def test_questions_are_shared_by_the_devices():
  settings = [
    ALL,
    "online_st.batch_size=32",
    "online_st.samples_per_question=8",
  ]
  mesh = devices.make_mesh(data=1, fsdp=8, tensor=1)
  with pytest.raises(errors.UserError) as caught:
    planning.check_batches(configs.load(["embedded"], settings), mesh)
  expected = "online_st.batch_size / online_st.samples_per_question=4 must be"
  assert str(caught.value).startswith(expected)
