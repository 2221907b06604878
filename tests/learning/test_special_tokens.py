"""From text to losses, whatever ids the special tokens have."""

import chex
import jax
import numpy as np
import steps
import tiny
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from reft_jax.data import batches as batches_lib
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts as prompt_texts

# The same 29 tokens under other ids: pad, bos and eos are 0, 1 and 3, or 7, 11
# and 13. `names_V[v]` is what token v is called.
PAD, BOS, EOS = 0, 1, 3
DIGITS = [*"0123456789"]
USUAL = np.arange(tiny.CONFIG.vocab_size)
OTHER = USUAL.copy()
OTHER[[0, 1, 3, 7, 11, 13]] = [7, 11, 13, 0, 1, 3]


def word_tokenizer(names_V) -> tokenizer_lib.Tokenizer:
  """A token a word, for problems of digits."""
  phrases = (
    prompt_texts.INSTRUCTION,
    prompt_texts.COT_TRIGGER,
    prompt_texts.ANSWER_TRIGGER,
  )
  words = iter([*" ".join(phrases).split(), *DIGITS, *"abcdefghi"])
  special = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
  core = tokenizers.Tokenizer(
    models.WordLevel(
      {special.get(v) or next(words): int(names_V[v]) for v in USUAL}
    )
  )
  core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return tokenizer_lib.wrap(
    transformers.PreTrainedTokenizerFast(
      tokenizer_object=core,
      pad_token="<pad>",
      bos_token="<bos>",
      eos_token="<eos>",
    )
  )


def renamed(policy, names_V):
  """The policy that takes and gives the same tokens under other ids."""
  order_V = np.argsort(names_V)
  trunk = policy["trunk"] | {"embed_VD": policy["trunk"]["embed_VD"][order_V]}
  return {"trunk": trunk, "lm_DV": policy["lm_DV"][:, order_V]}


def from_text_to_losses(names_V):
  """All that special ids may touch, with ids turned back into the usual."""
  rng = np.random.default_rng(0)
  tokenizer = word_tokenizer(names_V)
  special = [tokenizer.pad_id, tokenizer.bos_id, *tokenizer.eos_ids]
  assert special == names_V[[PAD, BOS, EOS]].tolist()
  problems = [
    problem_lib.Problem(
      uid="embedded_0",
      task="embedded",
      question=" ".join(rng.choice(DIGITS, 1 + row % 2)),
      rationale=" ".join(rng.choice(DIGITS, 1 + row % 4)),
      answer="7",
    )
    for row in range(steps.ROWS)
  ]
  examples = encode.encode(
    problems,
    tokenizer,
    reasoning="nl",
    add_bos=True,
    max_prompt_tokens=tiny.PROMPT_SLOTS,
    max_response_tokens=16,
  ).examples

  # Of a seed whose greedy rows end and are cut.
  policy, reference = (renamed(tiny.policy(seed), names_V) for seed in (7, 1))
  batch = batches_lib.supervised(
    [(example.prompt, example.target) for example in examples],
    batch=steps.ROWS,
    slots=24,
    pad_id=tokenizer.pad_id,
  )
  loss, imitated = steps.imitate(batch, steps.ROWS, policy)

  # Greedily: what a random number picks depends on the order of the ids.
  sampler = tiny.sampler(0.0, eos=tokenizer.eos_ids, pad=tokenizer.pad_id)
  prompts = batches_lib.prompts(
    [example.prompt for example in examples],
    range(steps.ROWS),
    batch=steps.ROWS,
    slots=tiny.PROMPT_SLOTS,
    pad_id=tokenizer.pad_id,
  )
  rollout = sampler(
    jax.jit(tiny.make().publish)(policy), prompts, jax.random.key(0)
  )
  params = {**steps.params_of(), "policy": policy}
  _, state, means = steps.learn(params, rollout, reference=reference)
  back_V = np.argsort(names_V)
  return {
    "tokens": back_V[batch.tokens_BS],
    "prompts": back_V[rollout.prompt_BP],
    "responses": back_V[rollout.response_BT],
    "lengths": np.asarray(rollout.response_lengths_B),
    "ended": np.asarray(rollout.ended_B),
    "texts": [tokenizer.decode(row) for row in rollout.response_BT],
  }, {
    "logprobs": rollout.logprobs_BT,
    "loss": loss,
    "means": means,
    "imitated": renamed(imitated["policy"], back_V),
    "learnt": renamed(state.params["policy"], back_V),
  }


def test_ids_of_special_tokens_change_nothing():
  exact, near = from_text_to_losses(USUAL)
  other_exact, other_near = from_text_to_losses(OTHER)
  assert exact["ended"].any()
  assert not exact["ended"].all()
  np.testing.assert_equal(other_exact, exact)
  chex.assert_trees_all_close(other_near, near, atol=1e-5, rtol=1e-4)
