"""Every switch of every family against transformers, on import and export."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from reft_jax.models import errors, networks
from reft_jax.models.hf import families, tensor_files
from reft_jax.models.hf import read as reader
from reft_jax.models.hf import write as writer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


LENGTHS = np.array([12, 5, 1, 7], np.int32)
VOCABULARY = 32
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (4, 14), np.int32)

LLAMA_SIZES = {
  "vocab_size": VOCABULARY,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "initializer_range": 0.3,
}
LLAMA = {**LLAMA_SIZES, "head_dim": 6}
GPT2 = {
  "vocab_size": VOCABULARY,
  "n_embd": 24,
  "n_layer": 2,
  "n_head": 4,
  "n_positions": 40,
  "initializer_range": 0.3,
}
OPT = {
  "vocab_size": VOCABULARY,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "ffn_dim": 20,
  "max_position_embeddings": 40,
  "word_embed_proj_dim": 16,
  "init_std": 0.3,
}
GEMMA2 = {**LLAMA, "query_pre_attn_scalar": 6, "sliding_window": 4}
GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def rope(kind="default", **fields):
  fields = {"rope_type": kind, "rope_theta": 10000.0, **fields}
  return {"rope_parameters": fields}


def two_ropes(full, sliding):
  return {
    "rope_parameters": {
      "full_attention": full["rope_parameters"],
      "sliding_attention": sliding["rope_parameters"],
    }
  }


# The smallest model of a family that has all of its parts.
TINY = {
  "Llama": LLAMA,
  "OPT": OPT,
  "GPT2": GPT2,
  "CodeGen": {**GPT2, "rotary_dim": 4},
  "Qwen2": LLAMA_SIZES,
  "Qwen3": LLAMA,
  "Mistral": {**LLAMA, "sliding_window": None},
  "Gemma": LLAMA,
  "Gemma2": GEMMA2,
  "Gemma3Text": {
    **GEMMA2,
    "num_hidden_layers": 3,
    "layer_types": GEMMA3_LAYERS,
  },
  "Phi3": {**LLAMA_SIZES, **SPECIAL},
  "Phi": {**LLAMA_SIZES, "hidden_size": 32},
  "GPTNeoX": {
    **{k: v for k, v in LLAMA_SIZES.items() if k != "num_key_value_heads"},
    "hidden_size": 32,
    **rope(rope_theta=50.0, partial_rotary_factor=0.5),
  },
  "Olmo2": {**LLAMA_SIZES, "pad_token_id": 0},
  "SmolLM3": {**LLAMA_SIZES, **SPECIAL, "no_rope_layers": [1, 0]},
}
MODELS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


# Functions that change a model as if it lacked a switch of its family.


def without(**switches):
  return lambda config, policy: (
    dataclasses.replace(config, **switches),
    policy,
  )


def without_rope(**fields):
  def change(config, policy):
    rope = dataclasses.replace(config.rope, **fields)
    return dataclasses.replace(config, rope=rope), policy

  return change


def moved(change, **switches):
  """With parameters changed or added: a function of flat paths does it."""

  def apply(config, policy):
    flat = traverse_util.flatten_dict(policy, sep="/")
    changed = traverse_util.unflatten_dict(flat | change(flat), sep="/")
    return dataclasses.replace(config, **switches), changed

  return apply


def _flipped(*endings):
  """Parameters with their axis before the last turned round."""
  return moved(
    lambda flat: {
      path: np.flip(leaf, -1 if leaf.ndim == 2 else -2)
      for path, leaf in flat.items()
      if path.endswith(endings)
    }
  )


def _exchanged(one, other):
  def change(flat):
    swapped = {}
    for path, leaf in flat.items():
      for a, b in ((one, other), (other, one)):
        if path.endswith(a):
          swapped[path.removesuffix(a) + b] = leaf
    return swapped

  return moved(change)


def _with_another_head(config, policy):
  lm_DV = np.flip(policy["trunk"]["embed_VD"].T, 1)
  config = dataclasses.replace(config, tied_head=False)
  return config, {**policy, "lm_DV": lm_DV}


def _renamed(before, after, **switches):
  return moved(
    lambda flat: {
      path.replace(before, after): leaf
      for path, leaf in flat.items()
      if before in path
    },
    **switches,
  )


_ONE_AFTER_THE_OTHER = _renamed("attention_norm", "mlp_norm", parallel="none")
_NORMS_BEFORE = _renamed("_out_norm", "_norm", norm_place="pre")
_WITH_A_LAST_NORM = moved(
  lambda flat: {
    "trunk/norm_D": np.ones(16, np.float32),
    "trunk/norm_bias_D": np.zeros(16, np.float32),
  },
  final_norm=True,
)

PLAIN_ROPE = without_rope(kind="default", attention_factor=1.0)
UNSCALED = without_rope(attention_factor=1.0)
NORMS_FIRST = without(norm_place="pre")
SHORT = {"original_max_position_embeddings": 8}
DYNAMIC = {**rope("dynamic", factor=4.0), "max_position_embeddings": 8}
LONG_FACTORS = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 8.0]}
LONGROPE = functools.partial(rope, "longrope")
YARN = functools.partial(
  rope, "yarn", rope_theta=50.0, factor=4.0, original_max_position_embeddings=64
)
LOCAL_ROPE = two_ropes(rope(), rope(rope_theta=5.0))
GLOBAL_ROPE = two_ropes(rope("linear", factor=8.0, rope_theta=50.0), rope())
SMALL_WINDOW = {"sliding_window": 3, "use_sliding_window": True}
CODEPARROT = {
  "scale_attn_by_inverse_layer_idx": True,
  "reorder_and_upcast_attn": True,
}
GALACTICA = {
  "activation_function": "gelu",
  "enable_bias": False,
  "layer_norm_elementwise_affine": False,
}
LLAMA3 = rope(
  "llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=64,
)

# By family, then by name: fields of its config.json, and how to change the
# model as if they were not there.
FAMILIES = {
  "Llama": {
    "grouped heads": ({}, _flipped("k_DKH")),
    "tied head": ({"tie_word_embeddings": True}, _with_another_head),
    "untied head": ({}, without(tied_head=True)),
    "attention bias": ({"attention_bias": True}, without(qkv_bias=False)),
    "output bias": ({"attention_bias": True}, without(o_bias=False)),
    "mlp bias": ({"mlp_bias": True}, without(mlp_bias=False)),
    "exact gelu": ({"hidden_act": "gelu"}, without(activation="silu")),
    "norm eps": ({"rms_norm_eps": 0.1}, without(norm_eps=1e-5)),
    "rope theta": (rope(rope_theta=50.0), without_rope(theta=10000.0)),
    "rope linear": (rope("linear", factor=4.0), PLAIN_ROPE),
    "rope dynamic": (DYNAMIC, PLAIN_ROPE),
    "rope llama3": (LLAMA3, PLAIN_ROPE),
    "rope yarn": (YARN(), PLAIN_ROPE),
    "rope yarn betas": (
      YARN(beta_fast=8.0, beta_slow=2.0, truncate=False),
      without_rope(beta_fast=32.0, beta_slow=1.0, truncate=True),
    ),
    "rope yarn attention factor": (YARN(attention_factor=1.7), UNSCALED),
    "rope yarn mscale": (YARN(mscale=2.0, mscale_all_dim=0.5), UNSCALED),
    "rope longrope": (LONGROPE(**SHORT, **LONG_FACTORS), PLAIN_ROPE),
  },
  "OPT": {
    "positions": ({}, _flipped("positions_MD")),
    "biases": ({}, without(qkv_bias=False, o_bias=False, mlp_bias=False)),
    "relu": ({}, without(activation="gelu")),
    "galactica": (GALACTICA, without(activation="relu")),
    "norm on sums": ({"do_layer_norm_before": False}, NORMS_FIRST),
    "projected": ({"word_embed_proj_dim": 12}, _flipped("into_ED")),
    "projected back": (
      {"word_embed_proj_dim": 12, "do_layer_norm_before": False},
      _flipped("out_of_DE"),
    ),
    "untied head": ({"tie_word_embeddings": False}, without(tied_head=True)),
    "no last norm": ({"_remove_final_layer_norm": True}, _WITH_A_LAST_NORM),
  },
  "GPT2": {
    "positions": ({}, _flipped("positions_MD")),
    "layer norm": ({}, without(norm="rms")),
    "inner size": ({"n_inner": 20}, without(activation="relu")),
    "fused parts": ({}, _exchanged("k_DKH", "v_DKH")),
    "codeparrot": (CODEPARROT, without(scale_by_layer=False)),
    "unscaled": ({"scale_attn_weights": False}, without(score_scale=None)),
  },
  "CodeGen": {
    "parallel": ({}, _ONE_AFTER_THE_OTHER),
    "partial rope": ({}, without_rope(size=None)),
    "interleaved rope": ({"rotary_dim": 6}, without_rope(interleaved=False)),
    "blocks of q, v, k": ({}, _exchanged("k_DKH", "v_DKH")),
    "head bias": ({}, without(head_bias=False)),
  },
  "Qwen2": {
    "bias": ({}, without(qkv_bias=False)),
    "window": ({**SMALL_WINDOW, "max_window_layers": 1}, without(windows=())),
  },
  "Qwen3": {
    "head norms": ({}, without(qk_norm="none")),
    "window": (
      {**SMALL_WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
      without(windows=(3, 3)),
    ),
    "tied head": ({"tie_word_embeddings": True}, _with_another_head),
  },
  "Mistral": {
    "window": ({"sliding_window": 3}, without(windows=())),
    "width of window": ({"sliding_window": 3}, without(windows=(4, 4))),
  },
  "Gemma": {
    "norm offset": ({}, without(norm_offset=0.0)),
    "embedding scale": ({}, without(embed_scale=1.0)),
    "tanh gelu": ({}, without(activation="silu")),
  },
  "Gemma2": {
    "score cap": ({"attn_logit_softcapping": 1.0}, without(score_cap=None)),
    "logit cap": ({"final_logit_softcapping": 2.0}, without(logit_cap=None)),
    "no caps": (
      {"final_logit_softcapping": None, "attn_logit_softcapping": None},
      without(logit_cap=1.0),
    ),
    "query scalar": ({"query_pre_attn_scalar": 50}, without(score_scale=None)),
    "windows": ({}, without(windows=())),
    "norms after": ({}, NORMS_FIRST),
  },
  "Gemma3Text": {
    "local rope": (LOCAL_ROPE, without(local_rope=None)),
    "stretched global rope": (GLOBAL_ROPE, PLAIN_ROPE),
    "head norms": ({}, without(qk_norm="none")),
    "windows": ({}, without(windows=())),
  },
  "Phi3": {
    "fused parts": ({}, _exchanged("gate_DF", "up_DF")),
    "fused heads": ({}, _exchanged("k_DKH", "v_DKH")),
    "window": ({"sliding_window": 3}, without(windows=())),
    "partial longrope": (
      {
        "hidden_size": 32,
        "original_max_position_embeddings": 8,
        **LONGROPE(partial_rotary_factor=0.75, **LONG_FACTORS),
      },
      PLAIN_ROPE,
    ),
  },
  "Phi": {
    "parallel": ({}, _ONE_AFTER_THE_OTHER),
    "partial rope": (rope(partial_rotary_factor=0.5), without_rope(size=None)),
    "head norms": ({"qk_layernorm": True}, without(qk_norm="none")),
    "head bias": ({}, without(head_bias=False)),
  },
  "GPTNeoX": {
    "parallel": ({}, without(parallel="none")),
    "serial": ({"use_parallel_residual": False}, without(parallel="own_norms")),
    "partial rope": ({}, without_rope(size=None)),
    "head by head": ({}, _exchanged("k_DKH", "v_DKH")),
    "no attention bias": ({"attention_bias": False}, without(mlp_bias=False)),
  },
  "Olmo2": {
    "norms after": ({}, _NORMS_BEFORE),
    "norms of all heads": ({}, without(qk_norm="none")),
  },
  "SmolLM3": {
    "layers without rope": ({}, without(rope_layers=())),
    "window": (SMALL_WINDOW, without(windows=())),
  },
}
VARIANTS = {
  f"{family} {name}": (family, *variant)
  for family, variants in FAMILIES.items()
  for name, variant in variants.items()
}
# Their frequencies depend on the length of a row.
BY_LENGTH = (
  "Llama rope dynamic",
  "Llama rope longrope",
  "Phi3 partial longrope",
)


def make(family, fields):
  """A random model of transformers, rough everywhere."""
  torch.manual_seed(0)
  config = getattr(transformers, f"{family}Config")(
    **{**TINY[family], **fields}, attn_implementation="eager"
  )
  name = MODELS.get(family, f"{family}ForCausalLM")
  model = getattr(transformers, name)(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model


def read(config, policy):
  """Our logits and hidden states of the tokens."""
  net = networks.Networks(config)

  @jax.jit
  def run(policy):
    hidden_BSD = net.hidden(policy["trunk"], TOKENS, LENGTHS)
    return net.logits(policy, hidden_BSD), hidden_BSD

  return map(np.asarray, run(policy))


def theirs(model, row):
  """transformers' logits and last hidden states of one row."""
  with torch.no_grad():
    out = model(torch.tensor(row[None]).long(), output_hidden_states=True)
  return out.logits[0].numpy(), out.hidden_states[-1][0].numpy()


def greedy(config, policy, tokens_BS, lengths_B, count):
  """Our greedy continuations, through the cache."""
  net = networks.Networks(config)

  @jax.jit
  def run(policy, tokens_BS, lengths_B):
    published = net.publish(policy)

    def one(carry, step):
      hidden_BD, cache = carry
      token_B = jnp.argmax(net.logits(published, hidden_BD), axis=-1)
      return net.decode(published, cache, token_B, step), token_B

    start = net.prefill(published, tokens_BS, lengths_B, count)
    _, tokens_TB = jax.lax.scan(one, start, jnp.arange(count))
    return tokens_TB.T

  return np.asarray(run(policy, tokens_BS, lengths_B))


def in_tiers():
  """The variants: the first one is quick enough for the fast tier."""
  first, *others = VARIANTS
  slow = pytest.mark.slow
  return [first, *(pytest.param(name, marks=slow) for name in others)]


@pytest.mark.parametrize("variant", in_tiers())
def test_a_variant_equals_transformers_both_ways(variant, tmp_path):
  family, fields, without_it = VARIANTS[variant]
  model = make(family, fields)
  model.save_pretrained(tmp_path / "theirs")
  config, policy = reader.load(tmp_path / "theirs")

  logits_BSV, hidden_BSD = read(config, policy)
  for got_SV, got_SD, row, length in zip(
    logits_BSV, hidden_BSD, TOKENS, LENGTHS, strict=True
  ):
    want_SV, want_SD = theirs(model, row[:length])
    np.testing.assert_allclose(got_SV[:length], want_SV, atol=2e-4)
    np.testing.assert_allclose(got_SD[:length], want_SD, atol=2e-4)

  changed_BSV, _ = read(*without_it(config, policy))
  assert np.abs(changed_BSV - logits_BSV)[0, :12].max() > 1e-2

  # Within what a cache can hold of ropes that change with the length.
  count = 5 if variant in BY_LENGTH else 10
  prompts_BP, prompt_lengths_B = TOKENS[:2, :5], np.array([3, 2], np.int32)
  assert_same_texts(model, config, policy, prompts_BP, prompt_lengths_B, count)

  writer.save(tmp_path / "ours", config, policy)
  again, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values())
  assert type(again) is type(model)
  # Not bit by bit: codeparrot's reorder_and_upcast_attn is not written.
  for x, y in zip(
    theirs(again, TOKENS[0]), theirs(model, TOKENS[0]), strict=True
  ):
    np.testing.assert_allclose(x, y, atol=1e-5)
  assert reader.read_config(tmp_path / "ours") == config


def generated(model, prompt, count):
  with torch.no_grad():
    out = model.generate(
      torch.tensor(prompt[None]).long(),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
      max_new_tokens=count,
      min_new_tokens=count,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )
  return out[0, len(prompt) :].tolist()


def assert_same_texts(model, config, policy, prompts_BP, lengths_B, count):
  got_BT = greedy(config, policy, prompts_BP, lengths_B, count)
  for prompt, length, got in zip(prompts_BP, lengths_B, got_BT, strict=True):
    assert got.tolist() == generated(model, prompt[:length], count)


@pytest.mark.slow
def test_greedy_text_of_a_real_model_equals_transformers(shared):
  folder = shared / "models/stories260K"
  prompts = [[1, 403, 407, 261, 378], [1, 410], [1, 365, 282, 30, 31, 32, 33]]
  lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
  tokens_BP = np.zeros((len(prompts), lengths_B.max()), np.int32)
  for row, prompt in zip(tokens_BP, prompts, strict=True):
    row[: len(prompt)] = prompt
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert_same_texts(model, *reader.load(folder), tokens_BP, lengths_B, 60)


# Config files.


def stored_config(tmp_path, family, **fields):
  """The config.json of a model of transformers, as a dictionary."""
  make_config = getattr(transformers, f"{family}Config")
  make_config(**{**TINY[family], **fields}).save_pretrained(tmp_path)
  return json.loads((tmp_path / "config.json").read_text())


def read_fields(tmp_path, fields):
  (tmp_path / "config.json").write_text(json.dumps(fields))
  return reader.read_config(tmp_path)


SHORT_FACTORS = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
# family, its fields, and those of them that older versions wrote instead
OLDER_STYLES = [
  ("Llama", rope(), {"rope_theta": 1e4}),
  (
    "Llama",
    rope("linear", factor=4.0),
    {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
  ),
  (
    "Gemma3Text",
    two_ropes(rope("linear", factor=8.0, rope_theta=1e6), rope()),
    {
      "rope_theta": 1e6,
      "rope_local_base_freq": 1e4,
      "rope_scaling": {"rope_type": "linear", "factor": 8.0},
      "layer_types": None,
      "sliding_window_pattern": 2,
    },
  ),
  ("Gemma2", {}, {"layer_types": None, "rope_theta": 1e4}),
  (
    "GPTNeoX",
    rope(partial_rotary_factor=0.5),
    {"rotary_pct": 0.5, "rotary_emb_base": 10000},
  ),
  (
    "Phi",
    rope(partial_rotary_factor=0.25),
    {"partial_rotary_factor": 0.25, "rope_theta": 1e4},
  ),
  (
    "Phi3",
    {
      "original_max_position_embeddings": 8,
      **LONGROPE(partial_rotary_factor=1.0, **SHORT_FACTORS),
    },
    {
      "rope_theta": 1e4,
      "original_max_position_embeddings": 8,
      "rope_scaling": {"type": "su", **SHORT_FACTORS},
    },
  ),
  (
    "Qwen2",
    {**SMALL_WINDOW, "max_window_layers": 1},
    {"layer_types": None, "rope_theta": 1e4},
  ),
  (
    "SmolLM3",
    {**rope(rope_theta=2e6), "no_rope_layers": [1, 0]},
    {
      "rope_theta": 2e6,
      "no_rope_layers": None,
      "no_rope_layer_interval": 2,
      "layer_types": None,
    },
  ),
]


@pytest.mark.parametrize(("family", "fields", "old"), OLDER_STYLES)
def test_older_styles_of_config_files_mean_the_same(
  family, fields, old, tmp_path
):
  new = stored_config(tmp_path, family, **fields)
  want = reader.read_config(tmp_path)
  older = {k: v for k, v in new.items() if k != "rope_parameters"} | old
  older["torch_dtype"] = older.pop("dtype", "float32")
  assert read_fields(tmp_path, older) == want


@pytest.mark.parametrize(
  "wrapped", ["language_model.model.", "model.language_model."]
)
def test_the_language_model_within_gemma_3_is_read(wrapped, tmp_path):
  make("Gemma3Text", {}).save_pretrained(tmp_path)
  fields = json.loads((tmp_path / "config.json").read_text())
  want_config, want = reader.load(tmp_path)
  arrays = {
    wrapped + name.removeprefix("model."): tensor.read()
    for name, tensor in tensor_files.find(tmp_path).items()
  }
  arrays["vision_tower.patch.weight"] = np.zeros((2, 2), np.float32)
  arrays["multi_modal_projector.norm"] = np.zeros(2, np.float32)
  safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
  fields = {"model_type": "gemma3", "text_config": fields}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  config, policy = reader.load(tmp_path)
  assert config == want_config
  jax.tree.map(np.testing.assert_array_equal, policy, want)


FAMILY_OF = {
  getattr(transformers, f"{family}Config").model_type: family for family in TINY
}


@pytest.mark.parametrize("model_type", FAMILY_OF)
def test_every_setting_of_transformers_is_known(model_type):
  """What a family neither reads nor refuses does not change the logits."""
  config = getattr(transformers, f"{FAMILY_OF[model_type]}Config")
  names = {field.name for field in dataclasses.fields(config) if field.init} - {
    field.name for field in dataclasses.fields(transformers.PreTrainedConfig)
  }
  fields = {"model_type": model_type, **dict.fromkeys(names, 1)}
  assert families.unknown_fields(fields) == []


@pytest.mark.parametrize(
  ("family", "field", "value", "message"),
  [
    ("GPT2", "add_cross_attention", True, "add_cross_attention=True is not"),
    ("Gemma", "use_bidirectional_attention", True, "only False is"),
    ("Gemma2", "use_bidirectional_attention", True, "only False is"),
    ("Gemma3Text", "use_bidirectional_attention", True, "only False is"),
    ("Gemma3Text", "rope_parameters", [1], "'rope_parameters' is .* object"),
    ("Olmo2", "clip_qkv", 8.0, "clip_qkv=8.0 is not implemented; only None"),
    ("Phi3", "attention_bias", True, "attention_bias=True is not"),
    ("Qwen2", "use_mrope", True, "use_mrope=True is not"),
    ("Qwen3", "layer_types", ["chunked_attention"], "'chunked_attention'"),
  ],
)
def test_a_setting_that_is_not_implemented_is_refused_by_name(
  family, field, value, message, tmp_path
):
  fields = stored_config(tmp_path, family) | {field: value}
  with pytest.raises(errors.UnsupportedModelError, match=message) as error:
    read_fields(tmp_path, fields)
  assert field in str(error.value)


# What a null field means, if it differs from a missing one.
@pytest.mark.parametrize(
  ("family", "field", "attribute", "null", "missing"),
  [
    ("Mistral", "sliding_window", "windows", (), (4096,) * 2),
    ("Mistral", "num_key_value_heads", "kv_heads", 8, 8),
    ("SmolLM3", "num_key_value_heads", "kv_heads", 8, 4),
    ("Gemma2", "sliding_window", "windows", (), (4096, 0)),
    ("Gemma2", "attn_logit_softcapping", "score_cap", None, 50.0),
    ("Gemma2", "final_logit_softcapping", "logit_cap", None, 30.0),
    ("Gemma3Text", "sliding_window", "windows", (), (4096, 0, 4096)),
    ("Gemma3Text", "attn_logit_softcapping", "score_cap", None, None),
    ("Llama", "rms_norm_eps", "norm_eps", 1e-6, 1e-6),
    ("Llama", "num_key_value_heads", "kv_heads", 8, 8),
    ("Llama", "head_dim", "head_size", 4, 4),
    ("Llama", "mlp_bias", "mlp_bias", False, False),
    ("Llama", "hidden_act", "activation", "silu", "silu"),
  ],
)
def test_a_null_field_may_differ_from_a_missing_one(
  family, field, attribute, null, missing, tmp_path
):
  sizes = {"num_attention_heads": 8, "hidden_size": 32}
  fields = stored_config(tmp_path, family, **sizes)
  got = read_fields(tmp_path, fields | {field: None})
  assert getattr(got, attribute) == null
  del fields[field]
  got = read_fields(tmp_path, fields)
  assert getattr(got, attribute) == missing


def test_an_unknown_setting_is_warned_of(tmp_path, caplog):
  fields = stored_config(tmp_path, "Llama")
  read_fields(tmp_path, fields)
  assert not caplog.records
  for _ in range(2):
    read_fields(tmp_path, fields | {"attention_sinks": 4, "unused": None})
  assert "attention_sinks" in caplog.text
  assert "unused" not in caplog.text
  assert len(caplog.records) == 1
