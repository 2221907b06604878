"""Completions are sampled once, graded once, and kept."""

import concurrent.futures
import dataclasses
import json
import math
import os
import signal

import jax
import pytest
import tiny

from reft_jax import errors
from reft_jax.runtime import preemption
from reft_jax.sampling import grading, rollouts, store
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers.grade import Verdict
from reft_jax.tasks.grader import Grader
from reft_jax.tasks.sandbox import results

KEY = jax.random.key(5)
SETTINGS = ("evaluation.batch_size=6", "data.max_response_tokens=8")


@pytest.fixture(scope="module")
def run():
  return tiny.run(embedded.problems(7, seed=1), *SETTINGS)


@pytest.fixture(scope="module")
def policy(run):
  return jax.jit(run.engine.networks.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def whole(run, policy, tmp_path_factory):
  """What a store of three samples a question writes: its two files' texts."""
  path = tmp_path_factory.mktemp("whole") / "whole.jsonl"
  fill(run, path, policy)
  return path.read_text(), path.with_suffix(".json").read_text()


@pytest.fixture
def path(whole, tmp_path):
  """A file of all completions, to be spoiled."""
  path = tmp_path / "some.jsonl"
  path.write_text(whole[0])
  path.with_suffix(".json").write_text(whole[1])
  return path


def open_store(run, path, **changes) -> store.Store:
  settings = {"samples": 3, "temperature": 1.0, "facts": {"model": "a"}}
  return store.Store(run.engine, path, run.test, **settings | changes)


def fill(run, path, policy=None, **changes) -> store.Store:
  """A store that holds all its completions."""
  filled = open_store(run, path, **changes)
  filled.fill(policy, KEY, run.console)
  return filled


def official(run):
  return tiny.change(run, grader=Grader(mode="official"))


def with_group(run, group: str, **settings):
  """The run with other settings of a group."""
  changed = dataclasses.replace(getattr(run.config, group), **settings)
  config = dataclasses.replace(run.config, **{group: changed})
  return tiny.change(run, config=config)


@pytest.fixture
def started(monkeypatch):
  """The completions whose grading was started."""
  sent, start = [], Grader.start

  def counted(self, problem, completion):
    sent.append(completion)
    return start(self, problem, completion)

  monkeypatch.setattr(Grader, "start", counted)
  return sent


@pytest.fixture
def says(monkeypatch):
  """From now on these are the completions of every question."""

  def change(*texts):
    def batches(self, policy, examples, key, start=0):
      start_grading = self._engine.grader.start
      for example in examples[start:]:
        sent = [start_grading(example.problem, text) for text in texts]
        yield [
          [
            grading.Answer(
              example, each.completion, each.grade(), True, each.result()
            )
            for each in sent
          ]
        ]

    monkeypatch.setattr(rollouts.BatchSampler, "batches", batches)

  return change


def test_samples_are_graded_once_and_read_back(run, policy, tmp_path, started):
  path = tmp_path / "folder/all.jsonl"
  assert not open_store(run, path).complete
  filled = fill(run, path, policy)
  assert filled.complete
  assert {each.name for each in path.parent.iterdir()} == {
    "all.jsonl",
    "all.json",
  }
  groups = filled.answers()
  assert [len(group) for group in groups] == [3] * 7
  assert [group[0].example for group in groups] == run.test
  again = open_store(run, path)
  assert again.complete
  assert again.answers() == groups
  assert len(started) == 7 * 3
  # By other rules they are graded anew.
  completions = [[each.completion for each in group] for group in groups]
  assert [
    [each.completion for each in group]
    for group in open_store(official(run), path).answers()
  ] == completions
  assert len(started) == 2 * 7 * 3


def test_a_cut_store_is_completed_alike(run, policy, whole, path):
  text, _ = whole
  for kept in (0, len(text) // 3, len(text) - 1):
    path.write_text(text[:kept])
    assert not open_store(run, path).complete
    fill(run, path, policy)
    assert path.read_text() == text


def test_other_rules_grade_anew(run, tmp_path, says):
  path = tmp_path / "some.jsonl"
  says("7", "nothing", "8")
  strict = fill(run, path).answers()
  lenient = open_store(official(run), path).answers()
  assert {each.grade.value for group in strict for each in group} == {None}
  for group in lenient:
    assert [each.grade.value for each in group] == [7, None, 8]
  # Those grades are not kept: the file is as it was sampled.
  assert open_store(run, path).answers() == strict


def test_other_known_answers_grade_anew(run, tmp_path, says):
  path = tmp_path / "some.jsonl"
  says(f"We get 7.{prompts.ANSWER_TRIGGER}7")
  fill(run, path, samples=1)
  corrected = [
    dataclasses.replace(
      each, problem=dataclasses.replace(each.problem, answer="7")
    )
    for each in run.test
  ]
  other = dataclasses.replace(run, test=corrected)
  found = open_store(other, path, samples=1).answers()
  assert all(each.correct for group in found for each in group)


def test_grades_by_two_sets_of_rules_are_not_mixed(
  run, tmp_path, says, started
):
  path = tmp_path / "some.jsonl"
  says("7")
  fill(run, path, samples=1)
  lines = path.read_text().splitlines(True)
  path.write_text("".join(lines[:4]))
  fill(official(run), path, samples=1)
  started.clear()
  for reader, value, anew in ((official(run), 7, 7), (run, None, 3)):
    groups = open_store(reader, path, samples=1).answers()
    assert [group[0].grade.value for group in groups] == [value] * 7
    assert len(started) == anew
    started.clear()


def test_numbers_that_json_lacks_are_read_back(run, tmp_path, says):
  says("nan", "-inf", "1e-320")
  for group in fill(official(run), tmp_path / "some.jsonl").answers():
    values = [each.grade.value for each in group]
    assert math.isnan(values[0])
    assert values[1:] == [-math.inf, 1e-320]
    assert [each.grade.verdict for each in group] == [Verdict.WRONG] * 3


class Flaky:
  """An executor under which each program ends differently every time."""

  def __init__(self):
    self.ends = []

  def submit(self, source, scopes):
    del source, scopes
    status = list(results.Status)[len(self.ends) % 3]
    self.ends.append(results.Result(status, "monty", reason=f"the {status}"))
    done = concurrent.futures.Future()
    done.set_result(self.ends[-1])
    return done


def test_how_programs_ended_is_kept(tmp_path, says):
  executor = Flaky()
  run = tiny.run(
    embedded.problems(4, seed=1, reasoning="python"),
    "data.reasoning=python",
    "embedded.programs=1",
    executor=executor,
  )
  path = tmp_path / "some.jsonl"
  says("def solution():\n  return 7", "def solution(): pass")
  fill(run, path, samples=2)
  assert len(executor.ends) == 8
  groups = open_store(run, path, samples=2).answers()
  assert [each.result for group in groups for each in group] == executor.ends
  assert len(executor.ends) == 8
  # More time may change verdicts, more workers may not.
  for setting, value, anew in (("workers", 3, 0), ("cpu_seconds", 9.0, 8)):
    other = with_group(run, "programs", **{setting: value})
    before = len(executor.ends)
    open_store(other, path, samples=2).answers()
    assert len(executor.ends) - before == anew


def test_the_files_say_what_was_asked_and_how_it_was_graded(
  run, tmp_path, says
):
  path = tmp_path / "some.jsonl"
  says("We get 7.", "7")
  fill(official(run), path, samples=2)
  problem = run.test[0].problem
  row = json.loads(path.read_text().splitlines()[0])
  grades = row.pop("grades")
  assert row == {
    "uid": problem.uid,
    "question": problem.question,
    "answer": problem.answer,
    "completions": ["We get 7.", "7"],
    "ended": [True, True],
  }
  assert grades[1] == {
    "verdict": "correct" if float(problem.answer) == 7 else "wrong",
    "value": 7.0,
    "reached": None,
    "supported": None,
  }
  about = json.loads(path.with_suffix(".json").read_text())
  assert about["facts"]["model"] == "a"
  graded = about["notes"]["graded"]
  assert (graded["reasoning"], graded["answers"]) == ("nl", "official")


def test_a_run_that_is_asked_to_stop_keeps_the_batch(
  run, policy, whole, tmp_path, monkeypatch
):
  path = tmp_path / "cut.jsonl"
  batches = rollouts.BatchSampler.batches

  def struck(*arguments, **options):
    for groups in batches(*arguments, **options):
      os.kill(os.getpid(), signal.SIGTERM)
      yield groups

  with monkeypatch.context() as patch, preemption.stopping_on_sigterm():
    patch.setattr(rollouts.BatchSampler, "batches", struck)
    said = "cut: 2 of 7 questions are sampled"
    with pytest.raises(preemption.PreemptedError, match=said):
      fill(run, path, policy)
  assert len(path.read_text().splitlines()) == 2
  fill(run, path, policy)
  assert path.read_text() == whole[0]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, r"no some\.json beside it says"),
    ('{"format": 1', r"no some\.json beside it says"),
    ("[]", r"no some\.json beside it says"),
    ("\x00", r"no some\.json beside it says"),
    ('{"samples": 3}', r"some\.json was written by another version"),
  ],
)
def test_completions_of_which_nothing_is_known_are_refused(
  run, path, text, message
):
  beside = path.with_suffix(".json")
  beside.unlink() if text is None else beside.write_text(text)
  with pytest.raises(errors.UserError, match=message):
    open_store(run, path)


def test_without_a_whole_line_nothing_is_mistaken(run, policy, whole, tmp_path):
  path = tmp_path / "some.jsonl"
  path.write_text('{"uid": ')
  fill(run, path, policy)
  assert path.read_text() == whole[0]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"samples": 4}, "samples: 3 -> 4"),
    ({"temperature": 0.5}, "temperature: 1.0 -> 0.5"),
    ({"top_k": 5}, "top_k: 0 -> 5"),
    ({"facts": {"model": "b"}}, "model: a -> b"),
  ],
)
def test_completions_of_another_kind_are_refused(run, path, changes, message):
  with pytest.raises(errors.UserError, match=message):
    open_store(run, path, **changes)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda run: tiny.change(
        run, tokenizer=dataclasses.replace(run.engine.tokenizer, eos_ids=(5,))
      ),
      "tokenizer: ",
    ),
    (
      lambda run: with_group(run, "model", compute_dtype="bfloat16"),
      "compute_dtype: float32 -> bfloat16",
    ),
    (lambda run: dataclasses.replace(run, test=run.test[1:]), "questions: "),
  ],
)
def test_completions_of_another_run_are_refused(run, path, change, message):
  with pytest.raises(errors.UserError, match=message):
    open_store(change(run), path)


@pytest.mark.parametrize(
  "spoil",
  [
    lambda lines: [lines[0], "{}\n", *lines[2:]],
    lambda lines: [lines[0], "\n", *lines[1:]],
    lambda lines: [lines[0], "?\n", *lines[2:]],
    lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    lambda lines: [lines[0], lines[1].replace("[true", "[true, true", 1)],
  ],
)
def test_other_lines_are_named(run, path, spoil):
  lines = path.read_text().replace("[false", "[true").splitlines(True)
  path.write_text("".join(spoil(lines)))
  with pytest.raises(errors.UserError, match=r"some\.jsonl line 2: not what"):
    open_store(run, path)
  path.write_text("".join([*lines, lines[0]]))
  with pytest.raises(errors.UserError, match=r"some\.jsonl line 8: not what"):
    open_store(run, path)
