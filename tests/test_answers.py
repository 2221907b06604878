import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.tasks import answers, problem, prompts, sources

OPTIONS = "\na ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none"
CORRECT, WRONG, NONE = answers.Verdict
REWARD = {CORRECT: 1, WRONG: 0.1, NONE: 0}


def make(task, answer, question="How many?"):
  return problem.Problem("x_0", task, question, None, answer)


def reply(answer):
  return f"3 + 4 = 7{prompts.ANSWER_TRIGGER}{answer}"


def test_official_rules_of_the_released_code(shared):
  cases = json.loads((shared / "goldens/extract_cases.json").read_text())
  cases = [case for case in cases if case["engine"] == "nl"]
  assert cases
  for case in cases:
    made = make(case["dataset"], case["target"])
    grade = answers.grade(case["text"], made, mode="official")
    wanted = case["extracted"]
    if case["dataset"] != "mathqa" and wanted is not None:
      wanted = float(wanted)
    # As ==, except that nan, which the cases hold, is equal to itself alone.
    np.testing.assert_equal(grade.value, wanted, err_msg=case["why"])
    assert REWARD[grade.verdict] == case["reward"], case["why"]


@pytest.mark.parametrize(
  ("answer", "gold", "verdict"),
  [
    ("7", "7", CORRECT),
    ("7.0", "7", CORRECT),
    ("7.", "7", CORRECT),
    ("7.00.", "7", CORRECT),
    (" 7 ", "7", CORRECT),
    ("+7", "7", CORRECT),
    ("007", "7", CORRECT),
    ("-7", "-7", CORRECT),
    ("-7", "7", WRONG),
    ("1,000", "1000", CORRECT),
    ("1,000", "1,000", CORRECT),
    ("12,345,678.5", "12345678.5", CORRECT),
    ("1000", "1,000.0", CORRECT),
    ("1,00", "100", NONE),
    ("1000,000", "1000000", NONE),
    ("3,5", "3.5", NONE),
    ("$5", "5", CORRECT),
    ("$ 5.50", "5.5", CORRECT),
    ("-$5", "-5", CORRECT),
    ("5$", "5", NONE),
    ("$", "5", NONE),
    ("31.1%", "31.1", CORRECT),
    ("31.1 %.", "31.1", CORRECT),
    ("31.1 %", "0.311", WRONG),
    ("%", "0", NONE),
    (".5", "0.5", CORRECT),
    ("1e3", "1000", CORRECT),
    ("1.5E-1", "0.15", CORRECT),
    ("1e", "1", NONE),
    ("7.011", "7", WRONG),
    ("7.009", "7", CORRECT),
    ("0.33", "0.3333333", CORRECT),
    ("0.04", "0.0416666", CORRECT),
    ("0", "0.005", WRONG),
    ("0.01", "0.005", WRONG),
    ("0", "0", CORRECT),
    ("-0.0", "0", CORRECT),
    ("0.009", "0", WRONG),
    ("nan", "7", NONE),
    ("inf", "7", NONE),
    ("-Infinity", "7", NONE),
    ("True", "1", NONE),
    ("1_000", "1000", NONE),
    ("３", "3", NONE),
    ("٧", "7", NONE),
    ("²", "2", NONE),
    ("1e400", "7", NONE),
    ("1" + "0" * 30, "7", NONE),
    ("9" * 5000, "7", NONE),
    ("7 apples", "7", NONE),
    ("7\nThat is all.", "7", NONE),
    ("7 or 8", "7", NONE),
    ("1/2", "0.5", NONE),
    ("- 7", "-7", NONE),
    ("--7", "7", NONE),
    ("<7>", "7", NONE),
    ("seven", "7", NONE),
    (".", "0", NONE),
    ("", "7", NONE),
    ("8" + prompts.ANSWER_TRIGGER + "7", "7", CORRECT),
    ("7" + prompts.ANSWER_TRIGGER + "8", "7", WRONG),
    ("7" + prompts.ANSWER_TRIGGER, "7", NONE),
  ],
)
def test_strict_numbers(answer, gold, verdict):
  grade = answers.grade(reply(answer), make("gsm8k", gold))
  assert grade.verdict == verdict
  assert (grade.value is None) == (verdict == NONE)


@pytest.mark.parametrize(
  "completion",
  [
    "",
    "7",
    "The answer is 7",
    "Therefore, the answer is: 7",  # Nothing was reasoned before it.
    "3 + 4 = 7 Therefore, the answer is: 7",
  ],
)
def test_strict_wants_the_answer_phrase(completion):
  assert answers.grade(completion, make("gsm8k", "7")).verdict == NONE


def test_a_bare_number_passes_for_an_answer_in_official_mode():
  made = make("gsm8k", "7")
  assert answers.grade("7", made, mode="official").verdict == CORRECT


@pytest.mark.parametrize(
  ("answer", "verdict"),
  [
    ("c", CORRECT),
    ("C", CORRECT),
    ("c.", CORRECT),
    ("'c'", CORRECT),
    ('"C".', NONE),
    ("(c)", CORRECT),
    ("c )", CORRECT),
    ("b", WRONG),
    ("f", NONE),
    ("none", NONE),
    ("30", NONE),
    ("c 30", NONE),
    ("cc", NONE),
    ("c, d", NONE),
    ("ｃ", NONE),
    ("", NONE),
  ],
)
def test_strict_letters(answer, verdict):
  made = make("mathqa", "c", question=f"What is it?{OPTIONS}")
  assert answers.grade(reply(answer), made).verdict == verdict


def test_only_offered_letters_are_answers():
  three = make("mathqa", "c", question="What?\na ) 1 , b ) 2 , c ) 3")
  assert answers.grade(reply("b"), three).verdict == WRONG
  assert answers.grade(reply("d"), three).verdict == NONE
  listed = make("mathqa", "b", question="What?\n['a ) 12', 'b ) 15']")
  assert answers.grade(reply("b"), listed).verdict == CORRECT
  assert answers.grade(reply("c"), listed).verdict == NONE
  unknown = make("mathqa", "b", question="What?")
  assert answers.grade(reply("e"), unknown).verdict == WRONG
  assert answers.grade(reply("f"), unknown).verdict == NONE


@hypothesis.given(
  text=st.one_of(
    st.text(), st.text(alphabet="0123456789+-.,$%eE_ \n'\"()abc"), st.floats()
  ),
  task=st.sampled_from(sorted(answers.TASKS)),
  mode=st.sampled_from(answers.MODES),
)
def test_no_completion_makes_grading_raise(text, task, mode):
  made = make(task, "c" if task == "mathqa" else "7")
  for completion in (str(text), reply(text)):
    grade = answers.grade(completion, made, mode=mode)
    assert (grade.value is None) == (grade.verdict == NONE)
    if mode == "strict" and isinstance(grade.value, float):
      assert math.isfinite(grade.value)


@hypothesis.given(
  value=st.one_of(
    st.integers(-(10**12), 10**12),
    st.decimals(-(10**6), 10**6, places=4, allow_nan=False),
  ),
  mode=st.sampled_from(answers.MODES),
  task=st.sampled_from(["gsm8k", "svamp", "mathqa-numeric", "embedded"]),
)
def test_a_plain_number_is_its_own_answer(value, mode, task):
  made = make(task, str(value))
  hypothesis.assume(mode == "official" or "E" not in str(value))
  assert answers.grade(reply(value), made, mode=mode).verdict == CORRECT


@hypothesis.given(
  value=st.integers(-(10**9), 10**9), gold=st.integers(-(10**9), 10**9)
)
def test_strict_reads_a_number_however_it_is_written(value, gold):
  made = make("gsm8k", str(gold))
  wanted = answers.grade(reply(value), made)
  assert wanted.verdict == (CORRECT if value == gold else WRONG)
  for written in (f"{value:,}", f"{value}.", f"{value}.00", f"{value} %"):
    assert answers.grade(reply(written), made) == wanted


def test_the_prompt_in_front_changes_nothing():
  made = make("gsm8k", "7")
  for mode in answers.MODES:
    for completion in (reply("7"), reply("8"), "no idea"):
      with_prompt = prompts.prompt(made) + completion
      assert answers.grade(with_prompt, made, mode=mode) == answers.grade(
        completion, made, mode=mode
      )


@pytest.mark.parametrize("mode", answers.MODES)
@pytest.mark.parametrize(
  "name",
  ["svamp_nl.json", "gsm8k_original_train.jsonl", "gsm8k_original_test.jsonl"],
)
def test_every_annotated_row_grades_correct(shared, name, mode):
  rows = sources.load(str(shared / "data" / name))
  assert len(rows) > 1000
  for row in rows:
    grade = answers.grade(prompts.target(row), row, mode=mode)
    assert grade.verdict == CORRECT, row.uid


@pytest.mark.parametrize("mode", answers.MODES)
@pytest.mark.parametrize("task", ["svamp", "gsm8k", "mathqa", "mathqa-numeric"])
def test_every_test_answer_grades_correct(shared, task, mode):
  rows = sources.load(str(shared / "data" / f"{task}_test_set.json"))
  assert {row.task for row in rows} == {task}
  for row in rows:
    grade = answers.grade(reply(row.answer), row, mode=mode)
    assert grade.verdict == CORRECT, row.uid


@pytest.mark.parametrize(
  ("made", "arguments", "words"),
  [
    (make("gsm9k", "7"), {}, ["gsm9k", "data.task", "gsm8k", "mathqa-numeric"]),
    (make("gsm8k", "seven"), {}, ["seven", "x_0", "number"]),
    (make("gsm8k", "nan"), {}, ["nan", "number"]),
    (make("mathqa", "38"), {}, ["38", "letter"]),
    (make("gsm8k", "7"), {"mode": "lenient"}, ["lenient", "strict"]),
    (make("gsm8k", "7"), {"reasoning": "python"}, ["python", "nl"]),
  ],
)
def test_what_the_user_got_wrong_is_named(made, arguments, words):
  with pytest.raises(errors.UserError) as raised:
    answers.grade(reply("7"), made, **arguments)
  for word in words:
    assert word in str(raised.value)
