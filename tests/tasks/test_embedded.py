import ast
import collections
import dataclasses
import hashlib
import re
import subprocess
import sys

import hypothesis
import pytest
import transformers
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.tasks import embedded, programs, prompts
from reft_jax.tasks.answers import choices as choices_lib
from reft_jax.tasks.answers import grade as grade_lib
from reft_jax.tasks.sandbox import executor

SEEDS = st.integers(0, 2**32)
MERGES = st.sampled_from([0.0, 0.3, 0.7, 1.0])


@pytest.fixture(scope="module")
def words():
  return tokenizer_lib.wrap(embedded.tokenizer())


@pytest.fixture(scope="module")
def more_words():
  return tokenizer_lib.wrap(embedded.tokenizer(choices=True, programs=True))


def equations(text):
  """(left, right) of every equation."""
  return re.findall(r"([0-9( ][-+*/0-9() ]*) = ([0-9]+)", text)


def holds(left, right):
  assert re.fullmatch(r"[-+*/0-9() ]+", left)
  return eval(left) == int(right)  # Digits and operators only.


def outcome(start, events):
  value = start
  for sign, number in events:
    value = {
      "+": value + number,
      "-": value - number,
      "*": value * number,
      "/": value / number,
    }[sign]
    assert 0 <= value <= 99
    assert value == int(value)
  return int(value)


@hypothesis.given(seed=SEEDS, merge=MERGES)
def test_problems_are_solved_right(seed, merge):
  for row in embedded.problems(20, seed, merge=merge):
    start, events = embedded.signature(row.question)
    assert 3 <= len(events) <= 4
    assert outcome(start, events) == int(row.answer)
    found = equations(row.rationale)
    assert all(holds(*equation) for equation in found)
    assert found[-1][1] == row.answer
    operators = re.findall(r" [-+*/] ", row.rationale)
    assert len(operators) == len(events)
    if merge == 0:
      assert len(found) == len(events)
    if merge == 1:
      assert len(found) == 1
    for mode in grade_lib.MODES:
      grade = grade_lib.grade(prompts.target(row), row, mode=mode)
      assert grade.verdict == grade_lib.Verdict.CORRECT


def test_merging_shortens():
  def mean_equations(merge):
    rows = embedded.problems(500, 0, merge=merge)
    return sum(row.rationale.count("=") for row in rows) / len(rows)

  # 2.5 places to merge on average.
  assert mean_equations(0.0) == pytest.approx(3.5, abs=0.1)
  assert mean_equations(0.7) == pytest.approx(1 + 0.3 * 2.5, abs=0.1)
  assert mean_equations(1.0) == 1


def test_a_word_first_and_a_space_before_every_number():
  rows = embedded.problems(300, 0, merge=0.7)
  texts = [prompts.prompt(row) + prompts.target(row) for row in rows]
  for text in texts + embedded.corpus(1000, 0):
    assert re.findall("[0-9]+", text) == re.findall("(?<= )[0-9]{1,2}", text)
  assert all(row.rationale[0].isalpha() for row in rows)


def test_splits_share_no_problem():
  test = embedded.problems(1000, 1)
  held_out = embedded.signatures(test)
  assert len(held_out) == 1000
  train = embedded.problems(500, 0, merge=0.7, exclude=held_out)
  assert len({row.uid for row in train}) == 500
  assert not held_out & embedded.signatures(train)
  # Short problems are few, so that the corpus would repeat some.
  short = {"min_events": 1, "max_events": 2}
  held_out = embedded.signatures(embedded.problems(200, 1, **short))

  def repeated(**exclude):
    documents = embedded.corpus(5000, 0, drills=0, **short, **exclude)
    return any(embedded.signature(each) in held_out for each in documents)

  assert repeated()
  assert not repeated(exclude=held_out)


def solved_right(document):
  start, events = embedded.signature(document)
  solution = document.split(prompts.COT_TRIGGER)[1]
  found = equations(solution)
  return (
    all(holds(*each) for each in found)
    and len(re.findall(r" [-+*/] ", solution)) == len(events)
    and int(found[-1][1]) == outcome(start, events)
  )


# What a setting of the corpus is the rate of, in documents with a question.
RATES = {
  "noise": lambda document: not solved_right(document),
  "answer_phrase": lambda document: bool(ENDING.search(document)),
  "choices": lambda document: "\na ) " in document,
  "programs": lambda document: prompts.DEFINITION in document,
}
ENDING = re.compile(r"answer is: ([0-9]+)$")


@pytest.mark.parametrize("setting", RATES)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_rates(setting, rate):
  documents = embedded.corpus(3000, 0, drills=0, **{setting: rate})
  found = sum(map(RATES[setting], documents)) / len(documents)
  # A wrong step can come out right, but seldom.
  assert found == pytest.approx(rate, abs=0.04)


def test_the_answer_phrase_names_the_result():
  for document in embedded.corpus(1000, 0, answer_phrase=1, drills=0):
    assert ENDING.search(document)[1] == equations(document)[-1][1]


def test_endings_are_a_fraction_of_the_documents_with_a_question():
  documents = embedded.corpus(4000, 0, answer_phrase=0.5, drills=0.5)
  asked = [each for each in documents if "Question" in each]
  ended = sum(map(RATES["answer_phrase"], asked))
  assert ended / len(asked) == pytest.approx(0.5, abs=0.04)
  for drill in set(documents) - set(asked):
    assert re.search(r"= [0-9]+\.$", drill)


def test_corpus_mixes_granularities():
  documents = embedded.corpus(2000, 0, noise=0.0, drills=0)
  steps = [
    (len(equations(each)), len(embedded.signature(each)[1]))
    for each in documents
  ]
  assert {made for made, _ in steps} == {1, 2, 3, 4}
  assert sum(made == 1 for made, _ in steps) > 200
  assert sum(made == events for made, events in steps) > 200


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_rate_of_drills(rate):
  documents = embedded.corpus(2000, 0, drills=rate, noise=0.0)
  drills = [each for each in documents if "Question" not in each]
  assert len(drills) / 2000 == pytest.approx(rate, abs=0.04)
  for drill in drills:
    assert all(holds(*each) for each in equations(drill))
    assert len(re.findall(r" [-+*/] ", drill)) == 9


def test_some_questions_hold_a_fact_beside_the_point():
  rows = embedded.problems(2000, 0)
  beside = [re.search(r"(is|sees) [0-9]", row.question) for row in rows]
  share = sum(match is not None for match in beside) / len(rows)
  assert 0.3 < share < 0.5


def test_a_seed_is_all_it_takes():
  program = (
    "from reft_jax.tasks import embedded;"
    "print(embedded.problems(50, 3, merge=.7), embedded.corpus(50, 3))"
  )
  texts = {
    subprocess.run(
      [sys.executable, "-c", program],
      env={"PYTHONHASHSEED": hash_seed},
      cwd=embedded.__file__.rpartition("reft_jax")[0],
      capture_output=True,
      check=True,
    ).stdout
    for hash_seed in ("1", "2")
  }
  assert len(texts) == 1
  assert embedded.problems(50, 3) != embedded.problems(50, 4)
  assert embedded.corpus(50, 3) != embedded.corpus(50, 4)


def test_numbers_and_special_tokens_have_one_id_each(words):
  assert len({words.pad_id, *words.eos_ids, words.hf.unk_token_id}) == 3
  numbers = [words.encode(f" {number}") for number in range(100)]
  assert all(len(ids) == 1 for ids in numbers)


def test_tokenizer_opens_elsewhere(words, tmp_path):
  words.save(tmp_path)
  opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
  text = embedded.corpus(1, 0)[0]
  assert opened.encode(text, add_special_tokens=False) == words.encode(text)
  assert opened.decode(words.encode(text)) == text
  assert tokenizer_lib.load(tmp_path).fingerprint == words.fingerprint


def digest(thing):
  return hashlib.sha256(repr(thing).encode()).hexdigest()[:16]


def test_without_options_and_programs_nothing_changes():
  """What the default run learns from is pinned, text by text."""
  rows = embedded.problems(500, 0, merge=0.7)
  assert digest([dataclasses.astuple(row) for row in rows]) == (
    "e19f817e47973a14"
  )
  assert digest(embedded.corpus(5000, 0)) == "9950cfa60e6cfa50"
  vocabulary = embedded.tokenizer().get_vocab()
  in_order = sorted(vocabulary.items(), key=lambda item: item[1])
  assert digest(in_order) == "999cd54e3cba4f6f"


@hypothesis.given(seed=SEEDS, merge=MERGES)
@hypothesis.settings(max_examples=30)
def test_a_story_is_the_same_in_every_form(seed, merge):
  plain = embedded.problems(20, seed, merge=merge)
  offered = embedded.problems(20, seed, merge=merge, choice=True)
  assert embedded.signatures(offered) == embedded.signatures(plain)
  for row, choice in zip(plain, offered, strict=True):
    assert choices_lib.without_options(choice.question) == row.question
    assert choice.rationale == row.rationale
    options = choices_lib.options(choice.question)
    assert options[choice.answer].value == int(row.answer)
    assert choice.uid == row.uid.replace("embedded", "embedded-choice")
  for choice in (False, True):
    kind = {"merge": merge, "choice": choice}
    told = embedded.problems(20, seed, **kind)
    coded = embedded.problems(20, seed, **kind, reasoning="python")
    for sentence, program in zip(told, coded, strict=True):
      assert program.rationale != sentence.rationale
      assert program == dataclasses.replace(
        sentence, rationale=program.rationale
      )


def test_options_differ_and_give_nothing_away():
  rows = embedded.problems(2000, 0, choice=True)
  for row in rows:
    offered = choices_lib.options(row.question)
    assert list(offered) == list("abcde")
    values = [option.value for option in offered.values()]
    assert len(set(values)) == len(values)
    assert all(0 <= value <= 99 for value in values)
  letters = collections.Counter(row.answer for row in rows)
  assert all(
    share / 2000 == pytest.approx(0.2, abs=0.04) for share in letters.values()
  )


@hypothesis.given(seed=SEEDS, merge=MERGES)
def test_right_letters_are_reached(seed, merge):
  for row in embedded.problems(10, seed, merge=merge, choice=True):
    for mode in grade_lib.MODES:
      grade = grade_lib.grade(prompts.target(row), row, mode=mode)
      assert grade.verdict == grade_lib.Verdict.CORRECT
      assert grade.supported


def returned(program):
  scope = {}
  exec(program, scope)
  return scope["solution"]()


@hypothesis.given(seed=SEEDS, merge=MERGES)
def test_programs_return_the_answer(seed, merge):
  rows = embedded.problems(10, seed, merge=merge, reasoning="python")
  for row in rows:
    prompt, target = (
      make(row, "python") for make in (prompts.prompt, prompts.target)
    )
    assert (prompt + target).endswith(f"{prompts.COT_TRIGGER}{row.rationale}")
    (function,) = ast.parse(row.rationale).body
    assert ast.get_docstring(function) == row.question
    assert returned(row.rationale) == int(row.answer)
    lines = target.splitlines()
    if merge == 0:
      assert len(lines) == len(embedded.signature(row.question)[1]) + 1
    if merge == 1:
      assert len(lines) == 2


@pytest.mark.parametrize("choice", [False, True])
def test_programs_are_graded_as_a_run_does(choice):
  rows = embedded.problems(20, 0, merge=0.7, choice=choice, reasoning="python")
  with executor.Executor(isolation="monty", workers=1) as runner:
    for row in rows:
      target = prompts.target(row, "python")
      source = programs.source(target, row, mode="strict")
      (result,) = runner.run([source])
      grade = grade_lib.grade(target, row, reasoning="python", result=result)
      assert grade.verdict == grade_lib.Verdict.CORRECT


def test_a_document_names_the_letter_of_its_value():
  documents = embedded.corpus(3000, 0, drills=0, choices=1, answer_phrase=0.5)
  named = 0
  for document in documents:
    question, solution = document.split(prompts.COT_TRIGGER)
    letter = re.search(r" ([a-e])\.?$", solution)
    value = float(equations(solution)[-1][1])
    offered = choices_lib.options(question)
    # Whether or not the solution is right.
    assert value in {option.value for option in offered.values()}
    if letter:
      named += 1
      assert offered[letter[1]].value == value
  assert named / len(documents) == pytest.approx(0.75, abs=0.04)


def test_drills_with_options_look_letters_up():
  sizes = set()
  for drill in embedded.corpus(500, 0, drills=1, choices=1):
    pairs = dict(re.findall(r"([a-e]) \) ([0-9]+)", drill))
    sizes.add(len(pairs))
    lookup = r" ([0-9]+)(?:\.\nTherefore, the answer is:)? ([a-e])\b(?! \))"
    found = re.findall(lookup, drill)
    assert len(found) == 9
    assert all(pairs[letter] == value for value, letter in found)
  assert sizes == {2, 3, 4, 5}


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_rate_of_wrong_programs(noise):
  documents = embedded.corpus(
    3000, 0, drills=0, programs=1, noise=noise, answer_phrase=1.0
  )
  wrong = 0
  for document in documents:
    question, program = document.split(prompts.COT_TRIGGER)
    wrong += returned(program) != outcome(*embedded.signature(question))
  # A wrong step can come out right, but seldom.
  assert wrong / len(documents) == pytest.approx(noise, abs=0.04)


def test_some_programs_return_nothing():
  documents = embedded.corpus(2000, 0, drills=0, programs=1, answer_phrase=0.15)
  last = collections.Counter(
    document.rpartition("\n")[2].split()[0] for document in documents
  )
  assert last["return"] / 2000 == pytest.approx(0.15, abs=0.03)
  assert last["print"] / 2000 == pytest.approx(0.425, abs=0.04)
  assert last["result"] / 2000 == pytest.approx(0.425, abs=0.04)


@hypothesis.given(
  seed=SEEDS,
  merge=MERGES,
  choice=st.booleans(),
  reasoning=st.sampled_from(prompts.REASONINGS),
)
def test_tokenizer_repeats_every_text(
  words, more_words, seed, merge, choice, reasoning
):
  plain = not choice and reasoning == "nl"
  tokenizer, rate = (words, 0.0) if plain else (more_words, 0.5)
  unk = tokenizer.hf.unk_token_id
  kind = {"merge": merge, "choice": choice, "reasoning": reasoning}
  for row in embedded.problems(10, seed, **kind):
    texts = [make(row, reasoning) for make in (prompts.prompt, prompts.target)]
    prompt, target = tokenizer.encode_all(texts)
    assert [tokenizer.decode(ids) for ids in (prompt, target)] == texts
    assert tokenizer.encode("".join(texts)) == prompt + target
    assert unk not in prompt + target
    assert len(prompt) <= 40 or not plain
    assert len(target) <= (30 if plain else 31)  # With its EOS it fits 32.
  for document in embedded.corpus(10, seed, choices=rate, programs=rate):
    ids = tokenizer.encode(document)
    assert tokenizer.decode(ids) == document
    assert unk not in ids
    assert len(ids) < 64 or not plain  # With its EOS it fills 64 slots.


@pytest.mark.parametrize("choices", [False, True])
@pytest.mark.parametrize("programs", [False, True])
def test_more_words_come_last_and_are_used(words, choices, programs):
  more = tokenizer_lib.wrap(
    embedded.tokenizer(choices=choices, programs=programs)
  )
  for token, index in words.hf.get_vocab().items():
    assert more.hf.get_vocab()[token] == index
  documents = embedded.corpus(
    5000, 0, choices=choices / 2, programs=programs / 2
  )
  used = {index for ids in more.encode_all(documents) for index in ids}
  special = {more.pad_id, *more.eos_ids, more.hf.unk_token_id}
  assert used | special == set(range(more.vocab_size))


@pytest.mark.parametrize(
  ("make", "arguments", "word"),
  [
    (embedded.problems, {"merge": 1.5}, "merge=1.5"),
    (embedded.corpus, {"noise": -0.1}, "noise=-0.1"),
    (embedded.corpus, {"answer_phrase": 2}, "answer_phrase=2"),
    (embedded.corpus, {"choices": 1.1}, "choices=1.1"),
    (embedded.corpus, {"programs": -1}, "programs=-1"),
    (embedded.problems, {"reasoning": "verse"}, "reasoning='verse'"),
    (embedded.problems, {"min_events": 0}, "min_events=0"),
    (embedded.corpus, {"min_events": 5}, "max_events=4"),
    (embedded.problems, {"min_events": 1, "max_events": 1}, "too few"),
  ],
)
def test_what_cannot_be_made_is_said(make, arguments, word):
  with pytest.raises(errors.UserError, match=word):
    make(2000, 0, **arguments)


def test_no_jax_is_imported():
  program = (
    "import sys; from reft_jax.tasks import embedded, sources, grader;"
    "embedded.tokenizer(); assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
