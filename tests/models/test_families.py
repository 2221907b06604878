"""Every family against transformers, switch by switch, both ways."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax.models import errors, networks
from reft_jax.models.hf import families, pretrained
from reft_jax.models.hf.families import kinds, rope_fields

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


LENGTHS = np.array([12, 5, 1, 7], np.int32)
SLOTS = 14
VOCABULARY = 32

LLAMA = {
  "vocab_size": VOCABULARY,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 6,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "initializer_range": 0.3,
}
GPT2 = {
  "vocab_size": VOCABULARY,
  "n_embd": 24,
  "n_layer": 2,
  "n_head": 4,
  "n_positions": 40,
  "initializer_range": 0.3,
}
GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
# A family's smallest model that has all of its parts.
TINY = {
  "Llama": LLAMA,
  "OPT": {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 20,
    "max_position_embeddings": 40,
    "word_embed_proj_dim": 16,
    "init_std": 0.3,
  },
  "GPT2": GPT2,
  "CodeGen": {**GPT2, "rotary_dim": 4},
  "Qwen2": {k: v for k, v in LLAMA.items() if k != "head_dim"},
  "Qwen3": LLAMA,
  "Mistral": {**LLAMA, "sliding_window": None},
  "Gemma": LLAMA,
  "Gemma2": {**LLAMA, "query_pre_attn_scalar": 6, "sliding_window": 4},
  "Gemma3Text": {
    **LLAMA,
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 6,
    "sliding_window": 4,
    "layer_types": GEMMA3_LAYERS,
  },
  "Phi3": {
    **{k: v for k, v in LLAMA.items() if k != "head_dim"},
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
  },
  "Phi": {
    **{k: v for k, v in LLAMA.items() if k != "head_dim"},
    "hidden_size": 32,
  },
  "GPTNeoX": {
    **{
      k: v
      for k, v in LLAMA.items()
      if k not in ("head_dim", "num_key_value_heads")
    },
    "hidden_size": 32,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": 50.0,
      "partial_rotary_factor": 0.5,
    },
  },
  "Olmo2": {
    **{k: v for k, v in LLAMA.items() if k != "head_dim"},
    "pad_token_id": 0,
  },
  "SmolLM3": {
    **{k: v for k, v in LLAMA.items() if k != "head_dim"},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "no_rope_layers": [1, 0],
  },
}
MODELS = {
  "GPT2": "GPT2LMHeadModel",
  "Gemma3Text": "Gemma3ForCausalLM",
}


# Ways to read the same weights as if a switch were not there.


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
    flat = dict(pretrained.table.walk(policy))
    tree = {}
    for path, leaf in {**flat, **change(flat)}.items():
      pretrained.table.put(tree, path, leaf)
    return dataclasses.replace(config, **switches), tree

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


_ONE_AFTER_THE_OTHER = moved(
  lambda flat: {
    path.replace("attention_norm", "mlp_norm"): leaf
    for path, leaf in flat.items()
    if "attention_norm" in path
  },
  parallel="none",
)
_WITH_A_LAST_NORM = moved(
  lambda flat: {
    "trunk/norm_D": np.ones(16, np.float32),
    "trunk/norm_bias_D": np.zeros(16, np.float32),
  },
  final_norm=True,
)
_NORMS_BEFORE = moved(
  lambda flat: {
    path.replace("_out_norm", "_norm"): leaf
    for path, leaf in flat.items()
    if "_out_norm" in path
  },
  norm_place="pre",
)

PLAIN_ROPE = without_rope(kind="default", attention_factor=1.0)
LONG_FACTORS = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 8.0]}
YARN = {
  "rope_type": "yarn",
  "rope_theta": 50.0,
  "factor": 4.0,
  "original_max_position_embeddings": 64,
}
SMALL_WINDOW = {"sliding_window": 3, "use_sliding_window": True}


def rope(**fields):
  return {"rope_parameters": {"rope_theta": 10000.0, **fields}}


# name: (family, fields of its config, how to read it without them)
VARIANTS = {
  "llama grouped heads": ("Llama", {}, _flipped("k_DKH")),
  "llama tied head": (
    "Llama",
    {"tie_word_embeddings": True},
    _with_another_head,
  ),
  "llama untied head": ("Llama", {}, without(tied_head=True)),
  "llama attention bias": (
    "Llama",
    {"attention_bias": True},
    without(qkv_bias=False, o_bias=False),
  ),
  "llama output bias": (
    "Llama",
    {"attention_bias": True},
    without(o_bias=False),
  ),
  "llama mlp bias": ("Llama", {"mlp_bias": True}, without(mlp_bias=False)),
  "llama exact gelu": (
    "Llama",
    {"hidden_act": "gelu"},
    without(activation="silu"),
  ),
  "llama norm eps": (
    "Llama",
    {"rms_norm_eps": 0.1},
    without(norm_eps=1e-5),
  ),
  "llama rope theta": (
    "Llama",
    rope(rope_type="default", rope_theta=50.0),
    without_rope(theta=10000.0),
  ),
  "llama rope linear": (
    "Llama",
    rope(rope_type="linear", factor=4.0),
    PLAIN_ROPE,
  ),
  "llama rope dynamic": (
    "Llama",
    {**rope(rope_type="dynamic", factor=4.0), "max_position_embeddings": 8},
    PLAIN_ROPE,
  ),
  "llama rope llama3": (
    "Llama",
    rope(
      rope_type="llama3",
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=64,
    ),
    PLAIN_ROPE,
  ),
  "llama rope yarn": ("Llama", {"rope_parameters": YARN}, PLAIN_ROPE),
  "llama rope yarn betas": (
    "Llama",
    rope(**YARN, beta_fast=8.0, beta_slow=2.0, truncate=False),
    without_rope(beta_fast=32.0, beta_slow=1.0, truncate=True),
  ),
  "llama rope yarn attention factor": (
    "Llama",
    rope(**YARN, attention_factor=1.7),
    without_rope(attention_factor=1.0),
  ),
  "llama rope yarn mscale": (
    "Llama",
    rope(**YARN, mscale=2.0, mscale_all_dim=0.5),
    without_rope(attention_factor=1.0),
  ),
  "llama rope longrope": (
    "Llama",
    rope(
      rope_type="longrope",
      original_max_position_embeddings=8,
      **LONG_FACTORS,
    ),
    PLAIN_ROPE,
  ),
  "opt positions": ("OPT", {}, _flipped("positions_MD")),
  "opt biases": (
    "OPT",
    {},
    without(qkv_bias=False, o_bias=False, mlp_bias=False),
  ),
  "opt relu": ("OPT", {}, without(activation="gelu")),
  "opt of galactica": (
    "OPT",
    {
      "activation_function": "gelu",
      "enable_bias": False,
      "layer_norm_elementwise_affine": False,
    },
    without(activation="relu"),
  ),
  "opt norm on sums": (
    "OPT",
    {"do_layer_norm_before": False},
    without(norm_place="pre"),
  ),
  "opt projected": ("OPT", {"word_embed_proj_dim": 12}, _flipped("into_ED")),
  "opt projected back": (
    "OPT",
    {"word_embed_proj_dim": 12, "do_layer_norm_before": False},
    _flipped("out_of_DE"),
  ),
  "opt untied head": (
    "OPT",
    {"tie_word_embeddings": False},
    without(tied_head=True),
  ),
  "opt no last norm": (
    "OPT",
    {"_remove_final_layer_norm": True},
    _WITH_A_LAST_NORM,
  ),
  "gpt2 positions": ("GPT2", {}, _flipped("positions_MD")),
  "gpt2 layer norm": ("GPT2", {}, without(norm="rms")),
  "gpt2 inner size": ("GPT2", {"n_inner": 20}, without(activation="relu")),
  "gpt2 fused parts": ("GPT2", {}, _exchanged("k_DKH", "v_DKH")),
  "gpt2 of codeparrot": (
    "GPT2",
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    without(scale_by_layer=False),
  ),
  "gpt2 unscaled": (
    "GPT2",
    {"scale_attn_weights": False},
    without(score_scale=None),
  ),
  "codegen side by side": ("CodeGen", {}, _ONE_AFTER_THE_OTHER),
  "codegen partial rope": ("CodeGen", {}, without_rope(size=None)),
  "codegen interleaved rope": (
    "CodeGen",
    {"rotary_dim": 6},
    without_rope(interleaved=False),
  ),
  "codegen blocks of q, v, k": ("CodeGen", {}, _exchanged("k_DKH", "v_DKH")),
  "codegen head bias": ("CodeGen", {}, without(head_bias=False)),
  "qwen2 bias": ("Qwen2", {}, without(qkv_bias=False)),
  "qwen2 window": (
    "Qwen2",
    {**SMALL_WINDOW, "max_window_layers": 1},
    without(windows=()),
  ),
  "qwen3 head norms": ("Qwen3", {}, without(qk_norm="none")),
  "qwen3 window": (
    "Qwen3",
    {**SMALL_WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
    without(windows=(3, 3)),
  ),
  "qwen3 tied head": (
    "Qwen3",
    {"tie_word_embeddings": True},
    _with_another_head,
  ),
  "mistral window": ("Mistral", {"sliding_window": 3}, without(windows=())),
  "mistral width of window": (
    "Mistral",
    {"sliding_window": 3},
    without(windows=(4, 4)),
  ),
  "gemma norm offset": ("Gemma", {}, without(norm_offset=0.0)),
  "gemma embedding scale": ("Gemma", {}, without(embed_scale=1.0)),
  "gemma tanh gelu": ("Gemma", {}, without(activation="silu")),
  "gemma2 score cap": (
    "Gemma2",
    {"attn_logit_softcapping": 1.0},
    without(score_cap=None),
  ),
  "gemma2 logit cap": (
    "Gemma2",
    {"final_logit_softcapping": 2.0},
    without(logit_cap=None),
  ),
  "gemma2 no caps": (
    "Gemma2",
    {"final_logit_softcapping": None, "attn_logit_softcapping": None},
    without(logit_cap=1.0),
  ),
  "gemma2 query scalar": (
    "Gemma2",
    {"query_pre_attn_scalar": 50},
    without(score_scale=None),
  ),
  "gemma2 windows": ("Gemma2", {}, without(windows=())),
  "gemma2 norms after": ("Gemma2", {}, without(norm_place="pre")),
  "gemma3 local rope": (
    "Gemma3Text",
    {
      "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
      }
    },
    without(local_rope=None),
  ),
  "gemma3 stretched global rope": (
    "Gemma3Text",
    {
      "rope_parameters": {
        "full_attention": {
          "rope_type": "linear",
          "factor": 8.0,
          "rope_theta": 50.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
      }
    },
    PLAIN_ROPE,
  ),
  "gemma3 head norms": ("Gemma3Text", {}, without(qk_norm="none")),
  "gemma3 windows": ("Gemma3Text", {}, without(windows=())),
  "phi3 fused parts": ("Phi3", {}, _exchanged("gate_DF", "up_DF")),
  "phi3 fused heads": ("Phi3", {}, _exchanged("k_DKH", "v_DKH")),
  "phi3 window": ("Phi3", {"sliding_window": 3}, without(windows=())),
  "phi3 partial longrope": (
    "Phi3",
    {
      "hidden_size": 32,
      "original_max_position_embeddings": 8,
      "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        **LONG_FACTORS,
      },
    },
    PLAIN_ROPE,
  ),
  "phi side by side": ("Phi", {}, _ONE_AFTER_THE_OTHER),
  "phi partial rope": (
    "Phi",
    rope(rope_type="default", partial_rotary_factor=0.5),
    without_rope(size=None),
  ),
  "phi head norms": ("Phi", {"qk_layernorm": True}, without(qk_norm="none")),
  "phi head bias": ("Phi", {}, without(head_bias=False)),
  "neox side by side": ("GPTNeoX", {}, without(parallel="none")),
  "neox one after the other": (
    "GPTNeoX",
    {"use_parallel_residual": False},
    without(parallel="own_norms"),
  ),
  "neox partial rope": ("GPTNeoX", {}, without_rope(size=None)),
  "neox head by head": ("GPTNeoX", {}, _exchanged("k_DKH", "v_DKH")),
  "neox no attention bias": (
    "GPTNeoX",
    {"attention_bias": False},
    without(mlp_bias=False),
  ),
  "olmo2 norms after": ("Olmo2", {}, _NORMS_BEFORE),
  "olmo2 norms of all heads": ("Olmo2", {}, without(qk_norm="none")),
  "smollm3 layers without rope": ("SmolLM3", {}, without(rope_layers=())),
  "smollm3 window": (
    "SmolLM3",
    SMALL_WINDOW,
    without(windows=()),
  ),
}
# Their frequencies follow from the longest row of a batch in transformers, and
# from each row here.
BY_LENGTH = (
  "llama rope dynamic",
  "llama rope longrope",
  "phi3 partial longrope",
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


def tokens(lengths_B=LENGTHS, slots=SLOTS):
  random = np.random.default_rng(0)
  shape = (len(lengths_B), slots)
  return random.integers(3, VOCABULARY, shape).astype(np.int32)


def read(config, policy, tokens_BS, lengths_B):
  """Our logits and hidden states."""
  net = networks.Networks(config)

  @jax.jit
  def run(policy, tokens_BS, lengths_B):
    hidden_BSD = net.hidden(policy["trunk"], tokens_BS, lengths_B)
    return net.logits(policy, hidden_BSD), hidden_BSD

  return map(np.asarray, run(policy, tokens_BS, lengths_B))


def theirs(model, row, **inputs):
  """transformers' logits and last hidden states of one batch."""
  with torch.no_grad():
    out = model(torch.tensor(row).long(), output_hidden_states=True, **inputs)
  return out.logits.numpy(), out.hidden_states[-1].numpy()


def assert_rows_equal(got_BSx, want, lengths_B, tolerance=2e-4):
  for got, one, length in zip(got_BSx, want, lengths_B, strict=True):
    np.testing.assert_allclose(got[:length], one, atol=tolerance)


def padded(model, tokens_BS, lengths_B, side):
  """What transformers makes of a padded batch, the padding cut off."""
  shape = (len(lengths_B), max(lengths_B))
  rows, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
  spans = []
  for row, length in enumerate(lengths_B):
    start = 0 if side == "right" else shape[1] - length
    spans.append(slice(start, start + length))
    rows[row, spans[-1]] = tokens_BS[row, :length]
    mask[row, spans[-1]] = 1
  positions = np.clip(np.cumsum(mask, 1) - 1, 0, None)
  logits_BSV, _ = theirs(
    model,
    rows,
    attention_mask=torch.tensor(mask),
    position_ids=torch.tensor(positions),
  )
  return [logits_BSV[row, span] for row, span in enumerate(spans)]


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_equals_transformers_both_ways(variant, tmp_path):
  family, fields, without_it = VARIANTS[variant]
  model = make(family, fields)
  model.save_pretrained(tmp_path / "theirs")
  config, policy = pretrained.load(tmp_path / "theirs")
  tokens_BS = tokens()

  logits_BSV, hidden_BSD = read(config, policy, tokens_BS, LENGTHS)
  rows = zip(tokens_BS, LENGTHS, strict=True)
  want = [theirs(model, row[None, :length]) for row, length in rows]
  assert_rows_equal(logits_BSV, [logits[0] for logits, _ in want], LENGTHS)
  assert_rows_equal(hidden_BSD, [hidden[0] for _, hidden in want], LENGTHS)
  if variant not in BY_LENGTH:
    for side in ("left", "right"):
      assert_rows_equal(
        logits_BSV, padded(model, tokens_BS, LENGTHS, side), LENGTHS
      )

  changed_BSV, _ = read(*without_it(config, policy), tokens_BS, LENGTHS)
  assert np.abs(changed_BSV - logits_BSV)[0, :12].max() > 1e-2

  # Within what a cache can hold of ropes that change with the length.
  count = 5 if variant in BY_LENGTH else 10
  prompts_BP, prompt_lengths_B = tokens_BS[:2, :5], np.array([3, 2], np.int32)
  got_BT = greedy(config, policy, prompts_BP, prompt_lengths_B, count)
  for prompt, length, got in zip(
    prompts_BP, prompt_lengths_B, got_BT, strict=True
  ):
    assert got.tolist() == generated(model, prompt[:length], count)

  pretrained.save(tmp_path / "ours", config, policy)
  again, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours",
    output_loading_info=True,
    attn_implementation="eager",
  )
  assert not any(report.values())
  assert type(again) is type(model)
  logits_1SV, _ = theirs(again, tokens_BS[:1, :12])
  # Not bit by bit: codeparrot's reorder_and_upcast_attn is not written.
  np.testing.assert_allclose(logits_1SV, want[0][0], atol=1e-5)
  assert pretrained.read_config(tmp_path / "ours") == config


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


# Config files.


def stored_config(tmp_path, family, **fields):
  """The config.json of a model of transformers, as a dictionary."""
  make_config = getattr(transformers, f"{family}Config")
  make_config(**{**TINY[family], **fields}).save_pretrained(tmp_path)
  return json.loads((tmp_path / "config.json").read_text())


def read_fields(tmp_path, fields):
  (tmp_path / "config.json").write_text(json.dumps(fields))
  return pretrained.read_config(tmp_path)


@pytest.mark.parametrize(
  ("family", "fields", "old"),
  [
    ("Llama", rope(rope_type="default"), {"rope_theta": 10000.0}),
    (
      "Llama",
      rope(rope_type="linear", factor=4.0),
      {
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
      },
    ),
    (
      "Gemma3Text",
      {
        "rope_parameters": {
          "full_attention": {
            "rope_type": "linear",
            "factor": 8.0,
            "rope_theta": 1e6,
          },
          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "layer_types": GEMMA3_LAYERS,
      },
      {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": None,
        "sliding_window_pattern": 2,
      },
    ),
    ("Gemma2", {}, {"layer_types": None, "rope_theta": 10000.0}),
    (
      "GPTNeoX",
      rope(rope_type="default", partial_rotary_factor=0.5),
      {"rotary_pct": 0.5, "rotary_emb_base": 10000},
    ),
    (
      "Phi",
      rope(rope_type="default", partial_rotary_factor=0.25),
      {"partial_rotary_factor": 0.25, "rope_theta": 10000.0},
    ),
    (
      "Phi3",
      {
        "original_max_position_embeddings": 8,
        "rope_parameters": {
          "rope_type": "longrope",
          "rope_theta": 10000.0,
          "partial_rotary_factor": 1.0,
          "short_factor": [1.0, 2.0],
          "long_factor": [3.0, 4.0],
        },
      },
      {
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 8,
        "rope_scaling": {
          "type": "su",
          "short_factor": [1.0, 2.0],
          "long_factor": [3.0, 4.0],
        },
      },
    ),
    (
      "Qwen2",
      {**SMALL_WINDOW, "max_window_layers": 1},
      {"layer_types": None, "rope_theta": 10000.0},
    ),
    (
      "SmolLM3",
      {
        "rope_parameters": {"rope_type": "default", "rope_theta": 2e6},
        "no_rope_layers": [1, 0],
      },
      {
        "rope_theta": 2e6,
        "no_rope_layers": None,
        "no_rope_layer_interval": 2,
        "layer_types": None,
      },
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_older_styles_of_config_files_mean_the_same(
  family, fields, old, tmp_path
):
  new = stored_config(tmp_path, family, **fields)
  want = pretrained.read_config(tmp_path)
  older = {k: v for k, v in new.items() if k != "rope_parameters"} | old
  older["torch_dtype"] = older.pop("dtype", "float32")
  assert read_fields(tmp_path, older) == want


def test_the_language_model_within_gemma_3_is_read(tmp_path):
  model = make("Gemma3Text", {})
  model.save_pretrained(tmp_path)
  fields = json.loads((tmp_path / "config.json").read_text())
  want_config, want = pretrained.load(tmp_path)
  tensors = pretrained.tensor_files.find(tmp_path)
  for old, new in (
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
  ):
    folder = tmp_path / new
    folder.mkdir()
    import safetensors.numpy

    arrays = {
      new + name.removeprefix(old): stored.read()
      for name, stored in tensors.items()
    }
    arrays["vision_tower.patch.weight"] = np.zeros((2, 2), np.float32)
    arrays["multi_modal_projector.norm"] = np.zeros(2, np.float32)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(
      json.dumps({"model_type": "gemma3", "text_config": fields})
    )
    config, policy = pretrained.load(folder)
    assert config == want_config
    jax.tree.map(np.testing.assert_array_equal, policy, want)


FAMILY_OF = {
  getattr(transformers, f"{family}Config").model_type: family for family in TINY
}


@pytest.mark.parametrize("model_type", FAMILY_OF)
def test_every_setting_of_transformers_is_known(model_type):
  """What a family neither reads nor demands changes nothing here."""
  family = families.BY_TYPE[model_type]
  config = getattr(transformers, f"{FAMILY_OF[model_type]}Config")
  names = {field.name for field in dataclasses.fields(config) if field.init} - {
    field.name for field in dataclasses.fields(transformers.PreTrainedConfig)
  }
  known = {*family.KINDS, *family.FIXED, *rope_fields.KINDS, *kinds.HARMLESS}
  assert names - known == set()


@pytest.mark.parametrize(
  ("family", "field", "value"),
  [
    ("GPT2", "add_cross_attention", True),
    ("Gemma", "use_bidirectional_attention", True),
    ("Gemma2", "use_bidirectional_attention", True),
    ("Gemma3Text", "use_bidirectional_attention", True),
    ("Olmo2", "clip_qkv", 8.0),
    ("Qwen2", "use_mrope", True),
  ],
)
def test_a_setting_that_is_not_implemented_is_refused_by_name(
  family, field, value, tmp_path
):
  fields = stored_config(tmp_path, family) | {field: value}
  with pytest.raises(errors.UnsupportedModelError, match=field):
    read_fields(tmp_path, fields)


def test_a_kind_of_layer_that_is_not_implemented_is_refused(tmp_path):
  fields = stored_config(tmp_path, "Qwen3")
  fields["layer_types"] = ["full_attention", "chunked_attention"]
  with pytest.raises(errors.UnsupportedModelError, match="chunked_attention"):
    read_fields(tmp_path, fields)


def test_a_setting_that_nothing_knows_is_told(tmp_path, caplog):
  fields = stored_config(tmp_path, "Llama")
  read_fields(tmp_path, fields)
  assert not caplog.records
  read_fields(tmp_path, fields | {"attention_sinks": 4, "unused": None})
  assert "attention_sinks" in caplog.text
  assert "unused" not in caplog.text
