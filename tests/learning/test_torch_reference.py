"""Training steps against numbers from outside: by hand, and from PyTorch.

The PyTorch side is written here from the paper's formulas, row by row and
without padding, on transformers' models with the same weights. Optimizer,
schedule and clipping are torch's own.
"""

import copy
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches as batches_lib
from reft_jax.learning import classifier, optim
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import ppo as ppo_lib
from reft_jax.learning import supervised as supervised_lib
from reft_jax.models import config as model_configs
from reft_jax.models import networks
from reft_jax.models.hf import read as reader

PAD, VOCABULARY, ROWS, UPDATES = 12, 13, 4, 5
PROMPT_SLOTS, RESPONSE_SLOTS = 4, 5
OPTIMIZER = schema.OptimizerConfig(
  learning_rate=5e-3, schedule="linear", warmup_fraction=0.25, clip_norm=1.0
)

# By hand ---------------------------------------------------------------------

# A model whose next token depends on the last one alone: 0 and 1 lead to one
# distribution, 2 and 3 to the other. Losses are counted in bits.
AFTER_01 = np.log([1 / 2, 1 / 4, 1 / 8, 1 / 8])
AFTER_23 = np.log([1 / 8, 1 / 8, 1 / 4, 1 / 2])
BIT = math.log(2)

HAND = networks.Networks(
  model_configs.ModelConfig(
    vocab_size=4,
    width=2,
    layers=1,
    heads=1,
    kv_heads=1,
    head_size=2,
    ffn=1,
    norm_eps=0.0,
  )
)


@functools.cache
def hand_policy():
  """Blocks that add nothing; hidden is (1, 1) after 0 and 1, else (1, -1)."""
  shapes = jax.eval_shape(HAND.init, jax.random.key(0))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  embed_VD = jnp.array([[1.0, 1], [1, 1], [1, -1], [1, -1]])
  trunk = zeros["trunk"] | {"embed_VD": embed_VD, "norm_D": jnp.ones(2)}
  lm_DV = jnp.asarray([AFTER_01 + AFTER_23, AFTER_01 - AFTER_23]) / 2
  return {"trunk": trunk, "lm_DV": lm_DV.astype(jnp.float32)}


def hand_losses(update, params, *batches):
  state = learner_lib.init_state(params, optim.build(OPTIMIZER, 10))
  _, metrics = update(jax.tree.map(jnp.copy, state), *batches)
  return {name: mean.value() for name, mean in metrics.items()}


@functools.cache
def hand_update(several=False):
  weights = {"correct": 0.5, "gold": 0.5} if several else None
  return supervised_lib.make_update(
    HAND, optim.build(OPTIMIZER, 10), micro_batch=1, weights=weights
  )


def test_the_supervised_loss_by_hand():
  # 1 after 0 and 2 after 1 cost 2 and 3 bits, 3 after 2 costs 1.
  batch = batches_lib.supervised(
    [((0,), (1, 2)), ((2,), (3,))], batch=2, slots=4, pad_id=0
  )
  found = hand_losses(hand_update(), {"policy": hand_policy()}, batch)
  assert found["loss"] == pytest.approx((2 + 3 + 1) / 3 * BIT, rel=1e-6)


@pytest.mark.parametrize(
  ("correct_B", "loss"),
  [
    # The samples cost 5 bits of 2 tokens, and 3 bits of 1; gold 2 bits a token.
    ([True, True], ((5 + 3) / 3 + 2) / 2),
    ([True, False], (5 / 2 + 2) / 2),
    ([False, False], 2 / 2),
  ],
)
def test_the_loss_of_online_self_training_by_hand(correct_B, loss):
  rollout = rollout_of([((0,), (1, 2), 0.0), ((3, 2), (0,), 0.0)])
  gold = batches_lib.supervised(
    [((0,), (1, 2)), ((2,), (3,))], batch=2, slots=4, pad_id=0
  )
  found = hand_losses(
    hand_update(several=True),
    {"policy": hand_policy()},
    supervised_lib.imitations(rollout, jnp.array(correct_B)),
    gold,
  )
  assert found["loss"] == pytest.approx(loss * BIT, rel=1e-6)
  assert found["loss/gold"] == pytest.approx(2 * BIT, rel=1e-6)


def test_the_loss_of_a_classifier_by_hand():
  # Right with probability 3/4 after 0 and 1, with 1/4 after 2 and 3.
  logit = math.log(3) / 2
  scorer = {
    "trunk": hand_policy()["trunk"],
    "score_DC": jnp.array([[logit, logit], [-logit, logit]], jnp.float32),
  }
  batch = types.LabelledBatch(
    tokens_BS=np.int32([[0, 1, 2, 0], [3, 0, 2, 2], [1, 1, 1, 1]]),
    lengths_B=np.int32([3, 2, 1]),
    labels_B=np.int32([1, 1, 0]),
    real_B=np.array([True, True, False]),
  )
  update = classifier.make_update(
    HAND, optim.build(OPTIMIZER, 10), micro_batch=1
  )
  found = hand_losses(update, {"scorer": scorer}, batch)
  loss = -(math.log(1 / 4) + math.log(3 / 4)) / 2
  assert found["loss"] == pytest.approx(loss, rel=1e-5)
  assert found["accuracy"] == 0.5
  probability_B = classifier.make_scores(HAND)(
    scorer, batch.tokens_BS, batch.lengths_B
  )
  np.testing.assert_allclose(probability_B, [1 / 4, 3 / 4, 3 / 4], rtol=1e-5)


# PyTorch ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
  """A prompt, a response and its score."""

  prompt: tuple[int, ...]
  response: tuple[int, ...]
  score: float

  @property
  def ids(self) -> list[int]:
    return [*self.prompt, *self.response]


def samples(seed) -> list[Sample]:
  rng = np.random.default_rng(seed)

  def ids(most):
    size = rng.integers(1, most + 1)
    return tuple(rng.integers(0, VOCABULARY - 1, size).tolist())

  return [
    Sample(ids(PROMPT_SLOTS), ids(RESPONSE_SLOTS), rng.choice([0, 0.1, 1]))
    for _ in range(ROWS)
  ]


def rollout_of(rows) -> types.Rollout:
  """(prompt, response, score) rows as a rollout."""

  def padded(lists, slots):
    out = np.full((len(lists), slots), PAD, np.int32)
    for row, ids in zip(out, lists, strict=True):
      row[: len(ids)] = ids
    return jnp.asarray(out)

  prompts, responses, _ = zip(*map(tuple, rows), strict=True)
  return types.Rollout(
    prompt_BP=padded(prompts, PROMPT_SLOTS),
    prompt_lengths_B=jnp.array([len(ids) for ids in prompts]),
    response_BT=padded(responses, RESPONSE_SLOTS),
    response_lengths_B=jnp.array([len(ids) for ids in responses]),
    ended_B=jnp.ones(len(responses), bool),
    logprobs_BT=jnp.zeros((len(responses), RESPONSE_SLOTS)),
  )


def sampled_rollout(rows: list[Sample]) -> types.Rollout:
  return rollout_of([dataclasses.astuple(row) for row in rows])


def supervised_batch(rows: list[Sample]) -> types.SupervisedBatch:
  return batches_lib.supervised(
    [(row.prompt, row.response) for row in rows],
    batch=ROWS,
    slots=PROMPT_SLOTS + RESPONSE_SLOTS,
    pad_id=PAD,
  )


@pytest.fixture(scope="module")
def torch():
  pytest.importorskip("transformers")
  module = pytest.importorskip("torch")
  module.set_num_threads(1)
  return module


def llama(torch, kind):
  """A tiny model of transformers, whose random weights matter."""
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=20,
    initializer_range=0.3,
    pad_token_id=PAD,
    num_labels=2,
    attn_implementation="eager",
  )
  return getattr(transformers, kind)(config)


class Descent:
  """torch's AdamW, its linear warm-up and decay, gradients clipped at 1."""

  def __init__(self, torch, parameters):
    import transformers

    self._torch = torch
    self._parameters = list(parameters)
    self._rule = torch.optim.AdamW(
      self._parameters,
      lr=OPTIMIZER.learning_rate,
      betas=(OPTIMIZER.b1, OPTIMIZER.b2),
      eps=OPTIMIZER.eps,
      weight_decay=0.0,
    )
    self._schedule = transformers.get_linear_schedule_with_warmup(
      self._rule, int(OPTIMIZER.warmup_fraction * 2 * UPDATES), 2 * UPDATES
    )

  def step(self, loss) -> float:
    """One update; the gradient's norm as it was before clipping."""
    self._rule.zero_grad()
    loss.backward()
    norm = self._torch.nn.utils.clip_grad_norm_(
      self._parameters, OPTIMIZER.clip_norm
    )
    self._rule.step()
    self._schedule.step()
    return norm.item()


def ours():
  return optim.build(OPTIMIZER, 2 * UPDATES)


def started(params, kl_coef=0.0):
  return jax.tree.map(jnp.copy, learner_lib.init_state(params, ours(), kl_coef))


def assert_learnt_alike(found, expected, *names):
  """Metrics of every update agree, and the updates did something."""
  for got, want in zip(found, expected, strict=True):
    for name in (*names, "grad_norm"):
      assert got[name].value() == pytest.approx(want[name], abs=1e-4), name
  assert max(want["grad_norm"] for want in expected) > OPTIMIZER.clip_norm


def cross_entropy(torch, model, rows: list[Sample]):
  """Mean over the tokens of all responses; None of no rows."""
  losses = []
  for row in rows:
    logits = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    for at in range(len(row.prompt), len(row.ids)):
      losses.append(-logits[at - 1, row.ids[at]])
  return torch.stack(losses).mean() if losses else None


def test_supervised_fine_tuning(torch, tmp_path):
  model = llama(torch, "LlamaForCausalLM")
  model.save_pretrained(tmp_path)
  config, policy = reader.load(tmp_path)
  update = supervised_lib.make_update(
    networks.Networks(config), ours(), micro_batch=2, logit_chunk=16
  )
  state, descent = (
    started({"policy": policy}),
    Descent(torch, model.parameters()),
  )
  found, expected = [], []
  for number in range(UPDATES):
    rows = samples(number % 2)
    state, metrics = update(state, supervised_batch(rows))
    found.append(metrics)
    loss = cross_entropy(torch, model, rows)
    expected.append({"loss": loss.item(), "grad_norm": descent.step(loss)})
  assert_learnt_alike(found, expected, "loss")
  assert expected[4]["loss"] < expected[0]["loss"] - 0.1


def test_online_self_training(torch, tmp_path):
  model = llama(torch, "LlamaForCausalLM")
  model.save_pretrained(tmp_path)
  config, policy = reader.load(tmp_path)
  update = supervised_lib.make_update(
    networks.Networks(config),
    ours(),
    micro_batch=2,
    logit_chunk=16,
    weights={"correct": 0.5, "gold": 0.5},
  )
  state, descent = (
    started({"policy": policy}),
    Descent(torch, model.parameters()),
  )
  found, expected = [], []
  for number in range(UPDATES):
    sampled, gold = samples(number), samples(100 + number)
    # One batch holds no correct row, and another none but those.
    least = {1: 2.0, 2: 0.0}.get(number, 0.1)
    correct_B = jnp.array([row.score >= least for row in sampled])
    state, metrics = update(
      state,
      supervised_lib.imitations(sampled_rollout(sampled), correct_B),
      supervised_batch(gold),
    )
    found.append(metrics)
    loss = cross_entropy(torch, model, gold) / 2
    right = cross_entropy(
      torch, model, [row for row in sampled if row.score >= least]
    )
    if right is not None:
      loss += right / 2
    expected.append({"loss": loss.item(), "grad_norm": descent.step(loss)})
  assert_learnt_alike(found, expected, "loss")


def test_reward_model(torch, tmp_path):
  model = llama(torch, "LlamaForSequenceClassification")
  model.save_pretrained(tmp_path)
  config, scorer = reader.load_classifier(tmp_path)
  update = classifier.make_update(
    networks.Networks(config), ours(), micro_batch=2
  )
  state, descent = (
    started({"scorer": scorer}),
    Descent(torch, model.parameters()),
  )
  found, expected = [], []
  for number in range(UPDATES):
    rows = samples(number % 2)
    labels = [int(row.score == 1) for row in rows]
    batch = supervised_batch(rows)
    state, metrics = update(
      state,
      types.LabelledBatch(
        tokens_BS=batch.tokens_BS,
        lengths_B=batch.lengths_B,
        labels_B=np.int32(labels),
        real_B=np.ones(ROWS, bool),
      ),
    )
    found.append(metrics)
    logits = torch.cat([model(torch.tensor([row.ids])).logits for row in rows])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    expected.append({"loss": loss.item(), "grad_norm": descent.step(loss)})
  assert_learnt_alike(found, expected, "loss")


PPO = schema.ReftConfig(
  minibatch_size=ROWS,
  micro_batch_size=2,
  lam=0.95,
  gamma=0.9,
  kl_coef=0.05,
  vf_coef=0.5,
)


@pytest.mark.parametrize("value", networks.VALUE_KINDS)
def test_reinforced_fine_tuning(torch, value, tmp_path):
  """Each step: read, reward, GAE, whiten, two updates with the value head."""
  model = llama(torch, "LlamaForCausalLM")
  model.save_pretrained(tmp_path)
  config, policy = reader.load(tmp_path)
  reference = copy.deepcopy(model)
  trunk = model.model if value == "shared" else copy.deepcopy(model.model)
  head = torch.nn.Linear(16, 1)

  net = networks.Networks(config)
  critic = net.init_value(policy, value)
  critic["head"] = {
    "w_D": jnp.asarray(head.weight.detach().numpy()[0]),
    "b": jnp.asarray(head.bias.detach().numpy()[0]),
  }
  assess = ppo_lib.make_assess(net, PPO, logit_chunk=16)
  score = ppo_lib.make_score(PPO)
  update = ppo_lib.make_update(net, ours(), PPO, logit_chunk=16)
  state = started({"policy": policy, "value": critic}, PPO.kl_coef)
  parameters = [*model.parameters(), *head.parameters()]
  if value == "separate":
    parameters += trunk.parameters()
  descent = Descent(torch, parameters)

  def read(row, some=model):
    """Log-probs and values of a row's actions."""
    ids = torch.tensor([row.ids])
    states = slice(len(row.prompt) - 1, -1)
    table = some(ids).logits[0, states].log_softmax(-1)
    values = head(trunk(ids).last_hidden_state[0, states])[:, 0]
    return table[range(len(row.response)), list(row.response)], values

  found, expected = [], []
  for number in range(UPDATES):
    rows = samples(number)
    rollout = sampled_rollout(rows)
    assessment = assess(state.params, policy, rollout)
    scores_B = jnp.array([row.score for row in rows], jnp.float32)
    experience, metrics = score(rollout, assessment, scores_B, state.kl_coef)
    state, learned = update(state, experience, jax.random.key(number))
    found.append(metrics | learned)
    with torch.no_grad():
      old = [read(row) for row in rows]
      known = [read(row, reference)[0] for row in rows]
    expected.append(torch_ppo(torch, rows, old, known, read, descent))
  assert_learnt_alike(found, expected, "kl", "policy/loss", "value/loss")
  assert abs(expected[-1]["kl"]) > 0.01


def torch_ppo(torch, rows, old, known, read, descent) -> dict[str, float]:
  """Two updates on the rows; the means of what was measured."""
  advantages, returns, kls = [], [], []
  for row, (logprobs, values), reference in zip(rows, old, known, strict=True):
    kl = logprobs - reference
    kls.append(kl.sum())
    rewards = -PPO.kl_coef * kl
    rewards[-1] += row.score
    later, ahead, backwards = 0.0, 0.0, []
    for reward, here in zip(rewards.flip(0), values.flip(0), strict=True):
      later = reward + PPO.gamma * ahead - here + PPO.gamma * PPO.lam * later
      ahead = here
      backwards.append(later)
    advantages.append(torch.stack(backwards).flip(0))
    returns.append(advantages[-1] + values)
  every = torch.cat(advantages)
  std = (every.var() + 1e-8).sqrt()
  advantages = [(row - every.mean()) / std for row in advantages]

  measured = {"policy/loss": [], "value/loss": [], "grad_norm": []}
  for _ in range(PPO.ppo_epochs):
    policy_losses, value_losses = [], []
    for number, row in enumerate(rows):
      logprobs, values = read(row)
      old_logprobs, old_values = old[number]
      ratio = (logprobs - old_logprobs).exp()
      policy_losses.append(
        torch.maximum(
          -advantages[number] * ratio,
          -advantages[number] * ratio.clamp(1 - PPO.clip, 1 + PPO.clip),
        ).mean()
      )
      near = values.clamp(
        old_values - PPO.value_clip, old_values + PPO.value_clip
      )
      errors = torch.maximum(
        (values - returns[number]) ** 2, (near - returns[number]) ** 2
      )
      value_losses.append(errors.mean() / 2)
    policy_loss = torch.stack(policy_losses).mean()
    value_loss = torch.stack(value_losses).mean()
    norm = descent.step(policy_loss + PPO.vf_coef * value_loss)
    measured["policy/loss"].append(policy_loss.item())
    measured["value/loss"].append(value_loss.item())
    measured["grad_norm"].append(norm)
  means = {name: np.mean(numbers) for name, numbers in measured.items()}
  return means | {"kl": torch.stack(kls).mean().item()}


RLOO = dataclasses.replace(
  PPO,
  advantages="rloo",
  samples_per_question=2,
  aggregation="token_mean",
  kl_in="loss",
  kl_estimator="k3",
  kl_coef=0.3,
  entropy_coef=0.02,
  clip=0.01,
  clip_high=0.02,
)


def test_advantages_without_a_critic(torch, tmp_path):
  """RLOO, a mean over tokens, k3 in the loss, entropy, another upper clip."""
  model = llama(torch, "LlamaForCausalLM")
  model.save_pretrained(tmp_path)
  config, policy = reader.load(tmp_path)
  reference = copy.deepcopy(model)
  net = networks.Networks(config)
  assess = ppo_lib.make_assess(net, RLOO, logit_chunk=16)
  score = ppo_lib.make_score(RLOO)
  update = ppo_lib.make_update(net, ours(), RLOO, logit_chunk=16)
  state = started({"policy": policy}, RLOO.kl_coef)
  descent = Descent(torch, [*model.parameters()])

  def read(row, some):
    """Log-probs of a row's actions and entropies of what they are from."""
    ids = torch.tensor([row.ids])
    states = slice(len(row.prompt) - 1, -1)
    table = some(ids).logits[0, states].log_softmax(-1)
    chosen = table[range(len(row.response)), list(row.response)]
    return chosen, -(table.exp() * table).sum(-1)

  found, expected = [], []
  for number in range(UPDATES):
    rows = samples(number)
    rollout = sampled_rollout(rows)
    assessment = assess(state.params, policy, rollout)
    scores = [row.score for row in rows]
    experience, _ = score(
      rollout, assessment, jnp.float32(scores), state.kl_coef
    )
    state, learned = update(state, experience, jax.random.key(number))
    found.append(learned)
    with torch.no_grad():
      old = torch.cat([read(row, model)[0] for row in rows])
      known = torch.cat([read(row, reference)[0] for row in rows])
    # Of two answers, the baseline of each is the other.
    others = [scores[place ^ 1] for place in range(len(rows))]
    advantages = torch.cat(
      [
        torch.full((len(row.response),), row.score - other)
        for row, other in zip(rows, others, strict=True)
      ]
    )
    measured = {"policy/loss": [], "policy/kl_loss": [], "grad_norm": []}
    for _ in range(RLOO.ppo_epochs):
      logprobs, entropies = map(
        torch.cat, zip(*(read(row, model) for row in rows), strict=True)
      )
      ratio = (logprobs - old).exp()
      policy_loss = torch.maximum(
        -advantages * ratio, -advantages * ratio.clamp(0.99, 1.02)
      ).mean()
      kl_loss = ((known - logprobs).exp() - 1 - (known - logprobs)).mean()
      norm = descent.step(policy_loss + 0.3 * kl_loss - 0.02 * entropies.mean())
      measured["policy/loss"].append(policy_loss.item())
      measured["policy/kl_loss"].append(kl_loss.item())
      measured["grad_norm"].append(norm)
    expected.append({name: np.mean(some) for name, some in measured.items()})
  assert_learnt_alike(found, expected, "policy/loss", "policy/kl_loss")
  assert expected[-1]["policy/kl_loss"] > 1e-3
  assert max(each["clip_fraction"].value() for each in found) > 0.05
