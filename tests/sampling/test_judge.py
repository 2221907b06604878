"""What a reward model says of solutions."""

import jax
import numpy as np
import pytest
import tiny

from reft_jax import errors
from reft_jax.learning import classifier
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.sampling import grading
from reft_jax.sampling import judge as judge_lib
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers import grade


@pytest.fixture(scope="module")
def run():
  return tiny.run(
    embedded.problems(5, seed=1),
    "evaluation.batch_size=6",
    "data.max_response_tokens=40",
  )


def make_scorer(networks):
  policy = jax.jit(networks.init)(jax.random.key(0))
  return networks.init_scorer(policy, jax.random.key(1))


@pytest.fixture(scope="module")
def scorer(run):
  return make_scorer(run.engine.networks)


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


def test_each_answer_gets_its_own_probability(run, scorer, groups):
  engine = run.engine
  judge = judge_lib.Judge(engine, engine.networks)
  with jax.set_mesh(engine.mesh):
    found = judge(scorer, groups)
    assert judge(scorer, groups[2:]) == found[2:]
    assert judge(scorer, []) == []
  assert all(group[0] == group[-1] for group in found)
  assert len({value for group in found for value in group}) == 25
  alone = classifier.make_scores(engine.networks)
  answers = groups[0] + groups[1]
  values = found[0] + found[1]
  for one, value in zip(answers, values, strict=True):
    ids = engine.tokenizer.encode(one.completion.strip())
    ids = [*one.example.prompt, *ids]
    (expected,) = alone(scorer, np.array([ids]), np.array([len(ids)]))
    np.testing.assert_allclose(value, float(expected), rtol=1e-5)


@pytest.mark.slow
def test_a_saved_reward_model_judges_as_before(run, scorer, groups, tmp_path):
  folder = tmp_path / "reward_model"
  run.save_model(folder, jax.device_get(scorer), {}, classifier=True)
  with jax.set_mesh(run.engine.mesh):
    before = judge_lib.Judge(run.engine, run.engine.networks)(scorer, groups)
    after = judge_lib.load(run.engine, folder)(groups)
  np.testing.assert_allclose(after, before, rtol=1e-6)


def test_what_is_no_reward_model_of_this_run_is_refused(run, scorer, tmp_path):
  with pytest.raises(errors.UserError, match="no reward model there"):
    judge_lib.check(run.engine, tmp_path)
  policy = jax.jit(run.engine.networks.init)(jax.random.key(0))
  run.save_model(tmp_path / "policy", jax.device_get(policy), {})
  with pytest.raises(UnsupportedModelError, match="a language model"):
    judge_lib.check(run.engine, tmp_path / "policy")
  bare = tmp_path / "bare"
  run.save_model(bare, jax.device_get(scorer), {}, classifier=True)
  judge_lib.check(run.engine, bare)
  (bare / "model.safetensors").unlink()
  with pytest.raises(UnsupportedModelError, match="holds neither"):
    judge_lib.check(run.engine, bare)


def test_a_reward_model_with_another_tokenizer_is_refused(run, tmp_path):
  other = tiny.run(embedded.problems(2, seed=0), "embedded.choices=0.5")
  scorer = make_scorer(other.engine.networks)
  other.save_model(tmp_path, jax.device_get(scorer), {}, classifier=True)
  with pytest.raises(errors.UserError, match="its tokenizer is another"):
    judge_lib.check(run.engine, tmp_path)
