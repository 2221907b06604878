import json

import pytest

from reft_jax.tasks import problem
from reft_jax.tasks.answers import choices

LINE = "a ) 38 , b ) 27.675 , c ) $ 3,375 , d ) data inadequate , e ) none"


@pytest.mark.parametrize(
  ("line", "texts"),
  [
    (LINE, ["38", "27.675", "$ 3,375", "data inadequate", "none"]),
    ("['a ) 12', 'b ) 15', 'c ) 10']", ["12", "15", "10"]),
    ('["a ) 12", "b ) 15 sq . m"]', ["12", "15 sq . m"]),
    ("[' a ) 12 ', ' b ) 15 ']", ["12", "15"]),
    ("A) 1, B) 2, C) 3, D) 4", ["1", "2", "3", "4"]),
    ("a)1,b)2", ["1", "2"]),
    (
      "a ) 4 , 3 , b ) 4 , 4 , c ) 1 , 000,000",
      ["4 , 3", "4 , 4", "1 , 000,000"],
    ),
    ("a ) a ) 2 , b ) b ) 5", ["a ) 2", "b ) 5"]),
    ("a ) f ( x , y ) , b ) 2", ["f ( x , y )", "2"]),
    ("a ) , b ) 2", ["", "2"]),
    ("a ) 38 b ) 27.5 c ) 1 , 2", ["38", "27.5", "1 , 2"]),
    ("A) 1 B) 2", ["1", "2"]),
    ("a ) f ( b ) b ) 2", ["f ( b )", "2"]),
    ("a ) 38 c ) 27", []),
    ("a ) 38", []),
    ("take a ) 38 b ) 27", []),
    ("b ) 38 a ) 27", []),
    ("How many?", []),
    ("He has 3 , a few more", []),
    ("", []),
  ],
)
def test_options_are_told_apart(line, texts):
  for question in (f"How many?\n{line}", f" Long\nquestion?\n{line}\n"):
    found = choices.options(question)
    assert list(found) == list("abcde"[: len(texts)])
    assert [option.text for option in found.values()] == texts


def test_options_have_values():
  values = [option.value for option in choices.parse(LINE).values()]
  assert values == [38, 27.675, 3375, None, None]


def test_letters_that_may_be_chosen():
  assert choices.offered("?\na ) 1 , b ) 2") == {"a", "b"}
  assert choices.offered("How many?") == set("abcde")
  assert choices.offered("?\na ) 1") == set("abcde")


def test_questions_without_their_options():
  question = " Two\nlines? \n" + LINE
  assert choices.without_options(question) == "Two\nlines?"
  assert choices.without_options("Two\nlines?") == "Two\nlines?"


@pytest.mark.parametrize(
  ("number", "letter"),
  [
    (38, "a"),
    (38.009, "a"),
    (38.02, None),
    (27.68, "b"),
    (3375, "c"),
    (-38, None),
    (0, None),
    (float("nan"), None),
  ],
)
def test_the_option_of_a_number(number, letter):
  assert choices.nearest(f"?\n{LINE}", number) == letter


def test_of_close_options_the_closest_is_meant():
  question = "?\na ) 1.000 , b ) 1.008 , c ) 2 , d ) 2.0"
  assert choices.nearest(question, 1.003) == "a"
  assert choices.nearest(question, 1.005) == "b"
  assert choices.nearest(question, 2) is None


@pytest.mark.parametrize(
  ("letter", "reached", "supported"),
  [
    ("a", 38, True),
    ("a", 38.009, True),
    ("a", 37, False),
    ("a", None, False),
    ("c", 3375, True),
    ("d", 38, None),
    ("d", None, None),
    ("f", 38, None),
  ],
)
def test_whether_a_number_backs_a_letter(letter, reached, supported):
  assert choices.supported(f"?\n{LINE}", letter, reached) is supported


def test_what_one_letter_scores():
  problems = [
    problem.Problem(f"mathqa_{i}", "mathqa", "?", None, answer)
    for i, answer in enumerate("bCcab")
  ]
  assert choices.constant_letter(problems) == ("b", 0.4)
  assert choices.constant_letter(problems[1:3]) == ("c", 1.0)


def test_every_question_of_mathqa_offers_five_letters(shared):
  rows = json.loads((shared / "data/mathqa_test_set.json").read_text())
  assert len(rows) == 1605
  texts = 0
  for row in rows:
    found = choices.options(row["question"])
    assert list(found) == list("abcde"), row["item_id"]
    assert all(option.text for option in found.values()), row["item_id"]
    texts += sum(option.value is None for option in found.values())
  assert texts == 186  # Of 8,025: `none of these` and the like.
  problems = [
    problem.Problem(
      row["item_id"], "mathqa", row["question"], None, row["answer_value"]
    )
    for row in rows
  ]
  assert choices.constant_letter(problems) == ("c", 370 / 1605)
