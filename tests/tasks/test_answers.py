import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.tasks import problem, programs, prompts, sources
from reft_jax.tasks.answers import grade as grade_lib
from reft_jax.tasks.sandbox import executor, results

OPTIONS = "\na ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none"
CORRECT, WRONG, NONE = grade_lib.Verdict
REWARD = {CORRECT: 1, WRONG: 0.1, NONE: 0}
NUMERIC = ("gsm8k", "svamp", "mathqa-numeric", "embedded")
LETTERS = ("mathqa", "embedded-choice")


def make(task, answer, question="How many?"):
  return problem.Problem("x_0", task, question, None, answer)


def choice(answer, task="mathqa", options=OPTIONS):
  return make(task, answer, question=f"What is it?{options}")


def reply(answer):
  return f"3 + 4 = 7{prompts.ANSWER_TRIGGER}{answer}"


def returned(value, kind=None):
  """What is known of a program that returned a plain value."""
  kinds = {bool: "bool", int: "int", float: "float", str: "text"}
  kind = kind or kinds.get(type(value), "other" if value else "none")
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    number = None
  return results.Result(
    results.Status.RETURNED, "monty", kind, number, str(value)[:200]
  )


NOT_SANE = (10**13 + 1, -1e300, 10**400, math.inf, -math.inf, math.nan)
FAILURES = [each for each in results.Status if each.value != "returned"]


def failed(status=results.Status.FAILED):
  return results.Result(status, "cpython", reason="ZeroDivisionError")


def test_official_rules_of_the_released_code(shared):
  """All of its cases, the programs really run."""
  cases = json.loads((shared / "goldens/extract_cases.json").read_text())
  made = [make(case["dataset"], case["target"]) for case in cases]
  python = [i for i, case in enumerate(cases) if case["engine"] == "python"]
  assert len(cases) == 83
  sources_run = [
    programs.source(cases[i]["text"], made[i], mode="official") for i in python
  ]
  with executor.Executor() as engine:
    done = engine.run(sources_run, scopes="two")
  result = dict(zip(python, done, strict=True))
  for i, case in enumerate(cases):
    grade = grade_lib.grade(
      case["text"],
      made[i],
      reasoning=case["engine"],
      mode="official",
      result=result.get(i),
    )
    wanted = case["extracted"]
    if case["dataset"] != "mathqa" and wanted is not None:
      wanted = float(wanted)
    # As ==, except that nan, which the cases hold, is equal to itself alone.
    np.testing.assert_equal(grade.value, wanted, err_msg=case["why"])
    assert REWARD[grade.verdict] == case["reward"], case["why"]


NOT_NUMBERS = """
  1,00 1000,000 3,5 -$-5 $$5 **7 7** 2**3 7,8 $ % 1e nan inf -Infinity True
  1_000 ３ ٧ ² 1e400 1/2 --7 <7> seven .
"""
NOT_A_NUMBER = [
  *("7, 8", "7 - 8", "7 $ 8", "7 apples", "7\nThat is all.", "7 or 8", ""),
  *("1" + "0" * 30, "9" * 5000, "7" + prompts.ANSWER_TRIGGER),
]


@pytest.mark.parametrize(
  ("answer", "reference", "verdict"),
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
    ("$5", "5", CORRECT),
    ("$ 5.50", "5.5", CORRECT),
    ("-$5", "-5", CORRECT),
    ("5$", "5", CORRECT),
    ("5 $", "5", CORRECT),
    ("$-5", "-5", CORRECT),
    ("$ - 5", "-5", CORRECT),
    ("€7", "7", CORRECT),
    ("£7", "7", CORRECT),
    ("−7", "-7", CORRECT),
    ("−7", "7", WRONG),
    ("**7**", "7", CORRECT),
    ("**7.**", "7", CORRECT),
    ("**$7**.", "7", CORRECT),
    ("7,", "7", CORRECT),
    ("31.1%", "31.1", CORRECT),
    ("31.1 %.", "31.1", CORRECT),
    ("31.1 %", "0.311", WRONG),
    (".5", "0.5", CORRECT),
    ("1e3", "1000", CORRECT),
    ("1.5E-1", "0.15", CORRECT),
    ("7.011", "7", WRONG),
    ("7.009", "7", CORRECT),
    ("0.33", "0.3333333", CORRECT),
    ("0.04", "0.0416666", CORRECT),
    ("0", "0.005", WRONG),
    ("0.01", "0.005", WRONG),
    ("0", "0", CORRECT),
    ("-0.0", "0", CORRECT),
    ("0.009", "0", WRONG),
    ("0.00001", "0", WRONG),
    ("0.0000001", "0", CORRECT),
    ("-1e-9", "0", CORRECT),
    ("- 7", "-7", CORRECT),
    ("- 7", "7", WRONG),
    ("8" + prompts.ANSWER_TRIGGER + "7", "7", CORRECT),
    ("7" + prompts.ANSWER_TRIGGER + "8", "7", WRONG),
    *((text, "7", NONE) for text in [*NOT_NUMBERS.split(), *NOT_A_NUMBER]),
  ],
)
def test_strict_numbers(answer, reference, verdict):
  for task in NUMERIC:
    grade = grade_lib.grade(reply(answer), make(task, reference))
    assert grade.verdict == verdict
    assert (grade.value is None) == (verdict == NONE)
    assert grade.reached is None
    assert grade.supported is None


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
  assert grade_lib.grade(completion, make("gsm8k", "7")).verdict == NONE


@pytest.mark.parametrize(
  ("given", "task", "reference", "official", "strict"),
  [
    ("7", "gsm8k", "7", CORRECT, NONE),
    (reply("nan"), "gsm8k", "7", WRONG, NONE),
    (reply("inf"), "gsm8k", "7", WRONG, NONE),
    (reply("７"), "gsm8k", "7", CORRECT, NONE),
    (reply("1_000"), "gsm8k", "1000", CORRECT, NONE),
    (reply("9e99"), "gsm8k", "7", WRONG, NONE),
    (reply("0"), "mathqa-numeric", "0.005", CORRECT, WRONG),
    (reply("banana"), "mathqa", "c", WRONG, NONE),
    (reply("f"), "mathqa", "c", WRONG, NONE),
    (returned(True), "gsm8k", "1", CORRECT, NONE),
    (returned("7"), "gsm8k", "7", CORRECT, NONE),
    (returned(math.inf), "gsm8k", "7", WRONG, NONE),
    (returned(10**300), "gsm8k", "7", WRONG, NONE),
    (returned(7, "other"), "gsm8k", "7", CORRECT, NONE),
    (failed(), "mathqa", "c", WRONG, NONE),
    (returned(None), "mathqa", "c", WRONG, NONE),
    (returned(198), "mathqa", "c", WRONG, NONE),
    # What strict understands.
    (reply("1,000"), "gsm8k", "1000", NONE, CORRECT),
    (reply("$ 5.50"), "gsm8k", "5.5", NONE, CORRECT),
    (reply("31.1 %"), "gsm8k", "31.1", NONE, CORRECT),
    (reply("7."), "gsm8k", "7", CORRECT, CORRECT),
    ("3 + 4\nTherefore, the answer is:7", "gsm8k", "7", NONE, CORRECT),
    (reply("C."), "mathqa", "c", WRONG, CORRECT),
    (reply("(c)"), "mathqa", "c", WRONG, CORRECT),
    (returned(38), "mathqa", "a", WRONG, CORRECT),
    (returned("c)"), "mathqa", "c", WRONG, CORRECT),
    (reply("5$"), "gsm8k", "5", NONE, CORRECT),
    (reply("−7"), "gsm8k", "-7", NONE, CORRECT),
    (reply("- 7"), "gsm8k", "-7", NONE, CORRECT),
    (reply("**7**"), "gsm8k", "7", NONE, CORRECT),
    (reply("7,"), "gsm8k", "7", NONE, CORRECT),
    (reply("option c"), "mathqa", "c", WRONG, CORRECT),
    (reply("c ) 30"), "mathqa", "c", WRONG, CORRECT),
  ],
)
def test_where_the_modes_differ(given, task, reference, official, strict):
  """The examples of docs/answers.md, in its order."""
  made = choice(reference, task)
  for mode, verdict in (("official", official), ("strict", strict)):
    if isinstance(given, str):
      grade = grade_lib.grade(given, made, mode=mode)
    else:
      grade = grade_result(given, made, mode)
    assert grade.verdict == verdict


NOT_LETTERS = "f none 30 cc ｃ с [c] optionc **c c** 1"  # с is Cyrillic.
NOT_A_LETTER = [
  *('"C".', "c 30", "c, d", "c ) 38", "c ) 30 or a ) 38", "c ) 3 0", ""),
  *("c ) 30\nmore", "f ) 30", "answer : c", "c or d", "not c", "none of these"),
  *("c" * 5000, "c" + prompts.ANSWER_TRIGGER, "c\nThat is all."),
]


@pytest.mark.parametrize(
  ("answer", "verdict"),
  [
    ("c", CORRECT),
    ("C", CORRECT),
    ("c.", CORRECT),
    ("'c'", CORRECT),
    ("(c)", CORRECT),
    ("c )", CORRECT),
    ("b", WRONG),
    ("(C).", CORRECT),
    (" c\n", CORRECT),
    ("c )  .", CORRECT),
    ("option c", CORRECT),
    ("Option (C).", CORRECT),
    ("c,", CORRECT),
    ("**c**", CORRECT),
    ("**C) 30**.", CORRECT),
    ("(c) 30", CORRECT),
    ("c)  30.", CORRECT),
    ("b ) 27.675", WRONG),
    ("c ) 30", CORRECT),
    ("b" + prompts.ANSWER_TRIGGER + "c", CORRECT),
    ("c" + prompts.ANSWER_TRIGGER + "b", WRONG),
    *((text, NONE) for text in [*NOT_LETTERS.split(), *NOT_A_LETTER]),
  ],
)
def test_strict_letters(answer, verdict):
  for task in LETTERS:
    grade = grade_lib.grade(reply(answer), choice("c", task))
    assert grade.verdict == verdict
    assert grade.value == {CORRECT: "c", WRONG: "b", NONE: None}[verdict]


def test_only_offered_letters_are_answers():
  three = make("mathqa", "c", question="What?\na ) 1 , b ) 2 , c ) 3")
  assert grade_lib.grade(reply("b"), three).verdict == WRONG
  assert grade_lib.grade(reply("d"), three).verdict == NONE
  listed = make("mathqa", "b", question="What?\n['a ) 12', 'b ) 15']")
  assert grade_lib.grade(reply("b"), listed).verdict == CORRECT
  assert grade_lib.grade(reply("c"), listed).verdict == NONE
  unknown = make("mathqa", "b", question="What?")
  assert grade_lib.grade(reply("e"), unknown).verdict == WRONG
  assert grade_lib.grade(reply("f"), unknown).verdict == NONE


@pytest.mark.parametrize(
  ("result", "reference", "verdict"),
  [
    (returned(7), "7", CORRECT),
    (returned(7.0), "7", CORRECT),
    (returned(7.009), "7", CORRECT),
    (returned(7.011), "7", WRONG),
    (returned(-7), "-7", CORRECT),
    (returned(-7), "7", WRONG),
    (returned(0), "0", CORRECT),
    (returned(-0.0), "0", CORRECT),
    (returned(0.009), "0", WRONG),
    (returned(0.3 - 0.1 * 3), "0", CORRECT),
    (returned(0), "0.005", WRONG),
    (returned(0.33), "0.3333333", CORRECT),
    (returned(1000), "1,000", CORRECT),
    (returned(31.1), "0.311", WRONG),
    (returned(8), "7", WRONG),
    (returned(7, "exact"), "7", CORRECT),  # Fraction(14, 2)
    (returned(0.5, "exact"), "0.5", CORRECT),
    (returned(10**13), "10000000000000", CORRECT),
    *((returned(number), "7", NONE) for number in NOT_SANE),
    (returned(math.nan, "exact"), "7", NONE),  # Decimal("nan")
    (returned(True), "1", NONE),
    (returned(False), "0", NONE),
    *((returned(text), "7", NONE) for text in ("7", "seven", "nan", "")),
    (returned(None), "0", NONE),
    *((returned(other), "7", NONE) for other in ([7], {"a": 7}, (7,), 7 + 0j)),
    (returned(7, "other"), "7", NONE),  # An object with __float__.
    (failed(), "0", NONE),
    *((failed(status), "7", NONE) for status in FAILURES),
  ],
)
def test_strict_numbers_of_programs(result, reference, verdict):
  for task in NUMERIC:
    grade = grade_result(result, make(task, reference))
    assert grade.verdict == verdict
    assert (grade.value is None) == (verdict == NONE)
    assert grade.reached is None
    assert grade.supported is None


def grade_result(result, made, mode="strict"):
  return grade_lib.grade("", made, reasoning="python", mode=mode, result=result)


@pytest.mark.parametrize(
  ("result", "verdict", "reached", "supported"),
  [
    # A number stands for the option it is the value of.
    (returned(30), CORRECT, 30, True),
    (returned(30.0), CORRECT, 30, True),
    (returned(30.009), CORRECT, 30.009, True),
    (returned(30.02), NONE, 30.02, None),
    (returned(38), WRONG, 38, True),
    (returned(27.68), WRONG, 27.68, True),
    (returned(198), NONE, 198, None),
    (returned(-30), NONE, -30, None),
    (returned(0.3), NONE, 0.3, None),
    (returned(30, "exact"), CORRECT, 30, True),
    # A letter that is offered: nobody knows what it was worked out from.
    *(
      (returned(text), CORRECT, None, None)
      for text in ("c", "C", "'c'", "(c)", "c)", "C) 30")
    ),
    (returned("d) data  inadequate"), WRONG, None, None),
    (returned("d"), WRONG, None, None),
    # Nothing else is an answer.
    *(
      (returned(text), NONE, None, None)
      for text in ("C) 38", "f", "z", "30", "data inadequate", "none", "c 30")
    ),
    *((returned(other), NONE, None, None) for other in ("", None, True, ["c"])),
    *((returned(number), NONE, None, None) for number in NOT_SANE),
    *((failed(status), NONE, None, None) for status in FAILURES),
  ],
)
def test_strict_letters_of_programs(result, verdict, reached, supported):
  for task in LETTERS:
    grade = grade_result(result, choice("c", task))
    assert grade.verdict == verdict
    assert (grade.value is None) == (verdict == NONE)
    assert grade.reached == reached
    assert grade.supported is supported


def test_a_program_cannot_mean_two_options_at_once():
  twice = choice("c", options="\na ) s . 429 , b ) s . 352 , c ) s . 429")
  assert grade_result(returned(429), twice).verdict == NONE
  assert grade_result(returned(352), twice).verdict == WRONG
  assert grade_result(returned("c"), twice).verdict == CORRECT
  near = choice("b", options="\na ) 2.91 sec , b ) 2.905 sec , c ) 3")
  assert grade_result(returned(2.905), near).verdict == CORRECT
  assert grade_result(returned(2.91), near).verdict == WRONG


@pytest.mark.parametrize(
  ("result", "task", "reference", "value", "verdict"),
  [
    (returned("7"), "gsm8k", "7", 7.0, CORRECT),
    (returned(True), "svamp", "1", 1.0, CORRECT),
    (returned(math.inf), "mathqa-numeric", "7", math.inf, WRONG),
    (returned(0), "mathqa-numeric", "0.005", 0.0, CORRECT),
    (returned(10**15), "gsm8k", "7", 1e15, WRONG),
    (returned([7]), "gsm8k", "7", None, NONE),
    (failed(), "gsm8k", "7", None, NONE),
    (returned("C"), "mathqa", "c", "c", CORRECT),
    (returned("'c' "), "mathqa", "c", "c", CORRECT),
    (returned("c)"), "mathqa", "c", "c)", WRONG),
    (returned(30), "mathqa", "c", "30", WRONG),
    (returned(True), "mathqa", "c", "true", WRONG),
    (returned(None), "mathqa", "c", "none", WRONG),
    (failed(), "mathqa", "c", "none", WRONG),
    (failed(), "mathqa", "none", "none", CORRECT),
    (failed(results.Status.TIMED_OUT), "embedded-choice", "c", "none", WRONG),
  ],
)
def test_official_rules_for_programs(result, task, reference, value, verdict):
  made = choice(reference, task)
  grade = grade_result(result, made, mode="official")
  assert (grade.value, grade.verdict) == (value, verdict)


@pytest.mark.parametrize(
  ("reasoning", "letter", "reached", "supported"),
  [
    ("5 * 6 = 30", "c", 30, True),
    ("5 * 6 = 30", "a", 30, False),
    ("5 * 6 = 30.", "c", 30, True),
    ("x = 5 , 5 * 6 = rs . 30 , so", "c", 30, True),
    ("5 * 6 = $ 30", "c", 30, True),
    ("= 30 , then 30 + 8 = 38", "c", 38, False),
    ("= 30 , then 30 + 8 = 38", "a", 38, True),
    ("30 is 5 * 6", "c", 6, False),  # Without an `=`, the last number of all.
    ("the 2 make 30", "c", 30, True),
    ("60 / 2 = 60 / 2", "c", 30, True),
    ("= 3,000 / 100", "c", 30, True),
    ("= − 30", "c", -30, False),
    ("= 27.68", "b", 27.68, True),
    ("= 27.7", "b", 27.7, False),
    ("it has to be this one", "c", None, False),
    ("= 5 / 0", "c", None, False),
    ("= " + "9" * 400, "c", None, False),
    # It cannot be told what a letter without a value rests on.
    ("5 * 6 = 30", "d", 30, None),
    ("no way to tell", "e", None, None),
  ],
)
def test_what_a_letter_rests_on(reasoning, letter, reached, supported):
  text = f"{reasoning}{prompts.ANSWER_TRIGGER}{letter}"
  for mode in grade_lib.MODES:
    for completion in (text, prompts.prompt(choice("c")) + text):
      grade = grade_lib.grade(completion, choice("c"), mode=mode)
      assert grade.value == letter
      assert grade.reached == reached
      assert grade.supported is supported


def test_what_rests_on_nothing():
  """Neither where no letter was named nor where none can be looked up."""
  unnamed = grade_lib.grade("5 * 6 = 30", choice("c"))
  assert (unnamed.reached, unnamed.supported) == (30, None)
  unlisted = grade_lib.grade(reply("c"), make("mathqa", "c"))
  assert (unlisted.verdict, unlisted.supported) == (CORRECT, None)


TEXTS = st.one_of(
  st.text(), st.text(alphabet="0123456789+-.,$%eE_ \n'\"()=/abc"), st.floats()
)


@hypothesis.given(
  text=TEXTS,
  task=st.sampled_from(sorted(grade_lib.TASKS)),
  mode=st.sampled_from(grade_lib.MODES),
)
def test_no_completion_makes_grading_raise(text, task, mode):
  made = choice("c", task) if task in LETTERS else make(task, "7")
  for completion in (str(text), reply(text), f"{text}{reply('c')}"):
    check(grade_lib.grade(completion, made, mode=mode), mode)
    programs.source(completion, made, mode=mode)


@hypothesis.given(
  result=st.builds(
    results.Result,
    st.sampled_from(results.Status),
    st.just("monty"),
    st.sampled_from(["int", "float", "exact", "bool", "text", "none", "other"]),
    st.none() | st.floats(),
    st.none() | TEXTS.map(str),
  ),
  task=st.sampled_from(sorted(grade_lib.TASKS)),
  mode=st.sampled_from(grade_lib.MODES),
)
def test_no_result_makes_grading_raise(result, task, mode):
  made = choice("c", task) if task in LETTERS else make(task, "7")
  check(grade_result(result, made, mode), mode)


def check(grade, mode):
  assert (grade.value is None) == (grade.verdict == NONE)
  if mode == "strict":
    assert not isinstance(grade.value, float) or abs(grade.value) <= 1e13
    assert not isinstance(grade.value, str) or grade.value in "abcde"
  assert grade.reached is None or math.isfinite(grade.reached)


def test_a_program_needs_its_result():
  with pytest.raises(ValueError, match="result"):
    grade_lib.grade("    return 7", make("gsm8k", "7"), reasoning="python")


@hypothesis.given(
  value=st.one_of(
    st.integers(-(10**12), 10**12),
    st.decimals(-(10**6), 10**6, places=4, allow_nan=False),
  ),
  mode=st.sampled_from(grade_lib.MODES),
  task=st.sampled_from(NUMERIC),
)
def test_a_plain_number_is_its_own_answer(value, mode, task):
  made = make(task, str(value))
  hypothesis.assume(mode == "official" or "E" not in str(value))
  assert grade_lib.grade(reply(value), made, mode=mode).verdict == CORRECT


@hypothesis.given(
  value=st.integers(-(10**9), 10**9), reference=st.integers(-(10**9), 10**9)
)
def test_strict_reads_a_number_however_it_is_written(value, reference):
  made = make("gsm8k", str(reference))
  wanted = grade_lib.grade(reply(value), made)
  assert wanted.verdict == (CORRECT if value == reference else WRONG)
  for written in (f"{value:,}", f"{value}.", f"{value}.00", f"{value} %"):
    assert grade_lib.grade(reply(written), made) == wanted


def test_the_prompt_in_front_changes_nothing():
  made = make("gsm8k", "7")
  for mode in grade_lib.MODES:
    for completion in (reply("7"), reply("8"), "no idea"):
      with_prompt = prompts.prompt(made) + completion
      assert grade_lib.grade(with_prompt, made, mode=mode) == grade_lib.grade(
        completion, made, mode=mode
      )


@pytest.mark.parametrize("mode", grade_lib.MODES)
@pytest.mark.parametrize(
  "name",
  ["svamp_nl.json", "gsm8k_original_train.jsonl", "gsm8k_original_test.jsonl"],
)
def test_every_annotated_row_grades_correct(shared, name, mode):
  rows = sources.load(str(shared / "data" / name)).problems
  assert len(rows) > 1000
  for row in rows:
    grade = grade_lib.grade(prompts.target(row), row, mode=mode)
    assert grade.verdict == CORRECT, row.uid


@pytest.mark.parametrize("mode", grade_lib.MODES)
@pytest.mark.parametrize(
  ("task", "size"),
  [
    ("svamp", 1000),
    ("gsm8k", 1319),
    ("mathqa", 1605),
    ("mathqa-numeric", 1605),
  ],
)
def test_every_test_answer_grades_correct(shared, task, size, mode):
  loaded = sources.load(str(shared / "data" / f"{task}_test_set.json"))
  rows = loaded.problems
  assert (len(rows), loaded.left_out) == (size, 0)
  assert {row.task for row in rows} == {task}
  for row in rows:
    for completion in (reply(row.answer), prompts.bare(row)):
      grade = grade_lib.grade(completion, row, mode=mode)
      assert grade.verdict == CORRECT, row.uid


@pytest.mark.parametrize(
  ("made", "arguments", "words"),
  [
    (make("gsm9k", "7"), {}, ["gsm9k", "data.task", "gsm8k", "mathqa-numeric"]),
    (make("gsm8k", "seven"), {}, ["seven", "x_0", "number"]),
    (make("gsm8k", "nan"), {}, ["nan", "number"]),
    (make("mathqa", "38"), {}, ["38", "letter"]),
    (make("embedded-choice", "38"), {}, ["38", "letter"]),
    (make("gsm8k", "7"), {"mode": "lenient"}, ["lenient", "strict"]),
    (make("gsm8k", "7"), {"reasoning": "latin"}, ["latin", "nl", "python"]),
  ],
)
def test_what_the_user_got_wrong_is_named(made, arguments, words):
  with pytest.raises(errors.UserError) as raised:
    grade_lib.grade(reply("7"), made, **arguments)
  for word in words:
    assert word in str(raised.value)
