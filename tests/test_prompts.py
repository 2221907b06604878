import hypothesis
import pytest
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.tasks import answers, problem, prompts

PROBLEM = problem.Problem(
  "svamp_0", "svamp", " How many?\n", "\n3 + 4 = 7 ", "7.0"
)


def test_templates():
  assert prompts.prompt(PROBLEM) == "Question:\nHow many?\nAnswer reasoning:\n"
  assert prompts.target(PROBLEM) == "3 + 4 = 7\nTherefore, the answer is: 7.0"


def test_without_a_rationale_there_is_nothing_to_learn():
  bare = problem.Problem("svamp_0", "svamp", "How many?", None, "7")
  with pytest.raises(errors.UserError, match=r"svamp_0 .*answer_cot"):
    prompts.target(bare)


@pytest.mark.parametrize("write", [prompts.prompt, prompts.target])
@pytest.mark.parametrize("reasoning", ["python", "latin"])
def test_unknown_reasoning_names_what_exists(write, reasoning):
  with pytest.raises(errors.UserError, match=f"{reasoning}.*choose.*nl"):
    write(PROBLEM, reasoning)


@hypothesis.given(
  question=st.text(),
  rationale=st.text(min_size=1).filter(str.strip),
  value=st.integers(-999, 999),
  mode=st.sampled_from(answers.MODES),
)
def test_targets_grade_correct_whatever_the_texts(
  question, rationale, value, mode
):
  made = problem.Problem("x_0", "gsm8k", question, rationale, str(value))
  text = prompts.prompt(made) + prompts.target(made)
  assert answers.grade(text, made, mode=mode).verdict == answers.Verdict.CORRECT
