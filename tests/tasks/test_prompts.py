import contextlib
import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.tasks import problem, prompts, sources
from reft_jax.tasks.answers import grade

PROBLEM = problem.Problem(
  "svamp_0", "svamp", " How many?\n", "\n3 + 4 = 7 ", "7.0"
)
BODY = "    a = 3\n    return a + 4"


def program(text, question="How many?"):
  return dataclasses.replace(PROBLEM, question=question, rationale=text)


def test_templates():
  assert prompts.prompt(PROBLEM) == "Question:\nHow many?\nAnswer reasoning:\n"
  assert prompts.target(PROBLEM) == "3 + 4 = 7\nTherefore, the answer is: 7.0"
  assert prompts.prompt(PROBLEM, "python") == (
    "Question:\nHow many?\nAnswer reasoning:\n"
    'def solution():\n    """How many?"""\n'
  )


def test_without_a_rationale_there_is_nothing_to_learn():
  bare = problem.Problem("svamp_0", "svamp", "How many?", None, "7")
  for reasoning in prompts.REASONINGS:
    with pytest.raises(errors.UserError, match=r"svamp_0 .*answer_cot"):
      prompts.target(bare, reasoning)


@pytest.mark.parametrize(
  "write", [prompts.prompt, prompts.target, prompts.bare]
)
def test_unknown_reasoning_names_what_exists(write):
  with pytest.raises(errors.UserError, match=r"latin.*choose.*nl, python"):
    write(PROBLEM, "latin")


@hypothesis.given(
  question=st.text(),
  rationale=st.text(min_size=1).filter(str.strip),
  value=st.integers(-999, 999),
  mode=st.sampled_from(grade.MODES),
)
def test_targets_grade_correct_whatever_the_texts(
  question, rationale, value, mode
):
  made = problem.Problem("x_0", "gsm8k", question, rationale, str(value))
  for completion in (prompts.target(made), prompts.bare(made)):
    text = prompts.prompt(made) + completion
    verdict = grade.grade(text, made, mode=mode).verdict
    assert verdict == grade.Verdict.CORRECT


@pytest.mark.parametrize(
  ("answer", "line"),
  [("7", "7.0"), ("1,000", "1000.0"), ("-0.5", "-0.5"), ("c", "'c'")],
)
def test_a_program_of_the_bare_answer(answer, line):
  made = dataclasses.replace(PROBLEM, answer=answer)
  assert prompts.bare(made, "python") == f"    return {line}"


@pytest.mark.parametrize(
  "text",
  [
    f'def solution():\n    """How many?"""\n{BODY}',
    f'\ndef solution():\n    """How many?"""\n{BODY}\n',
    # The docstring says it in other words, quotes or lines, or not at all.
    f'def solution():\n    """How   many ?"""\n{BODY}',
    f"def solution():\n    '''How many?'''\n{BODY}",
    f"def solution():\n    'How many?'\n{BODY}",
    f'def solution():\n    r"""\\How many?"""\n{BODY}',
    f'def solution():\n    """50 \\% of\n\n  how many?\n    """\n{BODY}',
    f'def solution():\n    """How\u2028 many?"""\n{BODY}',
    f"def solution():\n{BODY}",
    f"def solution( ) -> int:  # As asked\n{BODY}",
    # However it is indented, whatever ends its lines.
    "def solution():\n  a = 3\n  return a + 4",
    'def solution():\n\t"""How many?"""\n\ta = 3\n\treturn a + 4',
    f'def solution():\n    """How many?"""\n{BODY}'.replace("\n", "\r\n"),
    # Nothing is run after a blank line, so none are taught.
    f'def solution():\n    """How many?"""\n\n{BODY}',
    "def solution():\n    a = 3\n   \n\n    return a + 4\n",
    # What comes after is dropped.
    f"def solution():\n{BODY}\n\nprint(solution())",
  ],
)
def test_programs_go_on_where_the_prompt_ends(text):
  assert prompts.target(program(text), "python") == BODY


def test_comments_and_what_comes_before_are_kept():
  text = (
    "import math\n\ndef half(x):\n  return x / 2\n\ndef solution():\n"
    '  """How many?"""\n  # First half,\n  a = half(6)\n'
    "  if a:  # then all.\n    return math.floor(a)"
  )
  assert prompts.target(program(text), "python") == (
    "    import math\n    def half(x):\n      return x / 2\n"
    "    # First half,\n    a = half(6)\n"
    "    if a:  # then all.\n      return math.floor(a)"
  )


@pytest.mark.parametrize("question", ['Say "hi"', 'A """b"""?', "back\\"])
def test_quotes_in_the_question_do_not_matter(question):
  made = program(
    f'def solution():\n    """{question}"""\n{BODY}', question=f" {question}\n"
  )
  assert prompts.target(made, "python") == BODY


@pytest.mark.parametrize(
  "text",
  [
    "3 + 4 = 7",
    "We add them.",
    "def solve():\n    return 7",
    "solution = 7",
    "def solution():\n    return 7 +",
    "def solution(): return 7",
    'def solution():\n    """How many?"""',
    "class A:\n    def solution():\n        return 7",
    'def solution():\n    a = """\nb"""\n   return 7',
    "x = 3\n```python\ndef solution():\n    return 7",
    "def solution():\n    return '\0'",
    "(" * 5000,
  ],
)
def test_what_is_no_program_is_named(text):
  with pytest.raises(errors.UserError, match=r"svamp_0 .*reasoning=nl"):
    prompts.target(program(text), "python")


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("3 + 4 = 7", "does not compile"),
    ("def solve():\n    return 7", "does not define solution"),
    ("def solution(): return 7", "on one line"),
    ('def solution():\n    """How many?"""', "only a docstring"),
    ("def solution(n=7):\n    return n", "takes parameters"),
    ("def solution(*, n):\n    return n", "takes parameters"),
    ("def solution(**n):\n    return n", "takes parameters"),
    ("def solution():\n    return solution() + 1", "calls itself"),
    ("x = 1\ndef solution():\n    global x\n    return x", "global statement"),
    ("from sympy import *\ndef solution():\n    return 7", r"import \*"),
    ("def solution():\n    return 7\n    break", "'break' outside loop"),
  ],
)
def test_what_is_wrong_with_a_program_is_said(text, reason):
  with pytest.raises(errors.UserError, match=f"svamp_0 .*{reason}.*=nl"):
    prompts.target(program(text), "python")


def test_a_program_is_not_taught_as_words():
  text = f"\ndef solution():\n{BODY}"
  with pytest.raises(errors.UserError, match=r"svamp_0 is a program.*=python"):
    prompts.target(program(text))


@hypothesis.given(text=st.text(), question=st.text())
def test_annotations_never_crash(text, question):
  made = program(text or "?", question)
  with contextlib.suppress(errors.UserError):
    prompts.target(made, "python")


def test_annotated_programs_are_taught_as_they_are(shared):
  """To the letter: no line of SVAMP's is changed, dropped or added."""
  rows = sources.load(str(shared / "data/svamp_python_sdp.json")).problems
  assert len(rows) == 3043
  for row in rows:
    _, _, *lines = row.rationale.split("\n")
    assert prompts.target(row, "python") == "\n".join(lines)
