"""Pages to rate on, which hide the authors, and ratings read with the key."""

import base64
import csv
import json
import pathlib
import re
import shutil
import subprocess
import zlib

import pytest

from reft_jax import rate
from reft_jax.studies import ratings, solutions

STAGES = ("warmup", "sft", "reft")
SOURCES = tuple(f"run:{stage}" for stage in STAGES)
QUESTIONS = 12
# The parts of a browser that the page needs to show its first question.
BROWSER = """
class Node {
  children = [];
  classList = {toggle() {}};
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  setAttribute() {}
  focus() {}
  querySelector() { return this; }
  querySelectorAll() { return []; }
  get textContent() {
    return this.children.map((each) => each.textContent ?? each).join("");
  }
}
globalThis.Node = Node;
globalThis.scrollTo = () => {};
globalThis.document = {
  body: new Node(),
  createElement: () => new Node(),
  getElementById: (id) => id === "data" ? {textContent: DATA} : new Node(),
  addEventListener() {},
};
process.on("exit", () => console.log(document.body.textContent));
"""


def write_rows(path: str, rows) -> None:
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(stage: str, number: int, **changes):
  """A sample: warm-up and SFT write alike on every third question."""
  writer = "sft" if stage == "warmup" and number % 3 == 0 else stage
  return {
    "uid": f"gsm8k_{number}",
    "question": f"What is {number} + 1?\n",
    "completion": f"    </script>{ord(writer[0])} {number} + 1",
    "verdict": "wrong" if stage == "reft" and number < 4 else "correct",
    "value": number + 1.0,
    "answer": str(number + 1),
  } | changes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """A working directory with a run of three stages."""
  monkeypatch.chdir(tmp_path)
  for stage in STAGES:
    rows = [row(stage, number) for number in range(QUESTIONS)]
    write_rows(f"run/samples/test-{stage}.jsonl", rows)
  write_rows("run/samples/test-sft-sampled.jsonl", [])
  return tmp_path


def draw(*arguments: str) -> int:
  return rate.main(["draw", *arguments])


def page() -> str:
  return pathlib.Path("rating/rating.html").read_text()


def key() -> ratings.Key:
  return ratings.open_key(pathlib.Path("rating/key.json"))


def drawn() -> set[str]:
  """The questions on the page."""
  return {each.uid for each in key().solutions.values()}


def packed() -> str:
  return re.search(r'id="data">([^<]*)<', page())[1]


def shown():
  """The content of the page, unpacked."""
  return json.loads(zlib.decompress(base64.b64decode(packed())))


def rendered() -> str:
  """The text that a browser shows of the page."""
  node = shutil.which("node")
  if node is None:
    pytest.skip("needs node")
  page_script = re.search(r"<script>(.*?)</script>", page(), re.DOTALL)[1]
  done = subprocess.run(
    [node, "-"],
    input=f"const DATA = {packed()!r};{BROWSER}{page_script}",
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout


def save(rater: str, file: str | None = None, **changes) -> str:
  """Ratings as the page saves them; `scores` gives them by solution."""
  scores = changes.pop("scores", lambda name: 1)
  given = {
    name: dict.fromkeys(ratings.CRITERIA, scores(name))
    for name in key().solutions
  }
  file = file or f"ratings-{rater}.json"
  fields = {"page": key().page, "rater": rater, "ratings": given} | changes
  pathlib.Path(file).write_text(json.dumps(fields))
  return file


@pytest.fixture
def refused(capsys):
  """Runs a command that must be refused; returns what is said of it."""

  def run(*arguments: str) -> str:
    capsys.readouterr()
    assert rate.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err

  return run


def test_a_page_has_all_solutions_of_its_questions():
  assert draw(*SOURCES, "--questions", "8") == 0
  content = shown()
  assert content["criteria"].keys() == {"logic", "naming", "compactness"}
  assert content["scale"] == [0, 0.5, 1]
  assert len(content["questions"]) == 8
  assert key().page == content["page"]
  wrote = {
    source: solutions.completions(solutions.find(source)) for source in SOURCES
  }
  for question in content["questions"]:
    entries = [key().solutions[name] for name in question["solutions"]]
    authors = [source for each in entries for source in each.sources]
    assert sorted(authors) == sorted(SOURCES)
    for name, text in question["solutions"].items():
      entry = key().solutions[name]
      for source in entry.sources:
        original = wrote[source][entry.uid]
        assert text == original["completion"].strip()
        assert question["question"] == original["question"].strip()
        assert question["answer"] == original["answer"]


def test_equal_solutions_are_shown_once_and_count_for_both():
  draw("run:warmup", "run:sft", f"--questions={QUESTIONS}")
  entries = key().solutions.values()
  together = [each for each in entries if len(each.sources) > 1]
  assert {each.uid for each in together} == {f"gsm8k_{n}" for n in (0, 3, 6, 9)}
  assert {each.sources for each in together} == {("run:warmup", "run:sft")}
  rate.main(["read", "rating/key.json", save("ann"), "--output=out"])
  summary = json.loads(pathlib.Path("out/ratings.json").read_text())
  for source in ("run:warmup", "run:sft"):
    assert summary["sources"][source]["solutions"] == QUESTIONS


def test_the_page_hides_the_authors_and_loads_nothing():
  draw(*SOURCES, "--questions", "8")
  text = page()
  for secret in (*SOURCES, *STAGES, "verdict", 'correct"'):
    assert secret not in json.dumps(shown())
  assert not re.search(r"""(src|href)\s*=\s*["']|@import|https?:""", text)
  assert "default-src 'none'" in text
  # Completions cannot end a script.
  assert text.count("</script>") == text.count("<script")
  # The order of the sources changes nothing.
  draw(*reversed(SOURCES), "--questions", "8", "--output", "other")
  assert pathlib.Path("other/rating.html").read_text() == text


def test_questions_and_solutions_are_shuffled():
  draw("run:sft", "run:reft", "--questions", str(QUESTIONS))
  entries = key().solutions
  first = {each.sources for name, each in entries.items() if name[-1] == "A"}
  assert first == {("run:sft",), ("run:reft",)}
  order = [each.uid for each in entries.values()]
  assert order != sorted(order, key=lambda uid: int(uid.split("_")[1]))


def test_the_draw_follows_from_the_seed():
  for output, seed in (("a", 0), ("b", 0), ("c", 1)):
    draw(*SOURCES, "--questions=5", f"--seed={seed}", f"--output={output}")
  a, b, c = (pathlib.Path(each, "key.json").read_text() for each in "abc")
  assert a == b != c


def test_a_run_with_one_stage_needs_no_stage_name():
  write_rows("one/samples/test-sft.jsonl", [row("sft", 1)])
  assert solutions.find("one").name == "test-sft.jsonl"


def test_only_questions_that_all_answered_correctly():
  assert draw(*SOURCES, "--right", "--questions=8") == 0
  assert drawn() == {f"gsm8k_{number}" for number in range(4, QUESTIONS)}


def answered(number: int, text: str, verdict: str | None = "correct"):
  """A line of an evaluation's greedy answers."""
  question = row("sft", number)
  return {
    **{name: question[name] for name in ("uid", "question", "answer")},
    "completions": [f"{number}{text}"],
    "ended": [True],
    "grades": verdict and [{"verdict": verdict, "value": 1.0}],
  }


def test_evaluations_have_questions_and_verdicts(refused):
  for name, wrong in (("a", {0, 1, 2}), ("b", {2, 3, 4})):
    rows = [
      answered(n, name, "wrong" if n in wrong else "correct") for n in range(8)
    ]
    write_rows(f"{name}/greedy.jsonl", rows)
  assert draw("a", "b", "--right", "--questions=3") == 0
  assert drawn() == {f"gsm8k_{number}" for number in (5, 6, 7)}
  for question in shown()["questions"]:
    number = int(question["answer"]) - 1
    assert question["question"] == f"What is {number} + 1?"
    texts = question["solutions"].values()
    assert set(texts) == {f"{number}a", f"{number}b"}
  # Grades of other rules than the evaluation's are left out of its file.
  write_rows("c/greedy.jsonl", [answered(n, "c", None) for n in range(8)])
  assert draw("a", "c", "--questions=3", "--output=other") == 0
  said = refused("draw", "a", "c", "--right", "--questions=1")
  assert "--right: c does not say which of its answers are right" in said


def test_only_a_newline_ends_a_line():
  text = "one\u2028two\x85three"
  rows = [row("sft", number, completion=text) for number in range(2)]
  first, second = (json.dumps(each, ensure_ascii=False) for each in rows)
  file = pathlib.Path("lines.jsonl")
  file.write_text(f"{first}\n\n{second}\n\n", encoding="utf-8")
  found = solutions.completions(file)
  assert [each["completion"] for each in found.values()] == [text, text]


@pytest.mark.parametrize(
  ("answers", "text"),
  [
    # The answer comes from a source that has one.
    ((None, "2"), "2"),
    (("2", ""), "2"),
    ((None, None), None),
    ((float("nan"), None), "nan"),
  ],
)
def test_an_answer_is_shown_as_text_if_there_is_one(answers, text):
  for name, answer in zip("ab", answers, strict=True):
    write_rows(f"{name}.jsonl", [row(name, 1, answer=answer)])
  assert draw("a.jsonl", "b.jsonl", "--questions=1") == 0
  assert shown()["questions"][0]["answer"] == text
  page = rendered()
  assert "What is 1 + 1?" in page
  assert (f"The right answer: {text}" in page) == (text is not None)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ("run:sft", "two or more sources"),
    ("run:sft run:sft", "each given once"),
    ("run:sft ./run:sft", "each given once"),
    ("run:sft run/samples/test-sft.jsonl", "each given once"),
    ("run:sft run", "say which stage, run:warmup or run:sft or run:reft"),
    ("run:sft run:best", "run has tested warmup, sft, reft"),
    ("run:sft nowhere", "nowhere: no completions there; give RUN:STAGE"),
    ("run:sft run:reft", "all sources answered only 12; ask for fewer"),
    ("run:sft run:reft --questions=9 --right", "only 8 correctly"),
    ("run:sft run:reft --questions=0", "--questions 0 must be above 0"),
    ("run:sft run:reft --questions=many", "--questions needs a whole number"),
    ("run:sft odd.jsonl", "line 1 of odd.jsonl is no completion"),
    ("run:sft torn.jsonl", "line 2 of torn.jsonl is not valid JSON"),
    ("run:sft twice.jsonl", "another completion of gsm8k_1"),
    ("run:sft sampled.jsonl", "line 1 of sampled.jsonl holds 3 samples of a"),
    ("run:sft other.jsonl", "gsm8k_1 is another question in other.jsonl"),
    ("mute.jsonl mute2.jsonl", "no source has the questions"),
    ("run:sft run:reft --questions=2 --output=odd.jsonl", "--output"),
  ],
)
def test_sources_that_cannot_be_compared(refused, arguments, words):
  write_rows("odd.jsonl", [{"step": 1}])
  pathlib.Path("torn.jsonl").write_text(json.dumps(row("sft", 1)) + '\n{"uid"')
  write_rows("twice.jsonl", [row("sft", 1), row("reft", 1)])
  write_rows("other.jsonl", [row("sft", 1, question="And 2 + 2?")])
  write_rows(
    "sampled.jsonl", [answered(1, "") | {"completions": ["2", "3", "4"]}]
  )
  for file in ("mute.jsonl", "mute2.jsonl"):
    write_rows(file, [{"uid": "gsm8k_1", "completion": "2"}])
  assert words in refused("draw", *arguments.split())


def test_a_page_is_not_overwritten_by_another(refused):
  draw(*SOURCES, "--questions=2")
  before = key()
  assert draw(*SOURCES, "--questions=2") == 0
  said = refused("draw", *SOURCES, "--questions=3")
  assert "rating holds another page" in said
  assert key() == before


def test_ratings_by_hand(capsys):
  """Two sources, two questions, two raters."""
  draw("run:sft", "run:reft", "--questions=2")
  mine = {
    name: 1.0 if "run:sft" in each.sources else 0.5
    for name, each in key().solutions.items()
  }
  first = next(name for name in mine if mine[name] == 1)
  ann = save("ann", scores=mine.get)
  bob = save("bob", scores=lambda name: 0 if name == first else mine[name])
  capsys.readouterr()
  assert rate.main(["read", "rating/key.json", ann, bob]) == 0
  told = capsys.readouterr().out
  summary = json.loads(pathlib.Path("rating/ratings.json").read_text())
  # SFT: means of raters 0.5 and 1; ReFT: 0.5 and 0.5.
  sft, reft = summary["sources"]["run:sft"], summary["sources"]["run:reft"]
  assert sft["solutions"] == reft["solutions"] == 2
  assert sft["logic"] == {"mean": 0.75, "deviation": pytest.approx(0.125**0.5)}
  assert reft["naming"] == {"mean": 0.5, "deviation": 0}
  assert "0.750 ± 0.354" in told
  assert summary["raters"] == {
    "ann": dict.fromkeys(ratings.CRITERIA, 0.75),
    "bob": dict.fromkeys(ratings.CRITERIA, 0.5),
  }
  # Three of four pairs are equal. Ratings 0, .5 (four), 1 (three): middles of
  # their ranks .5, 3, 6.5; observed 2 * 36, expected 2 * (4 * 6.25 + 3 * 36 +
  # 12 * 12.25) / 7 = 80.
  assert summary["agreement"]["logic"] == {
    "alpha": pytest.approx(1 - 72 / 80),
    "equal": 0.75,
  }
  assert len(summary["ratings"]) == 8
  with open("rating/ratings.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [list(map(str, each.values())) for each in summary["ratings"]] == [
    list(each.values()) for each in rows
  ]
  (bobs,) = (r for r in rows if r["rater"] == "bob" and r["logic"] == "0")
  assert bobs["source"] == "run:sft"
  assert bobs["solution"] == first


def test_one_rater_agrees_with_nobody(capsys):
  draw(*SOURCES, "--questions=3")
  assert rate.main(["read", "rating/key.json", save("ann")]) == 0
  said = capsys.readouterr().out
  assert "one rater: agreement needs two or more" in said
  assert "alpha" not in said


def rate_1a(**scores):
  return lambda saved: saved["ratings"]["1A"].update(scores)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda saved: saved["ratings"]["1A"].pop("naming"), "lacks 1 of 12"),
    (rate_1a(naming=None), "ratings, the first naming of 1A; open"),
    (lambda saved: saved["ratings"].pop("1A"), "lacks 3 of 12 ratings"),
    (lambda saved: saved["ratings"].update({"1A": [1]}), "lacks 3 of 12"),
    (lambda saved: saved["ratings"].update({"99Z": {}}), "rates 99Z, which"),
    *(
      (
        rate_1a(logic=score),
        f"gives logic of 1A {score!r}; it must be one of 0, 0.5, 1",
      )
      for score in (0.25, 2, "1", True, [1])
    ),
    (lambda saved: saved.update(page="00"), "rates page 00, but the key is"),
    *(
      (
        lambda saved, rater=rater: saved.update(rater=rater),
        f"bad.json is by rater {rater!r}; a name is letters, digits",
      )
      for rater in ("", "ann ", "ann\nlee")
    ),
    (rate_1a(logic="LONG"), "holds a number with too many digits"),
  ],
)
def test_ratings_that_are_not_those_of_the_page(refused, change, words):
  draw("run:sft", "run:reft", "--questions=2")
  saved = json.loads(pathlib.Path(save("ann")).read_text())
  change(saved)
  text = json.dumps(saved).replace('"LONG"', "1" + 5000 * "0")
  pathlib.Path("bad.json").write_text(text)
  assert words in refused("read", "rating/key.json", "bad.json")


def test_names_that_the_page_accepts():
  draw(*SOURCES, "--questions=2")
  raters = [save(each, f"{each[0]}.json") for each in ("Zoë_2", "李.雷-½")]
  assert rate.main(["read", "rating/key.json", *raters]) == 0


def test_a_key_without_solutions_of_a_source(refused):
  draw("run:sft", "run:reft", "--questions=2")
  saved = save("ann")
  original = json.loads(pathlib.Path("rating/key.json").read_text())

  def changed(**fields) -> str:
    pathlib.Path("odd.json").write_text(json.dumps(original | fields))
    return refused("read", "odd.json", saved)

  assert (
    "odd.json compares run:reft, run:sft, but holds solutions of no source;"
    " give the key as draw wrote it"
  ) in changed(solutions={})
  said = changed(sources=original["sources"] | {"ghost": "ghost.jsonl"})
  assert "compares ghost, run:reft, run:sft, but holds solutions of" in said
  assert "compares run:sft, but" in changed(sources={"run:sft": "sft.jsonl"})
  assert "compares no source" in changed(sources={}, solutions={})


def test_ratings_given_twice(refused):
  draw(*SOURCES, "--questions=2")
  first, second = save("ann"), save("ann", "again.json")
  said = refused("read", "rating/key.json", first, second)
  assert "ann rated in ratings-ann.json and in again.json" in said
  text = pathlib.Path(first).read_text()
  doubled = text.replace('"rater": "ann"', '"rater": "ann", "rater": "bob"')
  pathlib.Path(first).write_text(doubled)
  said = refused("read", "rating/key.json", first)
  assert "ratings-ann.json holds 'rater' twice" in said


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"rater": "ann"}', "\x00"])
def test_files_that_are_no_ratings(refused, text):
  draw(*SOURCES, "--questions=2")
  pathlib.Path("odd.json").write_text(text)
  assert "odd.json" in refused("read", "rating/key.json", "odd.json")
  assert "odd.json" in refused("read", "odd.json", save("ann"))
  assert "nowhere.json cannot be read" in refused("read", "nowhere.json", "x")


def test_commands_that_do_not_exist(refused):
  assert "which command? draw or read" in refused("paint")
  assert "which source?" in refused("draw")
  for arguments in (["--help"], ["read", "-h"]):
    assert rate.main(arguments) == 0


def test_there_are_letters_for_any_number_of_sources():
  letters = [ratings._letters(place) for place in (0, 25, 26, 52)]
  assert letters == ["A", "Z", "AA", "BA"]
