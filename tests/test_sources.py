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
  assert sources.load(write([REFT, test_row, {**REFT, "answer_cot": " "}])) == [
    problem.Problem("svamp_3", "svamp", "How many?", "3 + 4 = 7", "7.0"),
    problem.Problem("mathqa-numeric_4", "mathqa-numeric", "?", None, "2"),
    problem.Problem("svamp_3", "svamp", "How many?", None, "7.0"),
  ]


def test_gsm8k_layout(write):
  lines = "\n".join([json.dumps(GSM8K), "", json.dumps(GSM8K), ""])
  _, second = sources.load(write(lines, "data.jsonl"))
  assert second == problem.Problem(
    "gsm8k_1",
    "gsm8k",
    "How many clips?",
    "She sold 48/2 = 24.\nSo 1,048 = in all.",
    "1048",
  )


def test_svamp_hub_layout(write):
  assert sources.load(write([SVAMP])) == [
    problem.Problem("svamp_0", "svamp", "He has 3. How many?", None, "3.0")
  ]


def test_lines_and_lists_are_told_apart_by_content(write):
  as_list = sources.load(write([REFT, REFT], "data.jsonl"))
  lines = "\n".join([json.dumps(REFT)] * 2)
  assert sources.load(write("\ufeff" + lines, "data.json")) == as_list


def test_files_can_lie_at_home(write, tmp_path, monkeypatch):
  write([REFT], "data.json")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert len(sources.load("~/data.json")) == 1


def test_the_task_can_be_set(write):
  (row,) = sources.load(write([GSM8K]), task="mathqa-numeric")
  assert (row.uid, row.task) == ("mathqa-numeric_0", "mathqa-numeric")
  (row,) = sources.load(
    write([{"question": "?", "answer_value": 1}]), task="svamp"
  )
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
    ([{**REFT, "item_id": "mine_3"}], ["mine", "data.task", "gsm8k", "svamp"]),
    ([{**REFT, "item_id": None}], ["row 1", "data.task", "gsm8k"]),
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
  with pytest.raises(errors.UserError, match=r"'gsm9k'.*embedded, gsm8k"):
    sources.load(write([REFT]), task="gsm9k")


def test_published_files(shared):
  rows = sources.load(str(shared / "data/gsm8k_original_train.jsonl"))
  assert len(rows) == 7473
  assert not any("<<" in row.rationale for row in rows)
  published = sources.load(str(shared / "data/gsm8k_original_test.jsonl"))
  released = sources.load(str(shared / "data/gsm8k_test_set.json"))
  assert [row.answer for row in published] == [row.answer for row in released]


@pytest.mark.parametrize(
  ("source", "call"),
  [
    ("hub:openai/gsm8k:main:test", (("openai/gsm8k", "main"), "test")),
    ("hub:ChilleD/SVAMP:test", (("ChilleD/SVAMP",), "test")),
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
  assert sources.load(source)[0].answer == "1048"
  assert calls == [call]


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
