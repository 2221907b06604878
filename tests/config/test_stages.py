"""The table of stages, beside the schema and the code that trains them."""

import ast
import pathlib
import typing

import pytest

from reft_jax.config import loading, schema, stages

ROOT = pathlib.Path(stages.__file__).parent.parent


def test_every_stage_has_a_row_and_settings():
  assert tuple(stages.TABLE) == typing.get_args(schema.Stage)
  for name in stages.TABLE:
    assert hasattr(schema.Config(), name)
  for field in ("label", "colour", "about"):
    values = [getattr(stage, field) for stage in stages.TABLE.values()]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("stage", stages.TABLE.values(), ids=lambda s: s.name)
def test_what_a_stage_needs_is_there(stage):
  group = getattr(schema.Config(), stage.name)
  assert (stage.starts == "setting") <= hasattr(group, "start")
  assert stage.samples == isinstance(group, schema.RolloutsConfig)
  module, function = stage.train.split(":")
  file = ROOT.parent / f"{module.replace('.', '/')}.py"
  assert function in {
    node.name
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef)
  }


def started(*overrides):
  config = loading.load(["embedded"], overrides)
  return {name: stages.starts_from(config, name) for name in stages.TABLE}


def test_stages_start_from_the_warmed_up_model():
  assert started() == {
    "base": None,
    "warmup": "base",
    "sft": "warmup",
    "offline_st": "base",
    "online_st": "warmup",
    "reft": "warmup",
    "reward_model": "warmup",
  }


def test_stages_start_from_the_base_model_without_a_warm_up():
  found = started("stages=[base, sft, reft]", "sft.start=base")
  assert (found["sft"], found["online_st"], found["reft"]) == ("base",) * 3
  found = started("stages=[reft]", "model.path=a", "model.warmup=b")
  assert found["reft"] == "warmup"


def test_samples_are_collected_for_the_stages_that_learn_from_them():
  for names, splits in (
    ("base, warmup, sft, reft", set()),
    ("warmup, offline_st", {"train"}),
    ("warmup, offline_st, reward_model", {"train", "dev"}),
  ):
    config = loading.load([], [f"stages=[{names}]"])
    assert stages.collected_splits(config) == splits
