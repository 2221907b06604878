"""LoRA: adapters beside weights, merged, sharded, and opened by PEFT."""

import contextlib
import dataclasses
import functools
import io
import json
import shutil
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as peft_library
import pytest
import tiny
import torch
import transformers
from flax import traverse_util

from reft_jax import train, types
from reft_jax.algorithms import pretrain
from reft_jax.config import cli, loading, schema
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import optim
from reft_jax.learning import ppo as ppo_lib
from reft_jax.learning import supervised as supervised_lib
from reft_jax.models import errors, lora, networks
from reft_jax.models.hf import peft, scratch
from reft_jax.models.hf import read as read_lib
from reft_jax.models.hf import write as writer
from reft_jax.run import model_paths, setup
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import metrics as metrics_lib
from reft_jax.tasks import embedded

RANK, ALPHA = 3, 7.5
SCALE = ALPHA / RANK
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 7))
LENGTHS = np.int32([7, 5])
# One of each way to store weights: apart, with biases, in x out, in blocks.
FAMILIES = ("llama", "opt", "gpt2", "phi3", "gpt_neox", "codegen")


@functools.cache
def shape(family):
  made = scratch.architecture(
    family,
    vocab_size=29,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2 if family in ("llama", "phi3") else 4,
    ffn=24,
    max_positions=2048,
  )
  tied = family in ("opt", "gpt2")
  return dataclasses.replace(made, init_scale=0.35, tied_head=tied)


@functools.cache
def network(family="llama"):
  return networks.Networks(shape(family), adapter_scale=SCALE)


@functools.cache
def policy(family="llama"):
  return jax.jit(network(family).init)(jax.random.key(0))


def adapter(family="llama", targets=("all",), moved=("",)):
  """One whose B is not 0, as after training, where names start so."""
  made = lora.init(shape(family), jax.random.key(1), rank=RANK, targets=targets)
  rng = np.random.default_rng(2)

  def learnt(path, leaf):
    name = path[-1].key
    if "_b_R" not in name or not name.startswith(moved):
      return leaf
    return jnp.float32(0.3 * rng.standard_normal(leaf.shape))

  return jax.tree_util.tree_map_with_path(learnt, made)


def logits(params, family="llama"):
  return tiny.logits(network(family), params, TOKENS, LENGTHS)


def far(a, b):
  return float(jnp.abs(a - b).max())


def test_settings_offer_every_target():
  kind = typing.get_type_hints(schema.LoraConfig)["targets"]
  names = typing.get_args(typing.get_args(kind)[0])
  assert names == (lora.ALL, *lora.TARGETS)


def test_a_fresh_adapter_is_exactly_the_base():
  fresh = adapter(moved=())
  joined = lora.join(policy(), fresh)
  assert far(logits(joined), logits(policy())) == 0
  # Both names of every pair, whose fan-in says how large A is.
  q = fresh["trunk"]["blocks"]["attention"]["q_a_DR"]
  o = fresh["trunk"]["blocks"]["attention"]["o_a_NHR"]
  down = fresh["trunk"]["blocks"]["mlp"]["down_a_FR"]
  assert (q.shape, o.shape) == ((2, 16, RANK), (2, 4, 4, RANK))
  for leaf, inputs in ((q, 16), (o, 16), (down, 24)):
    assert 0.8 * inputs**-0.5 < jnp.abs(leaf).max() <= inputs**-0.5


@pytest.mark.parametrize(
  ("family", "moved"),
  [
    *(("llama", (f"{target}_",)) for target in lora.TARGETS),
    *(
      pytest.param(family, ("",), marks=pytest.mark.slow) for family in FAMILIES
    ),
  ],
)
def test_merged_weights_say_what_adapters_say(family, moved):
  joined = lora.join(policy(family), adapter(family, moved=moved))
  merged = lora.merge(joined, SCALE)
  chex.assert_trees_all_equal_shapes(merged, policy(family))
  said = logits(joined, family)
  assert far(said, logits(merged, family)) < 1e-5
  assert far(said, logits(policy(family), family)) > 1e-2


def test_the_sampler_reads_merged_weights():
  joined = lora.join(policy(), adapter())
  published = jax.jit(network().publish)(joined)
  merged = lora.merge(joined, SCALE)
  chex.assert_trees_all_equal_shapes(
    published, jax.eval_shape(network().publish, policy())
  )
  block = published["trunk"]["blocks"][1]
  np.testing.assert_allclose(
    block["attention"]["o_NHD"],
    merged["trunk"]["blocks"]["attention"]["o_NHD"][1],
    atol=1e-6,
  )


def test_joining_copies_nothing_and_splitting_undoes_it():
  base, learnt = policy(), adapter()
  joined = lora.join(base, learnt)
  apart = lora.split(joined)
  for got, want in zip(apart, (base, learnt), strict=True):
    chex.assert_trees_all_equal_structs(got, want)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    assert all(a is b for a, b in pairs)
  assert lora.split(base)[1] == {}
  assert lora.join({}, learnt) is not None


def test_a_target_that_a_family_lacks_is_an_error_that_names_those_it_has():
  with pytest.raises(errors.UnsupportedModelError) as error:
    lora.selected_targets(shape("gpt2"), ["gate", "q"])
  assert str(error.value) == (
    "gpt2 models have no gate to adapt, only q, k, v, o, up, down."
  )
  assert list(lora.selected_targets(shape("gpt2"), ["all"])) == [
    *("q", "k", "v", "o", "up", "down")
  ]
  assert lora.largest_rank(shape("llama"), ["all"]) == 8  # K x H.
  assert lora.largest_rank(shape("llama"), ["q", "down"]) == 16


# Training --------------------------------------------------------------------

PPO = schema.ReftConfig(minibatch_size=8, micro_batch_size=4, ppo_epochs=1)
NETWORK = dataclasses.replace(tiny.make(), adapter_scale=SCALE)


def begin(kind, learnt):
  """What is learnt, what is beneath it."""
  params = {"policy": learnt, "value": NETWORK.init_value(learnt, kind)}
  return params, lora.frozen_base(tiny.policy(), params)


def step(params, base, reference, rollout):
  optimizer = optax.adam(1e-2)
  state = learner_lib.init_state(params, optimizer, PPO.kl_coef)
  whole = functools.partial(lora.join, base)
  assessment = ppo_lib.make_assess(NETWORK, PPO, logit_chunk=16)(
    whole(state.params), whole({"policy": reference})["policy"], rollout
  )
  scores_B = jnp.float32([1, 0, 0.1, 1, 0.1, 0, 1, 0.1])
  experience, metrics = ppo_lib.make_score(PPO)(
    rollout, assessment, scores_B, state.kl_coef
  )
  update = ppo_lib.make_update(NETWORK, optimizer, PPO, logit_chunk=16)
  state, learned = update(state, experience, jax.random.key(0), base=base)
  means = jax.device_get(metrics | learned)
  return state, {name: mean.value() for name, mean in means.items()}


@functools.cache
def one_device(kind):
  learnt = lora.init(tiny.CONFIG, jax.random.key(1), rank=RANK, targets=["all"])
  params, base = begin(kind, learnt)
  state, means = step(params, base, learnt, tiny.sample())
  return learnt, params, base, jax.device_get(state), means


@pytest.mark.parametrize(
  "kind", ["shared", pytest.param("separate", marks=pytest.mark.slow)]
)
def test_adapters_learn_and_nothing_else_exists_twice(kind):
  learnt, params, base, state, means = one_device(kind)
  assert means["kl"] == 0
  assert means["ratio/first_deviation"] == 0
  assert means["sampler_gap"] < 1e-5
  assert means["grad_norm"] > 0
  # The policy, its reference and the critic's trunk are of the same arrays.
  whole = lora.join(base, params)
  reference = lora.join(base, {"policy": learnt})["policy"]
  trees = [whole["policy"]["trunk"], reference["trunk"]]
  if kind == "separate":
    trees.append(whole["value"]["trunk"])
  for tree in trees:
    frozen, _ = lora.split(tree)
    pairs = zip(
      jax.tree.leaves(frozen),
      jax.tree.leaves(tiny.policy()["trunk"]),
      strict=True,
    )
    assert all(a is b for a, b in pairs)
  # What is learnt and its two moments: nothing of the base's size.
  chex.assert_trees_all_equal_structs(state.params, params)
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
  assert moments == 2 * size + 1
  up = state.params["policy"]["trunk"]["blocks"]["attention"]["q_b_RNH"]
  assert np.abs(up).max() > 1e-3


@pytest.mark.slow
def test_devices_change_no_loss():
  learnt, _, _, plain, means = one_device("separate")
  mesh = tiny.mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    params, base = begin("separate", learnt)
    params, base, learnt = mesh_lib.put(mesh, (params, base, learnt))
    rollout = mesh_lib.put_batch(mesh, tiny.sample())
    state, got = step(params, base, learnt, rollout)
  for name in ("grad_norm", "policy/loss", "value/loss", "entropy"):
    assert got[name] == pytest.approx(means[name], rel=1e-5, abs=1e-5)
  assert got["kl"] == 0
  down = state.params["policy"]["trunk"]["blocks"]["attention"]["q_a_DR"]
  assert down.sharding.spec[1] == "fsdp"
  chex.assert_trees_all_close(
    jax.device_get(state.params), plain.params, atol=2e-3
  )


@pytest.mark.slow
def test_no_gradient_of_a_frozen_weight_is_computed():
  optimizer = optax.sgd(0.1)
  update = supervised_lib.make_update(NETWORK, optimizer, micro_batch=8)
  batch = types.SupervisedBatch(
    tokens_BS=jnp.zeros((8, 16), jnp.int32),
    lengths_B=jnp.full(8, 16),
    targets_BS=jnp.ones((8, 16), bool),
  )

  def flops(policy, base):
    state = learner_lib.init_state({"policy": policy}, optimizer)
    step = update.lower(state, batch, base={"policy": base})
    return step.compile().cost_analysis()["flops"]

  learnt = lora.init(
    tiny.CONFIG, jax.random.key(1), rank=1, targets=["q", "down"]
  )
  # Forward, and back to activations and weights: without the last two thirds.
  share = flops(learnt, tiny.policy()) / flops(tiny.policy(), {})
  assert 0.6 < share < 0.85


def test_muon_takes_the_factors_as_matrices():
  learnt = adapter()
  axes = optim._matrices(learnt)["trunk"]["blocks"]
  assert axes["attention"]["q_b_RNH"].reduction_axis == (1,)
  assert axes["attention"]["q_b_RNH"].output_axis == (2, 3)
  assert axes["attention"]["o_a_NHR"].reduction_axis == (1, 2)
  assert axes["mlp"]["down_b_RD"].reduction_axis == (1,)


def test_absorbing_is_merging_without_a_second_copy():
  base = jax.tree.map(jnp.copy, policy())
  joined = lora.join(base, adapter())
  want = jax.device_get(lora.merge(joined, SCALE))
  embedding = base["trunk"]["embed_VD"]
  weight = base["trunk"]["blocks"]["mlp"]["up_DF"]
  merged = lora.merge_in_place(joined, SCALE)
  chex.assert_trees_all_close(jax.device_get(merged), want, atol=1e-6)
  assert merged["trunk"]["embed_VD"] is embedding
  assert weight.is_deleted()
  assert lora.merge_in_place(merged, SCALE) == merged


# PEFT ------------------------------------------------------------------------


# PEFT asks transformers 5 for what it is to lose in its version 6.
deprecated = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")


def opened(model_class, folder, **options):
  model = model_class.from_pretrained(
    folder, attn_implementation="eager", **options
  )
  return model.eval()


def their_logits(model, tokens_BS=TOKENS):
  with torch.no_grad():
    return model(torch.tensor(tokens_BS)).logits.numpy()


@deprecated
@pytest.mark.parametrize(
  ("family", "targets"),
  [
    *((family, ("all",)) for family in FAMILIES),
    *((family, ("q", "v", "down")) for family in ("llama", "gpt2", "phi3")),
  ],
)
def test_peft_opens_the_folder_as_the_merged_model(family, targets, tmp_path):
  config, learnt = shape(family), adapter(family, targets)
  base, merged = tmp_path / "base", tmp_path / "merged"
  writer.save(base, config, policy(family))
  joined = lora.join(policy(family), learnt)
  writer.save(merged, config, lora.merge(joined, SCALE))
  made = peft.Adapter(learnt, RANK, ALPHA, str(base))
  peft.save(tmp_path / "adapter", config, made)

  model_class = transformers.AutoModelForCausalLM
  theirs = peft_library.PeftModel.from_pretrained(
    opened(model_class, base), tmp_path / "adapter"
  )
  got, want = their_logits(theirs), their_logits(opened(model_class, merged))
  np.testing.assert_allclose(got, want, atol=2e-5)
  assert np.abs(got - their_logits(opened(model_class, base))).max() > 1e-2
  np.testing.assert_allclose(
    their_logits(theirs.merge_and_unload()), want, atol=2e-5
  )


@deprecated
def test_peft_opens_the_adapter_of_a_classifier(tmp_path):
  config, learnt = shape("llama"), adapter()
  score = jax.random.normal(jax.random.key(5), (16, 2))
  scorer = lora.join(policy(), learnt) | {"score_DC": score}
  merged = lora.merge(scorer, SCALE)
  writer.save(tmp_path / "base", config, policy())
  writer.save_classifier(
    tmp_path / "merged", config, merged, extra={"pad_token_id": 0}
  )
  made = peft.Adapter(learnt, RANK, ALPHA, "someone/base@main")
  peft.save(tmp_path / "adapter", config, made, head_DC=score)
  model_class = transformers.AutoModelForSequenceClassification
  base = opened(model_class, tmp_path / "base", num_labels=2, pad_token_id=0)
  theirs = peft_library.PeftModel.from_pretrained(base, tmp_path / "adapter")
  want = their_logits(opened(model_class, tmp_path / "merged"))
  np.testing.assert_allclose(their_logits(theirs), want, atol=2e-5)
  told = peft_library.PeftConfig.from_pretrained(tmp_path / "adapter")
  assert (told.base_model_name_or_path, told.revision) == (
    "someone/base",
    "main",
  )


# A whole run -----------------------------------------------------------------

SETTINGS = (
  "--config=embedded",
  *("lora.rank=2", "lora.alpha=8", "lora.targets=[q,v,down]"),
  *("stages=[warmup,online_st,reft,reward_model]", "model.value=separate"),
  *("embedded.questions=16", "embedded.test=8", "data.dev_size=0"),
  *("embedded.min_events=1", "embedded.max_events=1"),
  *("data.max_prompt_tokens=96", "data.max_response_tokens=40"),
  *("base.width=16", "base.layers=1", "base.ffn=24"),
  *("warmup.epochs=2", "warmup.batch_size=8"),
  *("sft.learning_rates=null", "warmup.optimizer.learning_rate=1e-2"),
  *("online_st.steps=1", "online_st.batch_size=8"),
  *("reft.steps=2", "reft.batch_size=8", "reft.minibatch_size=8"),
  # Nothing it samples is right: entropy alone moves it.
  *("reft.optimizer.learning_rate=1e-2", "reft.entropy_coef=1"),
  *("collect.per_question=2", "evaluation.batch_size=8"),
  *("reward_model.epochs=1", "reward_model.batch_size=8"),
  *("evaluation.majority_samples=0", "checkpoint.every=1"),
  *("logging.every=1", "logging.tensorboard=false"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run; its base model lies in the folder `model` beside it."""
  folder = tmp_path_factory.mktemp("lora")
  tokenizer = tokenizer_lib.wrap(embedded.tokenizer())
  options = cli.parse(SETTINGS).config
  made = pretrain.architecture(options, tokenizer.vocab_size)
  made = dataclasses.replace(made, init_scale=0.3)
  base = jax.jit(networks.Networks(made).init)(jax.random.key(0))
  writer.save(folder / "model", made, base)
  tokenizer.save(folder / "model")
  assert start(folder) == 0
  return folder / "run"


def start(folder, *settings):
  model, output = f"model.path={folder / 'model'}", f"output={folder / 'run'}"
  return train.main([*SETTINGS, model, output, *settings])


def moved(one, other):
  """The weights in which two models differ."""
  trees = [
    traverse_util.flatten_dict(read_lib.load(x)[1], sep="/")
    for x in (one, other)
  ]
  return {
    path.rpartition("/")[2]
    for path, leaf in trees[0].items()
    if (leaf != trees[1][path]).any()
  }


@pytest.mark.slow
def test_every_stage_learns_an_adapter_of_what_it_starts_from(finished):
  models = finished / "models"
  assert moved(finished.parent / "model", models / "warmup") == {
    *("q_DNH", "v_DKH", "down_FD")
  }
  assert moved(models / "warmup", models / "reft")
  rows = [row for row in metrics_lib.read(finished) if row["stage"] == "reft"]
  first, second = [row for row in rows if "kl" in row]
  assert first["kl"] == 0
  assert second["kl"] != 0
  for row in (first, second):
    assert row["sampler_gap"] < 1e-5
    assert row["skipped_updates"] == 0


@deprecated
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warmup", "online_st", "reft"])
def test_beside_the_merged_model_lies_its_adapter(finished, stage):
  folder = finished / "models" / stage
  about = json.loads((folder / "adapter/adapter_config.json").read_text())
  base = about["base_model_name_or_path"]
  assert base == str(
    finished.parent / "model" if stage == "warmup" else folder.parent / "warmup"
  )
  model_class = transformers.AutoModelForCausalLM
  theirs = peft_library.PeftModel.from_pretrained(
    opened(model_class, base), folder / "adapter"
  )
  np.testing.assert_allclose(
    their_logits(theirs), their_logits(opened(model_class, folder)), atol=2e-5
  )


@pytest.mark.slow
def test_checkpoints_hold_adapters_and_are_opened_whole(finished):
  (model,) = model_paths.find(str(finished / "stages/reft/checkpoints"))
  options = loading.load([str(finished / "config.yaml")])
  _, net = setup.open_model(options)
  shapes = model_paths.parts(model.folder, net)
  names = {path[-1] for path in traverse_util.flatten_dict(shapes)}
  assert names == {
    *("q_a_DR", "q_b_RNH", "v_a_DR", "v_b_RKH", "down_a_FR", "down_b_RD"),
    *("w_D", "b"),
  }
  mesh = tiny.mesh((1, 2, 1))
  held = model_paths.read(model.folder, net, mesh, ("policy", "value"))
  _, want = read_lib.load(finished / "models/reft")
  chex.assert_trees_all_close(jax.device_get(held["policy"]), want, atol=1e-6)
  chex.assert_trees_all_equal_structs(held["value"]["trunk"], want["trunk"])
  own = held["value"]["trunk"]["blocks"]["mlp"]["down_FD"]
  assert far(own, want["trunk"]["blocks"]["mlp"]["down_FD"]) > 1e-4


@pytest.mark.slow
def test_a_killed_run_resumes_as_the_unbroken_one(finished, capsys):
  weights = finished / "models/reft/model.safetensors"
  before = weights.read_bytes()
  kept = finished / "stages/reft"
  shutil.rmtree(finished / "models/reft")
  shutil.rmtree(kept / "checkpoints/2")
  (kept / "result.json").unlink()
  assert start(finished.parent) == 0
  assert "reft: resumes after step 1" in capsys.readouterr().out
  assert weights.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (["lora.rank=17"], "lora.rank=17 is above 16, the rank of a weight"),
    (["lora.targets=[]"], "lora.targets=[] must name at least one projection"),
    (["lora.targets=[w]"], "lora.targets"),
    (["lora.rank=-1"], "lora.rank=-1 must be 0 or more"),
  ],
)
def test_settings_that_do_not_fit_are_refused(finished, settings, message):
  with contextlib.redirect_stderr(io.StringIO()) as told:
    assert start(finished.parent, *settings) == 2
  assert message in told.getvalue()
