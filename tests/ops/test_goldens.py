"""Arrays computed by the released code (with trl 0.7.2), reproduced.

The functions called are those of training itself. Where training goes from
hidden states through the head to log-probs, the head here is the identity, so
that a golden's logits play the hidden states.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import types
from reft_jax.config import schema
from reft_jax.learning import objectives
from reft_jax.learning import ppo as ppo_lib
from reft_jax.ops import advantages, logprobs, losses, masked, sequences

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared" / "goldens"
CASES = sorted(FOLDER.glob("ppo_case_*.npz"))

pytestmark = pytest.mark.skipif(
  not CASES, reason=f"the released code's arrays are not in {FOLDER}"
)


@dataclasses.dataclass(frozen=True)
class Golden:
  """A case's arrays, and how its columns map to actions.

  The released code indexes by position t of the whole row, where column t
  holds the action that makes token t + 1; action k is column P - 1 + k.
  """

  arrays: dict

  @property
  def first(self) -> int:
    return int(self.arrays["prompt_len"]) - 1

  def actions(self, name: str) -> jnp.ndarray:
    """The action columns of an array [B, L or L - 1, ...]."""
    slots = self.arrays["ids"].shape[1] - self.first - 1
    full = np.asarray(self.arrays[name], np.float32)
    return jnp.asarray(full[:, self.first : self.first + slots])

  def positions(self, actions_BT, columns: int) -> np.ndarray:
    """Action columns put back into `columns` positions, 0 elsewhere."""
    out = np.zeros((actions_BT.shape[0], columns), np.float32)
    out[:, self.first : self.first + actions_BT.shape[1]] = actions_BT
    return out

  def number(self, name: str) -> float:
    return float(self.arrays[name])

  def rollout(self) -> types.Rollout:
    """The row as prompt and response; the response ends at its first EOS."""
    ids = np.asarray(self.arrays["ids"])
    response_BT = ids[:, self.first + 1 :]
    eos_BT = response_BT == int(self.arrays["eos_id"])
    ended_B = eos_BT.any(axis=1)
    lengths_B = np.where(
      ended_B, eos_BT.argmax(axis=1) + 1, response_BT.shape[1]
    )
    rows = ids.shape[0]
    return types.Rollout(
      prompt_BP=jnp.asarray(ids[:, : self.first + 1], jnp.int32),
      prompt_lengths_B=jnp.full(rows, self.first + 1, jnp.int32),
      response_BT=jnp.asarray(response_BT, jnp.int32),
      response_lengths_B=jnp.asarray(lengths_B, jnp.int32),
      ended_B=jnp.asarray(ended_B),
      logprobs_BT=jnp.zeros(response_BT.shape, jnp.float32),
    )


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def golden(request) -> Golden:
  with np.load(request.param) as arrays:
    return Golden(dict(arrays))


def close(ours, theirs, atol=1e-5):
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol)


def token_logprobs(logits_BSV, rollout):
  """From the logits of all positions, as training does from hidden states."""
  rows_BTV = sequences.predicting(
    jnp.asarray(logits_BSV),
    rollout.prompt_lengths_B,
    rollout.response_BT.shape[1],
  )
  logprobs_BT, _ = logprobs.of_tokens(
    lambda rows: rows, rows_BTV, rollout.response_BT, chunk=5
  )
  return logprobs_BT


def scored(golden):
  """The case through the score step; whitened and not."""
  rollout = golden.rollout()
  logprobs_BT = token_logprobs(golden.arrays["old_logits"], rollout)
  kl_coef, reference_BT = 0.0, logprobs_BT
  if golden.arrays["with_ref"]:
    kl_coef = golden.number("kl_coef")
    reference_BT = token_logprobs(golden.arrays["ref_logits"], rollout)
  assessment = ppo_lib.Assessment(
    logprobs_BT=logprobs_BT,
    reference_logprobs_BT=reference_BT,
    values_BT=golden.actions("old_values"),
  )
  ppo = numbers(golden)
  scores_B = jnp.asarray(golden.arrays["correctness"], jnp.float32)
  run = [
    ppo_lib.make_score(dataclasses.replace(ppo, whiten=whiten))
    for whiten in (True, False)
  ]
  return [score(rollout, assessment, scores_B, kl_coef)[0] for score in run]


def numbers(golden) -> schema.ReftConfig:
  return schema.ReftConfig(
    minibatch_size=int(golden.arrays["mini_batch_size"]),
    gamma=golden.number("gamma"),
    lam=golden.number("lam"),
    vf_coef=golden.number("vf_coef"),
  )


def test_mask_is_the_actions_up_to_eos(golden):
  mask_BT = golden.rollout().mask_BT
  columns = golden.arrays["mask"].shape[1]
  ours = golden.positions(np.asarray(mask_BT), columns).astype(bool)
  np.testing.assert_array_equal(ours, golden.arrays["mask"])


def test_lengths_say_what_the_released_code_reads_off_pad_ids(golden):
  ids, prompt = golden.arrays["ids"], golden.first + 1
  pad_id = int(golden.arrays["pad_id"])
  lengths_B = np.asarray(golden.rollout().response_lengths_B)
  # Left padding of the prompt is all that lengths cannot know here.
  valid = np.arange(ids.shape[1])[None] < prompt + lengths_B[:, None]
  valid[:, :prompt] &= np.asarray(ids[:, :prompt] != pad_id)
  sampled_pad = (ids == pad_id) & valid
  np.testing.assert_array_equal(
    valid & ~sampled_pad, golden.arrays["attention_mask"]
  )


def test_logprobs(golden):
  rollout = golden.rollout()
  for name in ("old", "ref"):
    if f"{name}_logprob" not in golden.arrays:
      continue
    ours_BT = token_logprobs(golden.arrays[f"{name}_logits"], rollout)
    if name == "old":
      close(ours_BT, golden.actions("old_logprob_raw"))
      ours_BT = jnp.where(rollout.mask_BT, ours_BT, 0.0)
    close(ours_BT, golden.actions(f"{name}_logprob"))


def test_rewards_advantages_and_returns(golden):
  rollout = golden.rollout()
  whitened, plain = scored(golden)
  mask_BT = rollout.mask_BT
  columns = golden.arrays["mask"].shape[1]
  scores_B = jnp.asarray(golden.arrays["correctness"], jnp.float32)
  score_BT = advantages.terminal(
    scores_B, rollout.response_lengths_B, mask_BT.shape[1]
  )
  close(golden.positions(score_BT, columns), golden.arrays["score_rew"])
  if golden.arrays["with_ref"]:
    rewards_BT, kl_BT = advantages.kl_penalised(
      scores_B,
      plain.logprobs_BT,
      token_logprobs(golden.arrays["ref_logits"], rollout),
      mask_BT,
      kl_coef=golden.number("kl_coef"),
    )
    close(golden.positions(-kl_BT, columns), golden.arrays["kl_rew"])
  else:
    rewards_BT = score_BT
  close(golden.positions(rewards_BT, columns), golden.arrays["rew"])
  close(
    golden.positions(jnp.where(mask_BT, plain.values_BT, 0), columns),
    golden.arrays["values_masked"],
  )
  close(golden.positions(plain.advantages_BT, columns), golden.arrays["adv"])
  close(golden.positions(plain.returns_BT, columns), golden.arrays["ret"])
  close(
    masked.mean(plain.advantages_BT, mask_BT),
    golden.arrays["masked_mean_adv"],
  )
  close(
    masked.variance(plain.advantages_BT, mask_BT),
    golden.arrays["masked_var_adv"],
  )
  ours_BT = whitened.advantages_BT
  if str(golden.arrays["whitening"]) == "local":
    # Each rank on its own, which one process with a mesh has no need of.
    parts = zip(
      np.split(np.asarray(plain.advantages_BT), int(golden.arrays["n_ranks"])),
      np.split(np.asarray(mask_BT), int(golden.arrays["n_ranks"])),
      strict=True,
    )
    ours_BT = np.concatenate([masked.whiten(*part) for part in parts])
  close(ours_BT, golden.actions("adv_whitened"))


def test_losses_and_gradients(golden):
  experience, _ = scored(golden)
  rollout = golden.rollout()
  for index in range(int(golden.arrays["n_minibatches"])):
    inds = np.asarray(golden.arrays[f"mb{index}_inds"])
    rows = jax.tree.map(lambda x, i=inds: x[i], experience)
    ppo = dataclasses.replace(numbers(golden), minibatch_size=len(inds))
    weights_BT = losses.weights(rows.mask_BT, ppo.aggregation)

    def loss_fn(
      logits_BSV, values_BS, rows=rows, weights_BT=weights_BT, ppo=ppo
    ):
      logprobs_BT = token_logprobs(logits_BSV, rows.rollout)
      slots = rows.rollout.response_BT.shape[1]
      outputs = ppo_lib.PolicyOutputs(
        logprobs_BT=logprobs_BT,
        entropies_BT=jnp.zeros_like(logprobs_BT),
        values_BT=values_BS[:, golden.first : golden.first + slots],
      )
      loss, metrics = objectives.build(ppo)(
        ppo_lib.loss_inputs(outputs, rows, weights_BT, 0.0, ppo)
      )
      return loss, (logprobs_BT, metrics)

    (loss, (logprobs_BT, metrics)), grads = jax.value_and_grad(
      loss_fn, argnums=(0, 1), has_aux=True
    )(
      jnp.asarray(golden.arrays["new_logits"][inds]),
      jnp.asarray(golden.arrays["new_values"][inds]),
    )

    def theirs(name, index=index):
      return golden.arrays[f"mb{index}_{name}"]

    mask_BT = rollout.mask_BT[inds]
    close(loss, theirs("loss"))
    close(metrics["ratio/mean"].value(), theirs("mean_ratio"))
    close(jnp.maximum(jnp.sum(mask_BT, axis=1), 1), theirs("resp_len"))
    slots = mask_BT.shape[1]
    values_BT = golden.actions("new_values")[inds]
    near_BT = losses.clip_to(values_BT, rows.values_BT, clip=ppo.value_clip)
    near_BL = theirs("vpredclipped")[:, golden.first : golden.first + slots]
    close(np.where(mask_BT, near_BT, 0), np.where(mask_BT, near_BL, 0))
    explained = masked.explained_variance(rows.returns_BT, values_BT, mask_BT)
    close(max(float(explained), -1.0), theirs("vf_expl_var"))
    if golden.arrays["with_ref"]:
      reference_BT = token_logprobs(golden.arrays["ref_logits"], rollout)[inds]
      _, kl_BT = advantages.kl_penalised(
        jnp.zeros(len(inds)),
        rows.logprobs_BT,
        reference_BT,
        mask_BT,
        kl_coef=1.0,
      )
      close(jnp.mean(jnp.sum(kl_BT, axis=1)), theirs("mean_seq_kl"))
    close(metrics["policy/loss"].value(), theirs("pg_loss"))
    close(metrics["value/loss"].value(), theirs("vf_loss"))
    columns = theirs("ratio").shape[1]
    ratio_BT = jnp.exp(jnp.where(mask_BT, logprobs_BT - rows.logprobs_BT, 0.0))
    in_response = golden.positions(np.asarray(mask_BT), columns).astype(bool)
    close(
      golden.positions(ratio_BT, columns)[in_response],
      theirs("ratio")[in_response],
    )
    close(
      golden.positions(logprobs_BT, columns)[in_response],
      theirs("logprob")[in_response],
    )
    close(grads[0], theirs("grad_logits"), atol=1e-6)
    close(grads[1], theirs("grad_values"), atol=1e-6)
