"""The packaged experiments: the paper's settings, and a dry run of each."""

import itertools
import pathlib
import re
import typing

import numpy as np
import pytest

from reft_jax import train
from reft_jax.config import checks, loading, schema
from reft_jax.learning import optim

EXPERIMENTS = sorted(path.stem for path in loading.EXPERIMENTS.glob("*.yaml"))


class Data(typing.NamedTuple):
  """Files of training and test, ReFT's KL, warm-up epochs, problems."""

  train: str
  test: str
  kl_coef: float
  warmup: int
  size: int


# Typed from the paper's Table 1 and section 4.3 and the released scripts.
DATA = {
  "gsm8k_nl": Data("gsm8k_nl", "gsm8k", 0.05, 2, 7465),
  "gsm8k_python": Data("gsm8k_python_sdp", "gsm8k", 0.01, 2, 7356),
  "svamp_nl": Data("svamp_nl", "svamp", 0.05, 2, 3076),
  "svamp_python": Data("svamp_python_sdp", "svamp", 0.01, 2, 3043),
  "mathqa_nl": Data("mathqa_nl", "mathqa", 0.05, 5, 14862),
  "mathqa_python": Data("mathqa_python_sdp", "mathqa", 0.01, 2, 15250),
  "mathqa_numeric_nl": Data(
    "mathqa-numeric_nl", "mathqa-numeric", 0.01, 10, 8955
  ),
}
LARGE = {
  "codellama_7b": "codellama/CodeLlama-7b-hf",
  "galactica_6.7b": "facebook/galactica-6.7b",
}
# Name on the hub, rollouts in a step, weight of the value loss.
SMALL = {
  "galactica_125m": ("facebook/galactica-125m", 256, 5.0),
  "codeparrot_small": ("codeparrot/codeparrot-small", 256, 1.0),
  "codegen_350m": ("Salesforce/codegen-350M-mono", 128, 0.1),
}
TASKS = ("gsm8k", "svamp", "mathqa")
# Epochs of warm-up and SFT.
SMALL_EPOCHS = dict.fromkeys(itertools.product(SMALL, TASKS), (40, 100)) | {
  ("galactica_125m", "gsm8k"): (10, 40),
  ("galactica_125m", "svamp"): (10, 40),
  ("codegen_350m", "gsm8k"): (10, 40),
  ("codegen_350m", "svamp"): (10, 40),
}
LARGE_RUNS = list(itertools.product(DATA, LARGE))
SMALL_RUNS = [(task, model) for model, task in SMALL_EPOCHS]
ABLATED = "gsm8k_python_codellama_7b"
ABLATIONS = {
  "no_partial_reward": {"reft.partial_reward": (0.1, 0.0)},
  "kl_0": {"reft.kl_coef": (0.01, 0.0)},
  "separate_value": {"model.value": ("shared", "separate")},
}
PAPER = {
  *(f"{data}_{model}" for data, model in LARGE_RUNS),
  *(f"{task}_python_{model}" for task, model in SMALL_RUNS),
  *(f"{ABLATED}_{name}" for name in ABLATIONS),
}


# The rest are alike, and take minutes together.
IN_THE_FAST_TIER = {"smoke", ABLATED, "svamp_nl_galactica_6.7b"}
EACH = [
  pytest.param(name, marks=[pytest.mark.slow] * (name not in IN_THE_FAST_TIER))
  for name in EXPERIMENTS
]


def check(config: schema.Config, expected: dict[str, object]) -> None:
  """Some settings by their dotted keys."""
  everything = {key: value for key, _, value in loading.settings(config)}
  assert everything == everything | expected


# What all runs share.
SHARED = {
  "data.calculator_marks": False,
  "data.add_bos": False,
  "data.max_prompt_tokens": 300,
  "model.compute_dtype": "bfloat16",
  "warmup.start": "base",
  "warmup.batch_size": 48,
  "sft.start": "base",
  "sft.batch_size": 48,
  "sft.learning_rates": None,
  "sft.optimizer.kind": "adamw",
  "sft.optimizer.schedule": "linear",
  "sft.optimizer.warmup_fraction": 0.1,
  "sft.optimizer.final_fraction": 0.0,
  "sft.optimizer.weight_decay": 0.0,
  "sft.optimizer.clip_norm": 1.0,
  "reft.samples_per_question": 1,
  "reft.minibatch_size": None,
  "reft.ppo_epochs": 2,
  "reft.temperature": 1.0,
  "reft.gamma": 1.0,
  "reft.lam": 0.95,
  "reft.clip": 0.2,
  "reft.value_clip": 0.2,
  "reft.whiten": True,
  "reft.advantages": "gae",
  "reft.aggregation": "sequence_mean",
  "reft.kl_in": "reward",
  "reft.kl_estimator": None,
  "reft.kl_target": None,
  "reft.entropy_coef": 0.0,
  "reft.optimizer.kind": "adamw",
  "reft.optimizer.schedule": "constant",
  "reft.optimizer.warmup_fraction": 0.0,
  "reft.optimizer.eps": 1e-8,
  "reft.optimizer.b2": 0.999,
  "reft.optimizer.weight_decay": 0.0,
  "reft.optimizer.clip_norm": 1.0,
}


def check_data(config: schema.Config, name: str) -> None:
  assert config.data.train == f"data/{DATA[name].train}.json"
  assert config.data.test == f"data/{DATA[name].test}_test_set.json"
  assert config.data.reasoning == ("python" if "python" in name else "nl")


def check_warmup(config: schema.Config, size: int) -> None:
  """A warm-up is the beginning of SFT, learning rates included."""
  epoch = -(-size // 48)
  learnt = config.warmup.epochs * epoch
  warm = optim.schedule(config.warmup.optimizer, learnt)
  whole = optim.schedule(config.sft.optimizer, config.sft.epochs * epoch)
  steps = np.arange(0, learnt, max(1, learnt // 50))
  peak = config.sft.optimizer.learning_rate
  np.testing.assert_allclose(
    [*map(warm, steps)], [*map(whole, steps)], atol=2e-3 * peak
  )


def test_each_row_of_the_tables_has_its_file():
  assert set(EXPERIMENTS) >= PAPER
  assert len(PAPER) == 14 + 9 + 3


@pytest.mark.parametrize(("data", "model"), LARGE_RUNS)
def test_large_models(data, model):
  """Tables 2 and 3: SFT, offline and online self-training, ReFT."""
  config = loading.load([f"{data}_{model}"])
  check_data(config, data)
  check(
    config,
    SHARED
    | {
      "data.max_response_tokens": 400,
      "model.path": LARGE[model],
      "model.value": "shared",
      "warmup.epochs": DATA[data].warmup,
      "sft.epochs": 40,
      "sft.optimizer.learning_rate": 1e-5,
      "collect.per_question": 100,
      "collect.temperature": 1.0,
      "collect.top_k": 50,
      "offline_st.start": "base",
      "offline_st.epochs": 20,
      "offline_st.keep": 10,
      "offline_st.choose": "random",
      "offline_st.batch_size": 48,
      "offline_st.optimizer.learning_rate": 1e-5,
      "offline_st.optimizer.schedule": "linear",
      "offline_st.optimizer.warmup_fraction": 0.1,
      "online_st.epochs": 300,
      "online_st.batch_size": 32,
      "online_st.samples_per_question": 1,
      "online_st.passes": 2,
      "online_st.temperature": 1.0,
      "online_st.optimizer.learning_rate": 3e-7,
      "online_st.optimizer.schedule": "constant",
      "online_st.optimizer.warmup_fraction": 0.0,
      "reft.epochs": 300,
      "reft.batch_size": 32,
      "reft.kl_coef": DATA[data].kl_coef,
      "reft.vf_coef": 5.0,
      "reft.partial_reward": 0.1,
      "reft.optimizer.learning_rate": 3e-7,
    },
  )
  check_warmup(config, DATA[data].size)
  epoch = DATA[data].size / 32
  assert config.reft.evaluate_every == pytest.approx(epoch, rel=0.02)
  assert config.online_st.evaluate_every == config.reft.evaluate_every
  stages = ("warmup", "sft", "offline_st", "online_st", "reft")
  if data.startswith("gsm8k"):
    stages = (*stages, "reward_model")
  assert config.stages == stages


@pytest.mark.parametrize("data", ["gsm8k_nl", "gsm8k_python"])
@pytest.mark.parametrize("model", LARGE)
def test_voting_and_reranking(data, model):
  """Table 4."""
  check(
    loading.load([f"{data}_{model}"]),
    {
      "reward_model.start": "warmup",
      "reward_model.epochs": 3,
      "reward_model.batch_size": 24,
      "reward_model.optimizer.learning_rate": 1e-6,
      "reward_model.optimizer.schedule": "linear",
      "reward_model.optimizer.warmup_fraction": 0.1,
      "evaluation.split": "test",
      "evaluation.samples": 100,
      "evaluation.at": (1, 100),
      "evaluation.temperature": 1.0,
      "evaluation.top_k": 50,
    },
  )


@pytest.mark.parametrize(("task", "model"), SMALL_RUNS)
def test_small_models(task, model):
  """Table 5."""
  config = loading.load([f"{task}_python_{model}"])
  path, rollouts, vf_coef = SMALL[model]
  warmup, sft = SMALL_EPOCHS[model, task]
  check_data(config, f"{task}_python")
  short = (task, model) == ("svamp", "codegen_350m")
  check(
    config,
    SHARED
    | {
      "stages": ("warmup", "sft", "reft"),
      "data.max_response_tokens": 200 if short else 400,
      "model.path": path,
      "model.value": "shared",
      "warmup.epochs": warmup,
      "sft.epochs": sft,
      "sft.optimizer.learning_rate": 2e-5,
      "reft.epochs": 700,
      "reft.batch_size": rollouts,
      "reft.kl_coef": 0.01,
      "reft.vf_coef": vf_coef,
      "reft.partial_reward": 0.1,
      "reft.optimizer.learning_rate": 3e-6,
    },
  )
  size = DATA[f"{task}_python"].size
  check_warmup(config, size)
  assert config.reft.evaluate_every == pytest.approx(size / rollouts, rel=0.1)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_change_one_thing(name):
  """Table 6."""
  ablated = loading.load([f"{ABLATED}_{name}"])
  assert ablated.stages == ("warmup", "reft")
  old, new = map(loading.identity, (loading.load([ABLATED]), ablated))
  changed = {key: (old[key], new[key]) for key in old if old[key] != new[key]}
  del changed["name"]
  assert changed == ABLATIONS[name]


def test_parts_are_no_experiments_but_are_used():
  parts = {path.stem for path in (loading.EXPERIMENTS / "parts").glob("*.yaml")}
  assert not parts & set(EXPERIMENTS)
  texts = "".join(p.read_text() for p in loading.EXPERIMENTS.rglob("*.yaml"))
  extended = str(re.findall("^extends:.*$", texts, re.MULTILINE))
  assert not [part for part in parts if part not in extended]


@pytest.mark.parametrize("name", EACH)
def test_printed_settings_run_again(name, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert train.main(["--config", name, "--print-config"]) == 0
  printed = capsys.readouterr().out
  pathlib.Path("printed.yaml").write_text(printed)
  config = loading.load(["printed.yaml"])
  assert config == loading.load([name])
  checks.validate(config)
  assert config.name == name


@pytest.mark.parametrize("name", EACH)
def test_dry_run(name, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  # As if nothing were here, not even programs to run: this is not about them.
  settings = [f"--config={name}", "programs.workers=1", "mesh.fsdp=8"]
  assert train.main([*settings, "--dry-run"]) == 0
  said = capsys.readouterr()
  assert said.err == ""
  assert not list(tmp_path.iterdir()), "something was written"
  config = loading.load([name])
  for stage in config.stages:
    assert f"\n {stage} " in said.out
  if name in PAPER:
    for setting in ("data.train", "data.test", "model.path"):
      assert f"missing: {setting}=" in said.out
    origin = f"to be downloaded from huggingface.co/{config.model.path}"
    assert origin in said.out
    assert "from the folder data of github.com/lqtrung1998/mwp_ReFT" in said.out
    assert "what is missing was not checked" in said.out
