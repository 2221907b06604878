"""A dry run: steps, starts and rollouts by hand."""

import jax
import pytest

from reft_jax.config import checks, loading
from reft_jax.run import dry_run
from reft_jax.runtime import mesh as mesh_lib

ALL = "stages=[base,warmup,sft,offline_st,online_st,reft,reward_model]"


def plan(*settings: str, counts=None) -> dict[str, dict]:
  """The planned stages of an embedded run, by their names."""
  config = loading.load(["embedded"], settings)
  checks.validate(config)
  return {
    stage: dry_run.stage_row(config, stage, counts) for stage in config.stages
  }


def test_steps_by_hand():
  rows = plan(
    ALL,
    "base.steps=33",
    "warmup.batch_size=4",
    "warmup.epochs=3",
    "sft.epochs=7",
    "sft.learning_rates=[1e-3,1e-2]",
    "collect.per_question=6",
    "offline_st.batch_size=8",
    "offline_st.epochs=2",
    "offline_st.keep=4",
    "online_st.batch_size=6",
    "online_st.samples_per_question=2",
    "online_st.epochs=5",
    "reft.steps=9",
    "reward_model.batch_size=16",
    "reward_model.epochs=3",
    counts=dry_run.Counts(questions=10, annotated=9, exact=True),
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


def test_the_official_choice_may_repeat_annotations():
  counts = dry_run.Counts(questions=10, annotated=10, exact=True)
  settings = ("stages=[base,offline_st]", "offline_st.batch_size=1")
  settings = (*settings, "offline_st.epochs=1", "collect.per_question=4")
  random = plan(*settings, counts=counts)
  official = plan(*settings, "offline_st.choose=official", counts=counts)
  assert random["offline_st"]["steps"] == "≤ 50"
  assert official["offline_st"]["steps"] == "≤ 60"


def test_what_is_unknown_is_left_out():
  rows = plan("reft.steps=null", "reft.epochs=3")
  assert rows["sft"]["steps"] == "30 epochs"
  assert rows["reft"]["steps"] == "3 epochs"
  assert rows["reft"]["rollouts"] is None
  counts = dry_run.Counts(questions=16, annotated=16, exact=False)
  assert plan(counts=counts)["sft"]["steps"] == "≤ 30"


def padding(*settings: str, fsdp: int = 8) -> list[str]:
  mesh = mesh_lib.make_mesh(
    data=1, fsdp=fsdp, tensor=1, devices=jax.devices()[:fsdp]
  )
  config = loading.load(["embedded"], [ALL, *settings])
  return dry_run.describe_padding(config, mesh, mesh)


@pytest.mark.parametrize(
  ("setting", "padded"),
  [
    ("base.batch_size=12", 16),
    ("offline_st.batch_size=12", 16),
    ("offline_st.micro_batch_size=12", 16),
    ("reward_model.batch_size=30", 32),
    ("online_st.micro_batch_size=4", 8),
    ("reft.minibatch_size=4", 8),
  ],
)
def test_a_batch_that_is_padded_is_named(setting, padded):
  assert padding(setting) == [
    f"{setting} is padded to {padded} rows for 8 devices; results stay the same"
  ]
  assert padding(setting, fsdp=2) == padding(setting, fsdp=1) == []


def test_several_are_named_in_one_line():
  (line,) = padding("base.batch_size=12", "reft.minibatch_size=4")
  assert "base.batch_size=12 is padded to 16 rows, reft.mini" in line


def test_a_batch_is_padded_to_whole_micro_batches():
  (line,) = padding(
    "base.batch_size=16",
    "reward_model.batch_size=24",
    "reward_model.micro_batch_size=12",
  )
  assert "reward_model.micro_batch_size=12 is padded to 16 rows" in line
  assert "reward_model.batch_size=24 is padded to 32 rows" in line


def test_rollouts_are_padded_with_questions():
  online = "online_st.batch_size=24"
  assert not padding(online, "online_st.samples_per_question=4")
  assert not padding(online, "online_st.samples_per_question=8")
  (line,) = padding(
    "online_st.batch_size=30", "online_st.samples_per_question=6"
  )
  assert "online_st.batch_size=30 is padded to 48 rows" in line
