import dataclasses
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from reft_jax import errors
from reft_jax.tasks import problem, sources

REFT = {
  "item_id": "svamp_3",
  "question": "How many?",
  "answer_cot": "3 + 4 = 7",
  "answer_value": "7.0",
}
GSM8K = {
  "question": "How many clips?",
  "answer": "She sold 48/2 = <<48/2=24>>24.\nSo 1,048 = <<1048>>in all.\n"
  "#### 1,048",
}
SVAMP = {"Body": "He has 3. ", "Question": "How many?", "Answer": 3.0}
OPTIONS = "a ) 38 , b ) 27.675 , c ) $ 3,375 , d ) none , e ) - 1 / 4"
MATHQA = {
  "Problem": " what is it ? ",
  "Rationale": '"explanation : 3 + 4 = 7 \\n answer : c"',
  "options": OPTIONS,
  "correct": "c",
  "annotated_formula": "add(3, 4)",
  "linear_formula": "add(n0,n1)|",
  "category": "general",
}


@pytest.fixture
def write(tmp_path):
  def write(content, name="data.json"):
    path = tmp_path / name
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      text = content if isinstance(content, str) else json.dumps(content)
      path.write_text(text, encoding="utf-8")
    return str(path)

  return write


def test_reft_layout(write):
  test_row = {"item_id": "mathqa-numeric_4", "question": "?", "answer_value": 2}
  content = [REFT, test_row, {**REFT, "answer_cot": " "}]
  assert sources.load(write(content)) == sources.Loaded(
    [
      problem.Problem("svamp_3", "svamp", "How many?", "3 + 4 = 7", "7.0"),
      problem.Problem("mathqa-numeric_4", "mathqa-numeric", "?", None, "2"),
      problem.Problem("svamp_3", "svamp", "How many?", None, "7.0"),
    ]
  )


def test_gsm8k_layout(write):
  lines = "\n".join([json.dumps(GSM8K), "", json.dumps(GSM8K), ""])
  _, second = sources.load(write(lines, "data.jsonl")).problems
  assert second == problem.Problem(
    "gsm8k_1",
    "gsm8k",
    "How many clips?",
    "She sold 48/2 = 24.\nSo 1,048 = in all.",
    "1048",
  )
  kept = sources.load(write(lines, "data.jsonl"), calculator_marks=True)
  assert kept.problems[1] == dataclasses.replace(
    second,
    rationale="She sold 48/2 = <<48/2=24>>24.\nSo 1,048 = <<1048>>in all.",
  )


def test_only_gsm8k_has_calculator_marks(write):
  shifts = "def solution():\n    return 1 << 3 >> 1"
  (row,) = sources.load(write([{**REFT, "answer_cot": shifts}])).problems
  assert row.rationale == shifts


def test_svamp_hub_layout(write):
  assert sources.load(write([SVAMP])).problems == [
    problem.Problem("svamp_0", "svamp", "He has 3. How many?", None, "3.0")
  ]


def test_mathqa_hub_layout(write):
  bare = {key: MATHQA[key] for key in ("Problem", "options", "correct")}
  first, second = sources.load(write([MATHQA, bare])).problems
  assert first == problem.Problem(
    "mathqa_0",
    "mathqa",
    f"what is it ?\n{OPTIONS}",
    "explanation : 3 + 4 = 7 \\n answer : c",
    "c",
  )
  assert second == dataclasses.replace(first, uid="mathqa_1", rationale=None)


@pytest.mark.parametrize(
  ("options", "line"),
  [
    (OPTIONS, OPTIONS),
    ("['a ) 1', 'b ) 2']", "['a ) 1', 'b ) 2']"),
    ("[ ' 5 ', ' 6 km ', '1 / 2']", "a ) 5 , b ) 6 km , c ) 1 / 2"),
    ("[5, 6]", "a ) 5 , b ) 6"),
    (" a ) 1 ,\n b ) 2 ", "a ) 1 , b ) 2"),
    ([" 5 ", "6\nkm"], "a ) 5 , b ) 6 km"),
    (["a ) 1", "b ) 2"], "a ) 1 , b ) 2"),
    ("5 or 6", "5 or 6"),
    ("{5", "{5"),
    ("5", "5"),
  ],
)
def test_options_in_all_their_forms(write, options, line):
  (row,) = sources.load(write([{**MATHQA, "options": options}])).problems
  assert row.question == f"what is it ?\n{line}"


@pytest.mark.parametrize(
  "rationale", ['"3 + 4 = 7"', "3 + 4 = 7", ' "3 + 4 = 7" ']
)
def test_rationales_are_unquoted(write, rationale):
  (row,) = sources.load(write([{**MATHQA, "Rationale": rationale}])).problems
  assert row.rationale == "3 + 4 = 7"


def reft_choice(letter, options=OPTIONS):
  question = f"what is it ?\n{options}"
  return {"item_id": "mathqa_5", "question": question, "answer_value": letter}


def test_multiple_choice_becomes_numeric(write):
  rows = [reft_choice(letter) for letter in "abcDe"]
  rows.append(reft_choice("f"))  # Not offered.
  loaded = sources.load(write(rows), task="mathqa-numeric")
  assert loaded.left_out == 2
  answers = [row.answer for row in loaded.problems]
  assert answers == ["38.0", "27.675", "3375.0", "-0.25"]
  assert {row.question for row in loaded.problems} == {"what is it ?"}
  assert {row.task for row in loaded.problems} == {"mathqa-numeric"}
  published = sources.load(write([MATHQA] * 2), task="mathqa-numeric")
  assert [row.answer for row in published.problems] == ["3375.0"] * 2
  assert published.problems[1].uid == "mathqa-numeric_1"
  assert published.left_out == 0
  # Rows that are numeric already stay as they are.
  numeric = sources.load(write([REFT]), task="mathqa-numeric")
  assert [row.answer for row in numeric.problems] == ["7.0"]
  with pytest.raises(
    errors.UserError, match=r"none of the 2 .*data\.task=mathqa"
  ):
    sources.load(write([reft_choice("d")] * 2), task="mathqa-numeric")


def test_the_conversion_beside_the_published_one(shared):
  """docs/answers.md lists where they differ and why."""
  data = shared / "data"
  ours = sources.load(str(data / "mathqa_test_set.json"), "mathqa-numeric")
  published = sources.load(str(data / "mathqa-numeric_test_set.json"))
  theirs = {number(row): row for row in published.problems}
  assert len(theirs) == len(ours.problems) + ours.left_out == 1605
  different = []
  for row in ours.problems:
    other = theirs[number(row)]
    assert row.question == other.question.strip()
    pair = float(row.answer), float(other.answer)
    if pair[0] != pytest.approx(pair[1]):
      different.append(pair)
  assert sorted(different) == [
    (-120.0, 120.0),
    (-60.0, 60.0),
    (-6.0, 6.0),
    (1354.0, 1.0),
    (3375.0, 3.0),
    (4000.0, 4.0),
    (13400.0, 13.0),
  ]
  agreeing = len(ours.problems) - len(different)
  assert (agreeing, ours.left_out) == (1591, 7)  # 99.1 % agree.


def number(row):
  return row.uid.partition("_")[2]


def test_lines_and_lists_are_told_apart_by_content(write):
  as_list = sources.load(write([REFT, REFT], "data.jsonl"))
  assert len(as_list.problems) == 2
  lines = "\n".join([json.dumps(REFT)] * 2)
  assert sources.load(write("\ufeff" + lines, "data.json")) == as_list


def test_files_can_lie_at_home(write, tmp_path, monkeypatch):
  write([REFT], "data.json")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert len(sources.load("~/data.json").problems) == 1


def test_the_task_can_be_set(write):
  (row,) = sources.load(write([GSM8K]), task="mathqa-numeric").problems
  assert (row.uid, row.task) == ("mathqa-numeric_0", "mathqa-numeric")
  (row,) = sources.load(
    write([{"question": "?", "answer_value": 1}]), task="svamp"
  ).problems
  assert (row.uid, row.task) == ("svamp_0", "svamp")


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("", ["data.json", "no rows"]),
    ([], ["data.json", "no rows"]),
    ('[\n{"question": "?"},\n{"quest', ["line 3", "data.json", "JSON"]),
    (json.dumps(GSM8K) + '\n\n{"question', ["line 3", "data.json", "JSON"]),
    (b"\xff\xfe\x00", ["data.json", "cannot be read"]),
    ([{"prompt": 1, "label": 2}], ["prompt, label", "question, answer_value"]),
    ([3], ["layout", "question, answer_value"]),
    ([REFT, {"item_id": "a_1"}], ["row 2", "question", "answer_value"]),
    ([REFT, 5], ["row 2", "question", "None"]),
    ([{**REFT, "question": None}], ["row 1", "question", "None"]),
    ([REFT, {**REFT, "question": ""}], ["row 2", "question is blank"]),
    ([{**GSM8K, "question": " \n"}], ["row 1", "question is blank"]),
    ([{**SVAMP, "Body": "", "Question": ""}], ["row 1", "is blank"]),
    ([{**REFT, "answer_value": ["7"]}], ["row 1", "answer_value", "7"]),
    ([{**REFT, "answer_value": True}], ["row 1", "True", "number"]),
    ([{**REFT, "answer_value": "many"}], ["row 1", "many", "svamp_3"]),
    ('[{"question": "?", "answer_value": NaN}]', ["row 1", "data.task"]),
    ([{**GSM8K, "answer": "It is 7."}], ["row 1", "It is 7.", "gsm8k_0"]),
    ([{**MATHQA, "correct": "38"}], ["row 1", "38", "letter"]),
    ([MATHQA, {**MATHQA, "options": None}], ["row 2", "options", "None"]),
    ([{"Problem": "?", "correct": "a"}], ["Problem, options, correct"]),
    ([{**REFT, "item_id": "mine_3"}], ["mine", "data.task", "gsm8k", "svamp"]),
    ([{**REFT, "item_id": None}], ["row 1", "without item_id", "data.task"]),
    ({"data": [REFT]}, ["data.json", "list of rows", "found: (data)"]),
    (
      json.dumps({"data": [REFT]}, indent=2),
      ["data.json", "list of rows", "found: (data)"],
    ),
  ],
)
def test_bad_files_say_where_and_what(write, content, words):
  with pytest.raises(errors.UserError) as raised:
    sources.load(write(content))
  for word in words:
    assert word in str(raised.value)


def test_missing_files_and_unknown_tasks(write, tmp_path):
  for missing in (tmp_path / "none.json", tmp_path):
    with pytest.raises(errors.UserError, match="no data file at"):
      sources.load(str(missing))
  with pytest.raises(errors.UserError, match=r"'gsm9k'.*choice, gsm8k"):
    sources.load(write([REFT]), task="gsm9k")


def test_published_files(shared):
  source = str(shared / "data/gsm8k_original_train.jsonl")
  for kept in (False, True):
    rows = sources.load(source, calculator_marks=kept).problems
    assert len(rows) == 7473
    assert any("<<" in row.rationale for row in rows) == kept
  published = sources.load(str(shared / "data/gsm8k_original_test.jsonl"))
  released = sources.load(str(shared / "data/gsm8k_test_set.json"))
  assert [row.answer for row in published.problems] == [
    row.answer for row in released.problems
  ]


@pytest.mark.parametrize(
  ("source", "call"),
  [
    ("hub:openai/gsm8k:main:test", (("openai/gsm8k", "main"), "test")),
    # Of several configurations the usual one is meant.
    ("hub:openai/gsm8k:test", (("openai/gsm8k", "main"), "test")),
    ("hub:openai/gsm8k", (("openai/gsm8k", "main"), "train")),
    ("hub:ChilleD/SVAMP:test", (("ChilleD/SVAMP",), "test")),
    ("hub:regisss/math_qa", (("regisss/math_qa",), "train")),
    ("hub:someone/some", (("someone/some",), "train")),
  ],
)
def test_hub_notation(monkeypatch, source, call):
  import datasets

  calls = []

  def load_dataset(*names, split):
    calls.append((names, split))
    return datasets.Dataset.from_list([GSM8K])

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  assert sources.load(source).problems[0].answer == "1048"
  assert calls == [call]


@pytest.mark.parametrize(
  ("name", "row", "answer"),
  [
    ("openai/gsm8k", GSM8K, "1048"),
    ("ChilleD/SVAMP", {**SVAMP, "Type": "Addition"}, "3.0"),
    ("regisss/math_qa", MATHQA, "c"),
  ],
)
def test_the_hub_library_reads_these_layouts(
  tmp_path, monkeypatch, name, row, answer
):
  """Its own code, on a folder of the data set's name instead of the network."""
  import datasets

  folder = tmp_path / name
  folder.mkdir(parents=True)
  for split, count in (("train", 3), ("test", 2)):
    lines = "\n".join([json.dumps(row)] * count)
    (folder / f"{split}.jsonl").write_text(lines)
  if name == "openai/gsm8k":  # It has two configurations.
    paths = [{"split": s, "path": f"{s}.jsonl"} for s in ("train", "test")]
    configurations = [
      "- " + json.dumps({"config_name": each, "data_files": paths})
      for each in ("main", "socratic")
    ]
    card = "\n".join(["---", "configs:", *configurations, "---"])
    (folder / "README.md").write_text(card)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  for split, count in (("train", 3), ("test", 2)):
    loaded = sources.load(f"hub:{name}:{split}")
    assert [each.answer for each in loaded.problems] == [answer] * count
  with pytest.raises(errors.UserError, match="Unknown split"):
    sources.load(f"hub:{name}:dev")


@pytest.mark.parametrize("source", ["hub:", "hub:a::b", "hub:a:b:c:d"])
def test_hub_notation_is_explained(source):
  with pytest.raises(errors.UserError, match="hub:openai/gsm8k:main:test"):
    sources.load(source)


def test_hub_failures_are_one_line(monkeypatch):
  import datasets

  def load_dataset(*names, split):
    raise ConnectionError("no network\nand much more")

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  with pytest.raises(errors.UserError, match=r"hub:a/b .*: no network$"):
    sources.load("hub:a/b")


@hypothesis.given(
  questions=st.lists(st.integers(0, 60), min_size=1, max_size=60),
  seed=st.integers(0, 9),
  data=st.data(),
)
def test_dev_is_carved_out(questions, seed, data):
  rows = [
    problem.Problem(f"gsm8k_{i}", "gsm8k", f"{q}?", None, "1")
    for i, q in enumerate(questions)
  ]
  once = sum(questions.count(q) == 1 for q in questions)
  size = data.draw(st.integers(0, min(once, len(rows) - 1)))
  train, dev = sources.carve_dev(rows, size, seed)
  assert len(dev) == size
  assert sorted(train + dev, key=rows.index) == rows
  for part in (train, dev):
    assert part == sorted(part, key=rows.index)
  assert not {r.question for r in train} & {r.question for r in dev}
  assert (train, dev) == sources.carve_dev(rows, size, seed)


def test_dev_depends_on_the_seed_alone():
  rows = [
    problem.Problem(f"gsm8k_{i}", "gsm8k", f"{i}?", None, "1")
    for i in range(100)
  ]
  first, second = (sources.carve_dev(rows, 20, seed)[1] for seed in (0, 1))
  assert first != second


@pytest.mark.parametrize("size", [3, 4, -1])
def test_dev_must_leave_some_to_train_on(size):
  rows = [
    problem.Problem(f"gsm8k_{i}", "gsm8k", f"{i}?", None, "1") for i in range(3)
  ]
  with pytest.raises(errors.UserError, match=f"data.dev_size={size}"):
    sources.carve_dev(rows, size, 0)
