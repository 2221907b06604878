"""The sampler: what it samples, what it says of it, and of what it depends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from reft_jax.config import schema
from reft_jax.data import batches
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.learning import ppo as ppo_lib
from reft_jax.models import networks
from reft_jax.models.hf import read as reader
from reft_jax.ops import sampling
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import sampler as sampler_lib


def published(seed=0):
  return jax.jit(tiny.make().publish)(tiny.policy(seed))


def test_rows_end_at_eos_or_at_the_limit():
  rollout = jax.device_get(tiny.sample(batch=64))
  ended = 0
  for row in range(64):
    length = rollout.response_lengths_B[row]
    response = rollout.response_BT[row]
    inside = np.isin(response[:length], tiny.EOS)
    if rollout.ended_B[row]:
      assert inside[-1]
      assert not inside[:-1].any()
      ended += 1
    else:
      assert length == tiny.RESPONSE_SLOTS
      assert not inside.any()
    assert (response[length:] == tiny.PAD).all()
    assert (rollout.logprobs_BT[row, length:] == 0).all()
  assert 0 < ended < 64


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_sampled_logprobs_are_those_of_the_full_forward(temperature):
  rollout = tiny.sample(temperature, batch=16)
  ppo = schema.ReftConfig(
    minibatch_size=16, micro_batch_size=16, temperature=temperature or 1.0
  )
  params = {
    "policy": tiny.policy(),
    "value": tiny.make().init_value(tiny.policy(), "shared"),
  }
  full = ppo_lib.make_assess(tiny.make(), ppo)(params, tiny.policy(), rollout)
  gap = jnp.where(rollout.mask_BT, rollout.logprobs_BT - full.logprobs_BT, 0.0)
  assert jnp.max(jnp.abs(gap)) < 1e-4


def test_greedy_takes_the_likeliest_token():
  rollout = jax.device_get(tiny.sample(0.0, batch=4))
  network, policy = tiny.make(), tiny.policy()

  @jax.jit
  def next_logits(tokens_1S, length):
    hidden_1SD = network.hidden(policy["trunk"], tokens_1S, length[None])
    return network.logits(policy, hidden_1SD[0, length - 1])

  for row in range(4):
    length = int(rollout.prompt_lengths_B[row])
    ids = list(rollout.prompt_BP[row, :length])
    for token in rollout.response_BT[row, : rollout.response_lengths_B[row]]:
      # One shape for all lengths: what lies behind a row's end is not seen.
      padded = np.zeros((1, tiny.PROMPT_SLOTS + tiny.RESPONSE_SLOTS), np.int32)
      padded[0, : len(ids)] = ids
      logits = next_logits(padded, np.int32(len(ids)))
      assert int(jnp.argmax(logits)) == token
      ids.append(token)


@pytest.mark.slow
def test_greedy_text_of_a_real_model_equals_transformers(shared):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = shared / "models/stories260K"
  config, policy = reader.load(folder)
  tokenizer = tokenizer_lib.load(folder)
  # One of the tokens to begin with, others of other lengths.
  texts = ["Once upon a time", "Tom", "", "Lily and her mom went to the park."]
  rows = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
  network = networks.Networks(config)
  sampler = sampler_lib.Sampler(
    network,
    response_tokens=60,
    eos_ids=tokenizer.eos_ids,
    pad_id=tokenizer.pad_id,
    temperature=0.0,
  )
  prompts = batches.prompts(
    rows, range(4), batch=4, slots=24, pad_id=tokenizer.pad_id
  )
  rollout = jax.device_get(
    sampler(jax.jit(network.publish)(policy), prompts, jax.random.key(0))
  )

  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  for row, prompt in enumerate(rows):
    want = model.generate(
      torch.tensor([prompt]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
      max_new_tokens=60,
      do_sample=False,
      eos_token_id=list(tokenizer.eos_ids),
      pad_token_id=tokenizer.pad_id,
    )
    length = rollout.response_lengths_B[row]
    got = rollout.response_BT[row, :length].tolist()
    assert got == want[0, len(prompt) :].tolist()
  told = tokenizer.decode(rollout.response_BT[0])
  assert told.strip().startswith(", there was a little girl named Lily.")


def test_a_row_does_not_depend_on_its_batch():
  prompts, key = tiny.prompts(8), jax.random.key(0)
  order = np.array([5, 2, 7, 0, 1, 6, 4, 3])
  straight = tiny.sampler()(published(), prompts, key)
  shuffled = tiny.sampler()(published(), tiny.take(prompts, order), key)
  np.testing.assert_array_equal(
    straight.response_BT[order], shuffled.response_BT
  )
  # The others replaced by other questions: the first row stays as it was.
  other = jax.tree.map(
    lambda a, b: np.concatenate([a[:1], b[1:]]), prompts, tiny.prompts(8, 9)
  )
  mixed = tiny.sampler()(published(), other, key)
  np.testing.assert_array_equal(straight.response_BT[0], mixed.response_BT[0])


@pytest.mark.parametrize(
  "shape",
  [
    (2, 2, 2),
    *(
      pytest.param(shape, marks=pytest.mark.slow)
      for shape in ((1, 2, 1), (1, 8, 1), (2, 4, 1))
    ),
  ],
)
def test_devices_change_no_token(shape):
  prompts, key = tiny.prompts(8), jax.random.key(0)
  expected = tiny.sampler()(published(), prompts, key).response_BT
  mesh = tiny.mesh(shape)
  with jax.set_mesh(mesh):
    policy = mesh_lib.put(mesh, tiny.policy())
    sharded = tiny.sampler()(
      jax.jit(tiny.make().publish)(policy),
      mesh_lib.put_batch(mesh, prompts),
      key,
    )
  assert len(sharded.response_BT.sharding.device_set) == np.prod(shape)
  np.testing.assert_array_equal(sharded.response_BT, expected)


def test_keys_change_with_request_step_and_seed():
  prompts = tiny.prompts(8)
  same = jax.tree.map(lambda x: np.repeat(x[:1], 8, axis=0), prompts)
  same = same.replace(requests_B=prompts.requests_B)
  rows = tiny.sampler()(published(), same, jax.random.key(0)).response_BT
  assert len({tuple(row) for row in np.asarray(rows)}) > 4
  again = tiny.sampler()(published(), same, jax.random.key(1)).response_BT
  assert (np.asarray(rows) != np.asarray(again)).any()


def test_several_samples_a_question_share_one_prefill():
  rollout = tiny.sample(samples=4, batch=8)
  prompts = tiny.prompts(8)
  assert rollout.response_BT.shape == (32, tiny.RESPONSE_SLOTS)
  np.testing.assert_array_equal(
    rollout.prompt_BP, np.repeat(prompts.tokens_BP, 4, axis=0)
  )
  one_by_one = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), prompts)
  numbers = np.repeat(prompts.requests_B * 4, 4) + np.tile(np.arange(4), 8)
  one_by_one = one_by_one.replace(requests_B=numbers.astype(np.uint32))
  expected = tiny.sampler()(published(), one_by_one, jax.random.key(0))
  np.testing.assert_array_equal(rollout.response_BT, expected.response_BT)


def test_rows_that_ended_are_told_of_before_the_last_is_done():
  calls = []

  def on_ended(rows, progress):
    now = jax.device_get(progress)
    assert now.ended_B[rows].all()
    calls.append((rows, now.response_BT, now.lengths_B))

  # Filler rows, which end before they start, are no news.
  prompts = tiny.prompts(64)
  prompts = prompts.replace(real_B=np.arange(64) < 60)
  sampled = jax.device_get(
    tiny.sampler()(published(), prompts, jax.random.key(0), on_ended)
  )
  told = np.concatenate([rows for rows, *_ in calls])
  assert len(calls) > 1
  assert len(told) == len(set(told)) > 10
  assert sampled.ended_B[told].all()
  assert told.max() < 60
  # What was told of a row while others went on is what it ends as.
  for rows, response_BT, lengths_B in calls:
    np.testing.assert_array_equal(
      lengths_B[rows], sampled.response_lengths_B[rows]
    )
    np.testing.assert_array_equal(response_BT[rows], sampled.response_BT[rows])
  alone = tiny.sampler()(published(), prompts, jax.random.key(0))
  np.testing.assert_array_equal(alone.response_BT, sampled.response_BT)


@pytest.mark.slow
def test_pad_may_equal_eos_and_a_sampled_pad_is_a_token():
  plain = tiny.sample(batch=32)
  same = tiny.sample(batch=32, pad=tiny.EOS[0])
  np.testing.assert_array_equal(
    plain.response_lengths_B, same.response_lengths_B
  )
  np.testing.assert_array_equal(
    jnp.where(plain.mask_BT, plain.response_BT, -1),
    jnp.where(same.mask_BT, same.response_BT, -1),
  )
  inside = plain.mask_BT & (plain.response_BT == tiny.PAD)
  assert inside.any(), "no pad id was sampled; the test shows nothing"


def test_any_of_several_eos_ids_ends_a_row():
  rollout = jax.device_get(tiny.sample(batch=64, eos=(3, 5, 11)))
  last = rollout.response_BT[np.arange(64), rollout.response_lengths_B - 1]
  assert set(last[rollout.ended_B]) == {3, 5, 11}


def chi_square(counts, probs):
  """How far counts are off, in standard deviations of a chi-square number."""
  expected = np.asarray(probs, np.float64) * counts.sum()
  common = expected > 5
  observed = np.append(counts[common], counts[~common].sum())
  predicted = np.append(expected[common], expected[~common].sum())
  some = predicted > 0  # Nothing may be rare.
  chi2 = ((observed - predicted)[some] ** 2 / predicted[some]).sum()
  freedom = some.sum() - 1
  return (chi2 - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
  ("temperature", "top_k"),
  [
    (1.6, 4),
    pytest.param(0.7, 0, marks=pytest.mark.slow),
    pytest.param(1.6, 0, marks=pytest.mark.slow),
  ],
)
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(
  temperature, top_k
):
  draws = 16384
  prompt = tiny.take(tiny.prompts(), [0])
  prompts = jax.tree.map(lambda x: jnp.repeat(x, draws, axis=0), prompt)
  prompts = prompts.replace(requests_B=jnp.arange(draws, dtype=jnp.uint32))
  sampler = sampler_lib.Sampler(
    tiny.make(),
    response_tokens=1,
    eos_ids=tiny.EOS,
    pad_id=tiny.PAD,
    temperature=temperature,
    top_k=top_k,
  )
  tokens_B1 = sampler(published(), prompts, jax.random.key(3)).response_BT
  counts = np.bincount(
    np.asarray(tokens_B1)[:, 0], minlength=tiny.CONFIG.vocab_size
  )

  network, policy = tiny.make(), tiny.policy()
  hidden_1PD = network.hidden(
    policy["trunk"], prompt.tokens_BP, prompt.lengths_B
  )
  logits_V = network.logits(policy, hidden_1PD[0, prompt.lengths_B[0] - 1])
  expected_V = logits_V / temperature
  if top_k:
    fewer = jnp.argsort(logits_V)[:-top_k]
    assert (counts > 0).sum() == top_k
    expected_V = expected_V.at[fewer].set(-jnp.inf)
  # Five standard deviations are chance; another temperature is far more.
  assert abs(chi_square(counts, jax.nn.softmax(expected_V))) < 5
  assert chi_square(counts, jax.nn.softmax(logits_V)) > 50


@pytest.mark.slow
def test_frequencies_match_the_softmax():
  rng = np.random.default_rng(0)
  logits_V = jnp.asarray(rng.normal(size=300) * 2, jnp.float32)
  draws = 100_000
  keys = sampling.row_keys(
    jax.random.key(7), jnp.arange(draws, dtype=jnp.uint32)
  )
  tokens = jax.jit(
    lambda u: jax.lax.map(
      lambda some: sampling.inverse_cdf(
        jnp.broadcast_to(logits_V[None], (some.shape[0], 300)), some
      ),
      u.reshape(100, -1),
    )
  )(sampling.uniforms(keys, jnp.int32(5)))
  counts = np.bincount(np.asarray(tokens).ravel(), minlength=300)
  assert abs(chi_square(counts, jax.nn.softmax(logits_V))) < 5


def test_impossible_tokens_are_never_drawn():
  logits_V = jnp.full(300, -jnp.inf).at[jnp.array([128, 257])].set(0.0)
  uniforms_B = jnp.asarray(
    [0.0, 0.25, 0.4999999, 0.5, 0.75, np.nextafter(np.float32(1), 0)],
    jnp.float32,
  )
  tokens_B = sampling.inverse_cdf(
    jnp.broadcast_to(logits_V[None], (6, 300)), uniforms_B
  )
  assert tokens_B.tolist() == [128, 128, 128, 257, 257, 257]
