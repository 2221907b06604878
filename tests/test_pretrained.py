"""Hugging Face folders to parameters and back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from reft_jax import steps
from reft_jax.models import config as configs
from reft_jax.models import networks, pretrained

TINY = configs.ModelConfig(
  vocab_size=13,
  width=16,
  layers=3,
  heads=4,
  kv_heads=2,
  head_size=6,
  ffn=20,
  attention_bias=True,
  mlp_bias=True,
)
TIED = configs.ModelConfig(
  vocab_size=7,
  width=8,
  layers=1,
  heads=2,
  kv_heads=1,
  head_size=4,
  ffn=12,
  tied_head=True,
)
TOKENS_BS = np.arange(12, dtype=np.int32).reshape(2, 6)
LENGTHS_B = np.array([6, 6], np.int32)


def random_policy(config):
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(networks.Networks(config).init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes
  )


def stored(folder):
  return safetensors.numpy.load_file(folder / "model.safetensors")


def store(folder, tensors, name="model.safetensors"):
  safetensors.numpy.save_file(tensors, folder / name)


def edit_config(folder, **fields):
  file = folder / "config.json"
  content = json.loads(file.read_text()) | fields
  content = {key: value for key, value in content.items() if value != "absent"}
  file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
  pretrained.save(tmp_path, TIED, random_policy(TIED))
  return tmp_path


ROPES = [
  configs.RopeConfig(theta=500.0),
  configs.RopeConfig(kind="linear", factor=2.0),
  configs.RopeConfig(kind="dynamic", factor=2.0),
  configs.RopeConfig(
    kind="llama3",
    factor=8.0,
    original_max_positions=64,
    low_freq_factor=1.5,
    high_freq_factor=3.0,
  ),
  configs.RopeConfig(
    kind="yarn",
    factor=4.0,
    original_max_positions=64,
    attention_factor=1.25,
    beta_fast=8.0,
    beta_slow=2.0,
    truncate=False,
  ),
  configs.RopeConfig(
    kind="longrope",
    factor=4.0,
    original_max_positions=64,
    attention_factor=1.25,
    short_factor=(1.0, 2.0),
    long_factor=(3.0, 4.0),
  ),
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.kind)
def test_every_field_of_a_config_survives(rope, tmp_path):
  config = configs.ModelConfig(
    vocab_size=7,
    width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    head_size=4,
    ffn=12,
    norm_eps=1e-3,
    rope=rope,
    tied_head=True,
    attention_bias=True,
    mlp_bias=True,
    activation="gelu",
    max_positions=256,
    init_scale=0.5,
  )
  pretrained.save(tmp_path, config, random_policy(config))
  assert pretrained.read_config(tmp_path) == config


@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_parameters_survive_bit_by_bit(config, tmp_path):
  policy = random_policy(config)
  pretrained.save(tmp_path / "new/folder", config, jax.device_put(policy))
  config_again, again = pretrained.load(tmp_path / "new/folder")
  assert config_again == config
  jax.tree.map(np.testing.assert_array_equal, again, policy)
  for leaf in jax.tree.leaves(again):
    assert leaf.dtype == np.float32
    assert leaf.flags["C_CONTIGUOUS"]
    assert leaf.flags["WRITEABLE"]


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_transformers_reads_what_is_written_and_writes_what_is_read(
  sharded, tmp_path
):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  policy = random_policy(TINY)
  extra = {"eos_token_id": 5, "pad_token_id": 3}
  pretrained.save(tmp_path / "ours", TINY, policy, extra=extra)

  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not any(report.values())
  assert (model.config.eos_token_id, model.config.pad_token_id) == (5, 3)
  assert model.config.bos_token_id is None
  net = networks.Networks(TINY)
  hidden_BSD = net.hidden(policy["trunk"], TOKENS_BS, LENGTHS_B)
  with torch.no_grad():
    want_BSV = model(torch.tensor(TOKENS_BS).long()).logits.numpy()
  np.testing.assert_allclose(
    net.logits(policy, hidden_BSD), want_BSV, rtol=1e-4, atol=1e-4
  )

  size = {"max_shard_size": "4KB"} if sharded else {}
  model.save_pretrained(tmp_path / "theirs", **size)
  index = tmp_path / "theirs/model.safetensors.index.json"
  assert index.is_file() == sharded
  config, again = pretrained.load(tmp_path / "theirs")
  assert config == TINY
  jax.tree.map(np.testing.assert_array_equal, again, policy)


def test_a_real_model_loads_and_saves_unchanged(tmp_path, shared):
  folder = shared / "models/stories260K"
  config, policy = pretrained.load(folder)
  assert sum(leaf.size for leaf in jax.tree.leaves(policy)) == 260_032
  pretrained.save(tmp_path, config, policy)
  want, got = stored(folder), stored(tmp_path)
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_is_widened_exactly(dtype, folder):
  half = {name: array.astype(dtype) for name, array in stored(folder).items()}
  store(folder, half)
  _, policy = pretrained.load(folder)
  assert policy["trunk"]["embed_VD"].dtype == np.float32
  np.testing.assert_array_equal(
    policy["trunk"]["embed_VD"],
    half["model.embed_tokens.weight"].astype(np.float32),
  )


def test_known_extra_tensors_are_ignored(folder):
  extra = {
    "lm_head.weight": np.zeros((7, 8), np.float32),
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32),
  }
  store(folder, stored(folder) | extra)
  _, policy = pretrained.load(folder)
  assert set(policy) == {"trunk"}


def test_configs_of_old_checkpoints(folder):
  edit_config(
    folder,
    rope_parameters="absent",
    rope_theta=1e6,
    rope_scaling={"type": "linear", "factor": 2.0},
    head_dim=None,
    num_key_value_heads=None,
    torch_dtype="float16",
    dtype="absent",
  )
  config = pretrained.read_config(folder)
  assert config.rope == configs.RopeConfig("linear", theta=1e6, factor=2.0)
  assert (config.head_size, config.kv_heads) == (4, 2)


def test_rope_defaults_follow_from_the_context(folder):
  edit_config(
    folder,
    max_position_embeddings=256,
    original_max_position_embeddings=64,
    rope_parameters={"rope_type": "yarn", "rope_theta": 1e4},
  )
  rope = pretrained.read_config(folder).rope
  assert (rope.factor, rope.original_max_positions) == (4.0, 64)
  np.testing.assert_allclose(rope.attention_factor, 0.1 * np.log(4) + 1)


def test_a_field_that_is_null_is_left_out(folder):
  want = pretrained.read_config(folder)
  edit_config(folder, rms_norm_eps=None, mlp_bias=None, hidden_act=None)
  got = pretrained.read_config(folder)
  assert got == dataclasses.replace(want, norm_eps=1e-6)


# Classifiers.


def random_scorer(config):
  init = networks.Networks(config).init_scorer
  return jax.device_get(init(random_policy(config), jax.random.key(0)))


def test_transformers_opens_a_classifier_and_finds_the_same(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  scorer, pad = random_scorer(TINY), 12
  pretrained.save_classifier(
    tmp_path / "ours", TINY, scorer, extra={"pad_token_id": pad}
  )
  auto = transformers.AutoModelForSequenceClassification
  model, report = auto.from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not any(report.values())
  assert model.config.num_labels == 2
  assert model.config.id2label == {0: "incorrect", 1: "correct"}
  assert model.config.label2id == {"incorrect": 0, "correct": 1}

  lengths_B = np.int32([6, 2, 4, 1])
  tokens_BS = np.random.default_rng(0).integers(0, pad, (4, 7))
  inside_BS = np.arange(7)[None] < lengths_B[:, None]
  tokens_BS = np.where(inside_BS, tokens_BS, pad).astype(np.int32)
  with torch.no_grad():
    want_BC = model(
      torch.tensor(tokens_BS).long(),
      attention_mask=torch.tensor(inside_BS).long(),
    ).logits.softmax(-1)
  got_B = steps.scores(networks.Networks(TINY))(scorer, tokens_BS, lengths_B)
  np.testing.assert_allclose(got_B, want_BC[:, 1], atol=1e-4)

  model.save_pretrained(tmp_path / "theirs")
  config, again = pretrained.load_classifier(tmp_path / "theirs")
  assert config == TINY
  jax.tree.map(np.testing.assert_array_equal, again, scorer)


def test_a_classifier_on_a_tied_trunk_survives(tmp_path):
  scorer = random_scorer(TIED)
  pretrained.save_classifier(tmp_path, TIED, scorer)
  assert "lm_head.weight" not in stored(tmp_path)
  config, again = pretrained.load_classifier(tmp_path)
  assert config == TIED
  jax.tree.map(np.testing.assert_array_equal, again, scorer)


def test_classifiers_and_language_models_are_not_mixed_up(folder, tmp_path):
  with pytest.raises(
    pretrained.UnsupportedModelError, match="holds no classifier"
  ) as error:
    pretrained.load_classifier(folder)
  assert str(folder) in str(error.value)
  pretrained.save_classifier(tmp_path / "scorer", TIED, random_scorer(TIED))
  with pytest.raises(
    pretrained.UnsupportedModelError, match="scorer holds a classifier"
  ):
    pretrained.load(tmp_path / "scorer")


def test_a_classifier_of_other_classes_is_refused(tmp_path):
  pretrained.save_classifier(tmp_path, TIED, random_scorer(TIED))
  three = {"score.weight": np.zeros((3, 8), np.float32)}
  store(tmp_path, stored(tmp_path) | three)
  with pytest.raises(
    pretrained.UnsupportedModelError,
    match=r"score.weight \(score_DC\) has shape \(3, 8\) and not \(2, 8\)",
  ):
    pretrained.load_classifier(tmp_path)


# Mistakes.


def longrope_fields(**changes):
  fields = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
  return {"rope_parameters": {"rope_type": "longrope", **fields, **changes}}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model_type": "opt"}, "model_type 'opt' is not supported.*llama"),
    ({"model_type": "absent"}, "model_type None is not supported"),
    ({"hidden_size": "absent"}, "the field 'hidden_size' is missing"),
    ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of silu"),
    ({"num_key_value_heads": 3}, "heads=2 must be a multiple of kv_heads=3"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    (
      {"rope_parameters": {"rope_type": "mrope"}},
      "rope type 'mrope' is not one of default, linear",
    ),
    (
      {"rope_parameters": {"rope_type": "linear"}},
      "rope type 'linear' needs the field 'factor'",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
    ({"hidden_act": ["silu"]}, "'hidden_act' .*must be text"),
    ({"num_hidden_layers": "5"}, "'num_hidden_layers' is '5' .*whole number"),
    ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0 .*above 0"),
    ({"num_hidden_layers": True}, "'num_hidden_layers' is True .*whole number"),
    ({"hidden_size": 64.5}, "'hidden_size' is 64.5 .*whole number"),
    ({"hidden_size": None}, "the field 'hidden_size' is missing"),
    ({"rms_norm_eps": "x"}, "'rms_norm_eps' is 'x' .*must be a number"),
    ({"rms_norm_eps": True}, "'rms_norm_eps' is True .*must be a number"),
    ({"initializer_range": float("nan")}, "'initializer_range' is nan"),
    ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1 .*true or false"),
    ({"rope_parameters": ["linear"]}, "'rope_parameters' .*object with fields"),
    ({"rope_parameters": []}, "'rope_parameters' .*object with fields"),
    (
      {"rope_parameters": {"rope_type": ["linear"]}},
      "'rope_parameters.rope_type' .*must be text",
    ),
    (
      {
        "rope_parameters": None,
        "rope_scaling": {"type": "linear", "factor": "2"},
      },
      "'rope_scaling.factor' is '2' .*number above 0",
    ),
    ({"rope_parameters": None, "rope_theta": 0}, "'rope_theta' is 0 .*above 0"),
    (
      longrope_fields(short_factor=[1.0, 2.0, 3.0]),
      "short_factor holds 3 numbers but must hold 2",
    ),
    (longrope_fields(long_factor=[]), "long_factor holds 0 numbers .* 2"),
    (longrope_fields(long_factor=["a"]), "'rope_parameters.long_factor'"),
    (longrope_fields(long_factor=2.0), "'rope_parameters.long_factor'"),
  ],
)
def test_configs_that_are_refused(fields, message, folder):
  edit_config(folder, **fields)
  with pytest.raises(pretrained.UnsupportedModelError, match=message) as error:
    pretrained.load(folder)
  assert str(folder) in str(error.value)
  assert "\n" not in str(error.value)


def test_all_that_is_wrong_with_the_tensors_is_listed_by_both_names(folder):
  tensors = stored(folder)
  del tensors["model.layers.0.self_attn.q_proj.weight"]
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(8, np.float32)
  tensors["model.norm.weight"] = np.zeros(9, np.float32)
  up = "model.layers.0.mlp.up_proj.weight"
  tensors[up] = tensors[up].astype(np.int8)
  store(folder, tensors)
  with pytest.raises(pretrained.UnsupportedModelError) as error:
    pretrained.load(folder)
  for part in (
    "model.layers.0.self_attn.q_proj.weight (trunk/blocks/attention/q_DNH) "
    "is missing",
    "model.norm.weight (trunk/norm_D) has shape (9,) and not (8,)",
    f"{up} (trunk/blocks/mlp/up_DF) has type I8",
    "model.layers.0.self_attn.q_proj.bias is unexpected",
  ):
    assert part in str(error.value)


def test_a_long_list_of_mistakes_is_cut(folder):
  store(folder, {"other": np.zeros(1, np.float32)})
  with pytest.raises(pretrained.UnsupportedModelError, match="and 7 more"):
    pretrained.load(folder)


@pytest.mark.parametrize(
  "index", [{}, {"weight_map": ["a"]}, {"weight_map": {"lm_head.weight": 1}}]
)
def test_an_index_without_a_map(index, folder):
  (folder / "model.safetensors").unlink()
  file = folder / "model.safetensors.index.json"
  file.write_text(json.dumps(index))
  with pytest.raises(pretrained.UnsupportedModelError) as error:
    pretrained.load(folder)
  assert str(error.value).startswith(f"{file}: the field 'weight_map' must be")


def test_missing_and_damaged_files(folder):
  def refused(message):
    return pytest.raises(pretrained.UnsupportedModelError, match=message)

  with refused("nowhere/config.json does not exist"):
    pretrained.load(folder / "nowhere")
  (folder / "model.safetensors").write_bytes(b"not a safetensors file")
  with refused("model.safetensors cannot be read"):
    pretrained.load(folder)
  (folder / "model.safetensors").unlink()
  with refused("pytorch_model.bin"):
    pretrained.load(folder)
  index = {"weight_map": {"model.norm.weight": "model-1-of-2.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with refused("model-1-of-2.safetensors cannot be read"):
    pretrained.load(folder)
  (folder / "config.json").write_text("{")
  with refused("config.json cannot be read"):
    pretrained.load(folder)
  (folder / "config.json").write_text("[]")
  with refused("does not hold a JSON object"):
    pretrained.load(folder)
