"""Solutions as rows with a label, and what a classifier says of them."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from reft_jax import errors
from reft_jax.algorithms import reward_model
from reft_jax.learning import steps
from reft_jax.models import networks
from reft_jax.models.hf import pretrained
from reft_jax.sampling import grading
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers import grade


@pytest.fixture(scope="module")
def run():
  return tiny.run(
    embedded.problems(5, seed=1),
    "evaluation.batch_size=6",
    "data.max_response_tokens=40",
  )


@pytest.fixture(scope="module")
def scorer(run):
  policy = jax.jit(run.networks.init)(jax.random.key(0))
  return run.networks.init_scorer(policy, jax.random.key(1))


@pytest.fixture(scope="module")
def groups(run):
  """For each question the solutions of all, one of them twice."""
  texts = [prompts.target(example.problem) for example in run.test]
  return [
    [answer(example, text) for text in (*texts, f"{texts[0]}\n")]
    for example in run.test
  ]


def answer(example, text):
  return grading.Answer(example, text, grade.grade(text, example.problem), True)


def test_alike_solutions_of_a_question_are_one_row(run, groups):
  rows, labels = reward_model.labelled(run, groups)
  assert len(rows) == len(labels) == 25
  first = run.test[0]
  text = prompts.target(first.problem)
  # Without EOS, as the released reward model reads them.
  assert rows[0] == [*first.prompt, *run.tokenizer.encode(text)]
  assert labels[0] == 1
  assert 0 < sum(labels) < len(labels)


def test_each_answer_gets_its_own_probability(run, scorer, groups):
  judge = reward_model.Judge(run, run.networks)
  with jax.set_mesh(run.mesh):
    found = judge(scorer, groups)
    assert judge(scorer, groups[2:]) == found[2:]
    assert judge(scorer, []) == []
  assert all(group[0] == group[-1] for group in found)
  assert len({value for group in found for value in group}) == 25
  run_one = steps.scores(run.networks)
  for group, values in zip(groups[:2], found, strict=False):
    for one, value in zip(group, values, strict=True):
      ids = [*one.example.prompt, *run.tokenizer.encode(one.completion.strip())]
      alone = run_one(scorer, np.array([ids]), np.array([len(ids)]))
      np.testing.assert_allclose(float(alone[0]), value, rtol=1e-5)


def test_a_saved_reward_model_judges_as_before(run, scorer, groups, tmp_path):
  folder = tmp_path / "reward_model"
  run.save_model(folder, jax.device_get(scorer), {}, classifier=True)
  with jax.set_mesh(run.mesh):
    before = reward_model.Judge(run, run.networks)(scorer, groups)
    after = reward_model.open_judge(run, folder)(groups)
  np.testing.assert_allclose(after, before, rtol=1e-6)


def test_what_is_no_reward_model_of_this_run_is_refused(run, scorer, tmp_path):
  with pytest.raises(errors.UserError, match="no reward model there"):
    reward_model.open_judge(run, tmp_path)
  policy = jax.jit(run.networks.init)(jax.random.key(0))
  run.save_model(tmp_path / "policy", jax.device_get(policy), {})
  with pytest.raises(pretrained.UnsupportedModelError):
    reward_model.open_judge(run, tmp_path / "policy")
  run.save_model(tmp_path / "bare", jax.device_get(scorer), {}, classifier=True)
  reward_model.check(run, tmp_path / "bare")
  (tmp_path / "bare/model.safetensors").unlink()
  with pytest.raises(pretrained.UnsupportedModelError, match="holds neither"):
    reward_model.check(run, tmp_path / "bare")
  other = tiny.run(embedded.problems(2, seed=0), "embedded.choices=0.5")
  model = networks.Networks(
    dataclasses.replace(
      run.networks.config, vocab_size=other.tokenizer.vocab_size
    )
  )
  other = dataclasses.replace(other, networks=model)
  scorer = model.init_scorer(
    jax.jit(model.init)(jax.random.key(0)), jax.random.key(1)
  )
  other.save_model(
    tmp_path / "other", jax.device_get(scorer), {}, classifier=True
  )
  with pytest.raises(errors.UserError, match="its tokenizer is another"):
    reward_model.open_judge(run, tmp_path / "other")
