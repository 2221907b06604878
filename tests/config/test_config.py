import dataclasses
import logging
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.config import checks, loading, schema
from reft_jax.run import files_check

SETTINGS = {
  key: (field, value) for key, field, value in loading.settings(schema.Config())
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A dotted key with a value that its type allows."""

  key: str
  value: object


def values_of(kind):
  """Values of a declared type."""
  if typing.get_origin(kind) is typing.Literal:
    return st.sampled_from(typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    return st.lists(values_of(typing.get_args(kind)[0])).map(tuple)
  if typing.get_args(kind):
    return st.one_of(*map(values_of, typing.get_args(kind)))
  finite = st.floats(allow_nan=False, allow_infinity=False)
  return {
    bool: st.booleans(),
    int: st.integers(),
    float: finite,
    str: st.text("abc-/.:1 ", min_size=1),
    type(None): st.none(),
  }[kind]


setting_st = st.sampled_from(sorted(SETTINGS)).flatmap(
  lambda key: st.builds(
    Setting, st.just(key), values_of(loading.type_of(key, "test"))
  )
)


def replaced(node, key, value):
  """A config with one setting changed."""
  head, _, rest = key.partition(".")
  if rest:
    value = replaced(getattr(node, head), rest, value)
  return dataclasses.replace(node, **{head: value})


def write(folder, text, name="run.yaml"):
  path = folder / name
  path.write_text(text, encoding="utf-8")
  return str(path)


def small(*overrides):
  """A valid run of given settings."""
  return loading.load(["embedded"], overrides)


def test_defaults_are_the_papers_and_valid():
  run = schema.Config()
  checks.validate(run)
  assert (run.warmup.epochs, run.sft.epochs, run.reft.epochs) == (2, 40, 300)
  assert (run.sft.batch_size, run.reft.batch_size) == (48, 32)
  assert run.sft.optimizer.learning_rate == 1e-5
  assert run.reft.optimizer.learning_rate == 3e-7
  assert run.reft.optimizer.schedule == "constant"
  assert (run.reft.gamma, run.reft.lam, run.reft.kl_coef) == (1.0, 0.95, 0.05)
  assert (run.reft.clip, run.reft.value_clip, run.reft.vf_coef) == (0.2, 0.2, 5)
  assert run.data.max_prompt_tokens + run.data.max_response_tokens == 700


def test_every_setting_has_help():
  assert all(field.metadata["help"] for field, _ in SETTINGS.values())


def test_a_config_can_be_a_key():
  assert len({schema.Config(), schema.Config(), small()}) == 2


@settings(max_examples=8)
@given(st.lists(setting_st, max_size=6))
def test_yaml_reads_back_to_the_same_config(tmp_path_factory, changes):
  run = schema.Config()
  for setting in changes:
    run = replaced(run, setting.key, setting.value)
  folder = tmp_path_factory.mktemp("config")
  assert loading.load([write(folder, loading.to_yaml(run))]) == run


def test_later_files_win_and_overrides_win_over_them(tmp_path):
  first = write(tmp_path, "seed: 1\nreft: {steps: 5, clip: 0.1}", "a.yaml")
  second = write(tmp_path, "reft:\n  steps: 6\nsft:\n", "b.yaml")
  run = loading.load([first, second], ["reft.lam=0.5", "reft.lam=0.6"])
  assert run.reft == dataclasses.replace(
    schema.ReftConfig(), steps=6, clip=0.1, lam=0.6
  )
  assert run.seed == 1


def test_a_file_is_laid_over_those_it_extends(tmp_path):
  folder = tmp_path / "parts"
  folder.mkdir()
  write(folder, "seed: 1\nreft: {steps: 5, clip: 0.1}\n", "far.yaml")
  write(folder, "extends: far.yaml\nseed: 2\n", "near.yaml")
  write(tmp_path, "reft: {clip: 0.3}\n", "other.yaml")
  file = write(
    tmp_path,
    "extends: [embedded, parts/near.yaml, other.yaml]\nname: mine\n",
  )
  expected = small("name=mine", "seed=2", "reft.steps=5", "reft.clip=0.3")
  assert loading.load([file]) == expected


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("extends: run.yaml", "extends {file}: a circle"),
    ("extends: [gone]", "{file}: extends gone: no such file"),
    ("extends: 3", "{file}: extends 3: no such file"),
  ],
)
def test_files_that_cannot_be_extended(tmp_path, text, message):
  file = write(tmp_path, text)
  with pytest.raises(errors.UserError) as caught:
    loading.load([file])
  assert message.format(file=file) in str(caught.value)


@pytest.mark.parametrize("nothing", ["None", "none", "null", ""])
def test_nothing_can_be_said_in_several_ways(nothing):
  run = small(f"reft.optimizer.clip_norm={nothing}")
  assert run.reft.optimizer.clip_norm is None


def test_none_stays_a_choice_where_it_is_one():
  assert small("model.remat=none").model.remat == "none"


def test_numbers_without_a_point_are_numbers(tmp_path):
  path = write(tmp_path, "reft: {optimizer: {learning_rate: 1e-4}}")
  assert loading.load([path]).reft.optimizer.learning_rate == 1e-4
  run = small("sft.learning_rates=[1e-4, 3]")
  assert run.sft.learning_rates == (1e-4, 3.0)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("reft.stpes=3", "unknown setting reft.stpes; did you mean reft.steps?"),
    ("steps=3", "did you mean base.steps or online_st.steps or reft.steps?"),
    ("learning_rate=3", "reft.optimizer.learning_rate"),
    ("seed.x=3", "seed is not a group"),
    ("reft=3", "reft is a group"),
    ("=3", "unknown setting"),
    ("seed=1.5", "seed=1.5 should be a whole number"),
    ("seed=true", "seed=true should be a whole number"),
    ("reft.lam=much", "reft.lam=much should be a number"),
    ("reft.lam=null", "reft.lam=null should be a number"),
    ("reft.whiten=3x", "reft.whiten=3x should be true or false"),
    ("name=[1]", "name=[1] should be text"),
    ("model.remat=all", "should be one of none, block, dots"),
    ("stages=[sft, rl]", "stages=[sft, rl] should be a list (each one of base"),
    ("sft.learning_rates=[a]", "should be a list (each a number) or null"),
    ("seed=[1", "cannot read 'seed=[1'"),
    ("name=${sed}", "'sed' not found"),
  ],
)
def test_bad_overrides_are_told_in_one_line(override, message):
  with pytest.raises(errors.UserError) as caught:
    loading.load([], [override])
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


# One setting of each type.
OF_EACH_TYPE = {str(loading.type_of(key, "")): key for key in SETTINGS}.values()


@pytest.mark.parametrize("key", OF_EACH_TYPE)
def test_every_type_of_setting_says_what_it_should_be(key):
  with pytest.raises(errors.UserError) as caught:
    loading.load([], [f"{key}=[[1]]"])
  assert f"{key}=[[1]] should be " in str(caught.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("reft: {stpes: 3}", "run.yaml: unknown setting reft.stpes"),
    ("reft:\n  steps: many", "run.yaml: reft.steps=many should be"),
    ("seed: 1\nseed: 2", "run.yaml line 2: not valid YAML: found duplicate"),
    ("a: [1", "run.yaml line"),
    ("- seed", "run.yaml: expected a mapping"),
    ("3", "run.yaml: Invalid loaded object"),
    ("1: 2", "run.yaml: unknown setting 1"),
    ("seed: ${", "run.yaml: "),
  ],
)
def test_bad_files_are_told_in_one_line(tmp_path, text, message):
  with pytest.raises(errors.UserError) as caught:
    loading.load([write(tmp_path, text)])
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_binary_and_missing_files(tmp_path):
  (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(errors.UserError, match=r"binary\.yaml"):
    loading.load([str(tmp_path / "binary.yaml")])
  with pytest.raises(errors.UserError, match=r"no such file; .*embedded"):
    loading.load(["embeded"])


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ("name=a/b", "name='a/b'"),
    ("stages=[]", "at least one stage"),
    ("stages=[sft,base]", "must keep the order"),
    ("stages=[sft,sft]", "must keep the order"),
    ("data.train=x.json", "the base stage is for embedded data"),
    ("model.path=folder", "would train another model"),
    ("stages=[warmup]", "model.path=null needs the base stage"),
    ("data.chat_template=true", "the base stage's model knows no chat"),
    ("data.system_prompt=Hi", "is part of a chat; set data.chat_template"),
    ("stages=[base,sft]", "sft.start=warmup needs the warmup stage"),
    ("warmup.start=warmup", "warmup.start=warmup must be base"),
    ("model.warmup=folder", "the warmup stage would train another"),
    ("model.warmup=folder stages=[base,reft]", "did not start from the model"),
    ("stages=[base,reward_model]", "reward_model.start=warmup needs"),
    ("reft.advantages=rloo", "compares rollouts of one question"),
    ("reft.advantages=grpo reft.value_warmup_steps=2", "no critic to warm up"),
    ("reft.steps=2 reft.value_warmup_steps=2", "would leave the policy none"),
    ("reft.vf_coef=0 reft.value_warmup_steps=2", "critic would learn nothing"),
    ("reft.advantages=grpo model.value=separate", "set model.value=shared"),
    ("reft.kl_target=6 reft.kl_coef=0", "must start above 0"),
    ("reft.filter_zero_variance_groups=true", "leave out every question"),
    (
      "online_st.batch_size=9 online_st.micro_batch_size=4",
      "minibatch_size=9 must",
    ),
    ("online_st.learning_rates=[]", "online_st.learning_rates=[] must hold"),
    ("sft.learning_rates=[]", "must hold a number"),
    ("data.dev_size=0", "chosen on dev"),
    ("embedded.min_events=5", "embedded.max_events=4"),
    ("mesh.data=-1 mesh.fsdp=-1", "only one axis"),
    ("mesh.tensor=0", "mesh.tensor=0 must be above 0, or -1"),
    ("base.heads=3 base.kv_heads=3", "base.width=64 must be a multiple"),
    ("base.kv_heads=3", "base.heads=4 must be a multiple"),
    ("sft.micro_batch_size=5", "sft.batch_size=16 must be a multiple"),
    ("reft.samples_per_question=3", "reft.samples_per_question=3"),
    ("reft.minibatch_size=48", "reft.minibatch_size=48"),
    (
      "reft.minibatch_size=64 reft.micro_batch_size=48",
      "minibatch_size=64 must",
    ),
    (
      "reft.minibatch_size=null reft.micro_batch_size=48",
      "minibatch_size=256 must be",
    ),
    ("seed=-1", "seed=-1 must be between 0 and 2**32 - 1"),
    ("seed=4294967296", "seed=4294967296 must be between"),
    ("data.test=embedded", "only data.train=embedded tests on generated"),
    ("sft.learning_rates=[1e-3,1e-3]", "[0.001, 0.001] must differ"),
    ("sft.learning_rates=[1e-3,1.0000001e-3]", "must differ"),
    ("reft.batch_size=0", "reft.batch_size=0 must be above 0"),
    ("reft.temperature=0", "reft.temperature=0.0 must be above 0"),
    ("embedded.noise=1.1", "embedded.noise=1.1 must be between 0 and 1"),
    ("sft.learning_rates=[1e-4,-1]", "sft.learning_rates=-1.0 must be"),
    ("reft.kl_coef=.inf", "reft.kl_coef=inf must be finite"),
    ("reft.optimizer.b2=1", "must be at least 0 and below 1"),
    ("data.train_limit=0", "data.train_limit=0 must be above 0"),
  ],
)
def test_settings_that_do_not_fit(overrides, message):
  with pytest.raises(errors.UserError) as caught:
    checks.validate(small(*overrides.split()))
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once():
  with pytest.raises(errors.UserError) as caught:
    checks.validate(
      small("name=/", "mesh.data=-1", "mesh.fsdp=-1", "stages=[warmup]")
    )
  first, second, third = str(caught.value).split("; ")
  assert first.startswith("name='/'")
  assert second.startswith("model.path=null needs the base stage")
  assert third.startswith("mesh: only one axis")


@pytest.fixture
def warnings(caplog):
  """What is warned of, as in a new process."""
  loading._warn_of_old_name.cache_clear()
  caplog.set_level(logging.WARNING)
  return caplog


NEW = ("collect.per_question=7", "reft.filter_zero_variance_groups=true")


def test_old_names_of_settings_still_work(tmp_path, warnings):
  old = ["draws.samples=7", "reft.drop_groups_without_signal=true"]
  assert loading.load([], old) == loading.load([], NEW)
  file = write(
    tmp_path,
    "draws: {samples: 7}\nreft: {drop_groups_without_signal: true}\n",
  )
  assert loading.load([file, write(tmp_path, "draws:\n", "none.yaml")]) == (
    loading.load([], NEW)
  )
  assert warnings.messages == [
    "draws.samples is now called collect.per_question; the old name works in"
    " this version only.",
    "reft.drop_groups_without_signal is now called"
    " reft.filter_zero_variance_groups; the old name works in this version"
    " only.",
    "draws is now called collect; the old name works in this version only.",
  ]


def test_old_names_are_settings_that_exist_no_longer():
  for old, new in schema.ALIASES.items():
    loading.type_of(new, "test")
    with pytest.raises(errors.UserError, match="unknown setting"):
      loading.type_of(old, "test")


def test_old_and_new_name_at_once(tmp_path, warnings):
  both = write(tmp_path, "draws.top_k: 3\ncollect: {top_k: 3}\n")
  for files, overrides in (
    ([both], []),
    ([], ["collect.top_k=3", "draws.top_k=3"]),
  ):
    with pytest.raises(errors.UserError, match=r"same setting; keep collect"):
      loading.load(files, overrides)
  file = write(tmp_path, "draws: {top_k: 3}", "old.yaml")
  assert loading.load([file], ["collect.top_k=4"]).collect.top_k == 4


def test_a_resumed_run_may_change_what_is_not_learned():
  run = schema.Config()
  for change in ("mesh.fsdp=2", "stages=[sft]", "evaluation.at=[3]"):
    assert loading.identity(loading.load([], [change])) == loading.identity(run)
  for change in ("seed=1", "reft.optimizer.eps=1e-4", "evaluation.top_k=2"):
    changed = loading.identity(loading.load([], [change])).items()
    ((key, value),) = changed - loading.identity(run).items()
    assert change.startswith(f"{key}=")
    assert value == dict(changed)[key]


def test_sizes_that_follow_from_others():
  reft = schema.ReftConfig(batch_size=32)
  assert (reft.minibatch, reft.micro_batch) == (32, 32)
  reft = dataclasses.replace(reft, minibatch_size=16)
  assert (reft.minibatch, reft.micro_batch) == (16, 16)
  assert dataclasses.replace(reft, micro_batch_size=4).micro_batch == 4
  sft = schema.SupervisedConfig(batch_size=48)
  assert sft.micro_batch == 48
  assert dataclasses.replace(sft, micro_batch_size=4).micro_batch == 4


def test_the_estimator_of_the_kl_follows_from_its_place():
  assert schema.ReftConfig().kl_estimate == "k1"
  assert schema.ReftConfig(kl_in="loss").kl_estimate == "k3"
  assert schema.ReftConfig(kl_estimator="k2").kl_estimate == "k2"


def test_missing_files_are_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = small(
    "data.train=train.json", "data.test=hub:some/set", "model.path=model"
  )
  with pytest.raises(errors.UserError) as caught:
    files_check.check_files(run)
  first, second = str(caught.value).split("; ")
  assert first.startswith("data.train=train.json: no such file")
  assert second.startswith("model.path=model: no Hugging Face model")
  write(tmp_path, "[]", "train.json")
  (tmp_path / "model").mkdir()
  write(tmp_path / "model", "{}", "config.json")
  files_check.check_files(run)


def test_models_of_the_hub_are_not_looked_for(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hub = ["model.path=acme/model", "model.warmup=acme/model@v2"]
  files_check.check_files(small(*hub))
  (tmp_path / "acme").mkdir()  # Now the first is a folder that is missing.
  with pytest.raises(errors.UserError) as caught:
    files_check.check_files(small(*hub))
  said = str(caught.value)
  assert said.startswith("model.path=acme/model: no Hugging Face model there")
  assert "model.warmup" not in said


def test_run_directory():
  assert str(schema.run_directory(small("seed=3"))) == "runs/embedded-seed3"
  assert str(schema.run_directory(small("output=there"))) == "there"


def test_paths_can_start_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "model").mkdir()
  for name in ("train.json", "test.json", "model/config.json"):
    write(tmp_path, "{}", name)
  write(tmp_path, "output: ~/run")
  run = loading.load(
    ["~/run.yaml"],
    ["data.train=~/train.json", "data.test=~/test.json", "model.path=~/model"],
  )
  files_check.check_files(run)
  assert run.output == "~/run"
  assert schema.run_directory(run) == tmp_path / "run"
