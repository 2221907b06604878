import dataclasses

import pytest

from reft_jax.tasks import problem, programs, prompts, sources
from reft_jax.tasks.answers import grade as grade_lib
from reft_jax.tasks.sandbox import executor

PROBLEM = problem.Problem("gsm8k_0", "gsm8k", " How many?\n", None, "7")
PROMPT = prompts.prompt(PROBLEM, "python")
HEAD = 'def solution():\n    """How many?"""\n'
BODY = "    a = 3\n    return a + 4"


@pytest.mark.parametrize(
  ("completion", "strict", "official"),
  [
    (BODY, BODY, BODY),
    (BODY + "\n\nThat is all.", BODY, BODY),
    (BODY + "\n", BODY, BODY),
    ("    a = 3\n  \t\n    return 7", "    a = 3", "    a = 3"),
    ("", "", ""),
    ("\n" + BODY, "", ""),
    (BODY + "\nx = 1 / 0", BODY + "\nx = 1 / 0", BODY + "\nx = 1 / 0"),
    ("    sys.exit(7)", "    sys.exit(7)", "    print(7)"),
  ],
)
def test_what_is_run(completion, strict, official):
  for text in (completion, PROMPT + completion):
    run = programs.source(text, PROBLEM, mode="strict")
    assert run.rstrip() == f"def solution():\n{strict}".rstrip()
    run = programs.source(text, PROBLEM, mode="official")
    assert run.rstrip() == f"{HEAD}{official}".rstrip()


@pytest.mark.parametrize(
  ("completion", "expected"),
  [
    ("   a = 3\n    return a", "    a = 3\n    return a"),
    ("   return 7", "    return 7"),
    ("   if a:\n        b\n    return 7", "    if a:\n        b\n    return 7"),
    ("   a = 3\n    return a\n\nbye", "    a = 3\n    return a"),
    # Meant so, or beyond help.
    ("   a = 3\n   return a", "   a = 3\n   return a"),
    (
      "   for a in b:\n     c\n   return a",
      "   for a in b:\n     c\n   return a",
    ),
    ("  a = 3\n    return a", "  a = 3\n    return a"),
    ("     a = 3\n    return a", "     a = 3\n    return a"),
    ("\n   a = 3\n    return a", ""),
  ],
)
def test_a_space_that_decoding_took_is_given_back(completion, expected):
  run = programs.source(completion, PROBLEM, mode="strict")
  assert run.rstrip() == f"def solution():\n{expected}".rstrip()
  run = programs.source(completion, PROBLEM, mode="official")
  assert run.rstrip() == f"{HEAD}{expected}".rstrip()


def test_official_programs_are_what_follows_the_last_trigger():
  whole = "def solution():\n    return 8"
  text = f"{PROMPT}{BODY}{prompts.COT_TRIGGER}{whole}"
  assert programs.source(text, PROBLEM, mode="official") == whole
  for start in ("Question:\nHow many?", BODY):
    text = f"{start}{prompts.COT_TRIGGER}{whole}\n"
    assert programs.source(text, PROBLEM, mode="official") == whole


def test_a_question_cannot_break_a_strict_program():
  for question in ('Say "hi"', 'A """b"""?', "one\n\ntwo", "back\\"):
    made = dataclasses.replace(PROBLEM, question=question)
    for start in ("", prompts.prompt(made, "python")):
      run = programs.source(start + BODY, made, mode="strict")
      assert run == f"def solution():\n{BODY}"


@pytest.mark.slow
def test_annotated_programs_run_to_the_reference_answers(shared):
  """Their targets, parsed and run, in both modes."""
  rows = sources.load(str(shared / "data/svamp_python_sdp.json")).problems
  assert len(rows) == 3043
  for mode, scopes in (("strict", "one"), ("official", "two")):
    texts = [prompts.target(row, "python") for row in rows]
    with executor.Executor() as engine:
      done = engine.run(
        [
          programs.source(text, row, mode=mode)
          for text, row in zip(texts, rows, strict=True)
        ],
        scopes=scopes,
      )
    for row, text, result in zip(rows, texts, done, strict=True):
      grade = grade_lib.grade(
        text, row, reasoning="python", mode=mode, result=result
      )
      assert grade.verdict is grade_lib.Verdict.CORRECT, (row.uid, result)


def test_letters_by_programs():
  """A value, a letter or nothing, from completion to grade."""
  question = "How many?\na ) 12 , b ) 1 / 2 , c ) $ 7 , d ) 8 , e ) none"
  made = problem.Problem("mathqa_0", "mathqa", question, None, "c")
  bodies = {
    BODY: ("c", 7, True),
    "    return 6 / 12": ("b", 0.5, True),
    "    from fractions import Fraction\n    return Fraction(1, 2)": (
      "b",
      0.5,
      True,
    ),
    "    return sympy.Integer(8)": ("d", 8, True),
    "    return 'e'": ("e", None, None),
    "    return 9": (None, 9, None),
    "    return 1 / 0": (None, None, None),
    "    return 'none'": (None, None, None),
    prompts.bare(made, "python"): ("c", None, None),
  }
  with executor.Executor() as engine:
    for body, (letter, reached, supported) in bodies.items():
      (result,) = engine.run([programs.source(body, made, mode="strict")])
      grade = grade_lib.grade(body, made, reasoning="python", result=result)
      assert grade.value == letter
      assert (grade.reached, grade.supported) == (reached, supported)
