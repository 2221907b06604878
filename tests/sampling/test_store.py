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
from reft_jax.run import loop as loop_lib
from reft_jax.runtime import console as console_lib
from reft_jax.sampling import grading, rollouts, store
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers.grade import Verdict
from reft_jax.tasks.grader import Grader
from reft_jax.tasks.sandbox import results


@pytest.fixture(scope="module")
def run():
  run = tiny.run(
    embedded.problems(7, seed=1),
    "evaluation.batch_size=6",
    "data.max_response_tokens=8",
  )
  return dataclasses.replace(run, console=console_lib.Console())


@pytest.fixture(scope="module")
def policy(run):
  return jax.jit(run.networks.init)(jax.random.key(0))


def collection(run, path, **changes):
  settings = {"samples": 3, "temperature": 1.0, "identity": {"model": "a"}}
  return store.Collection(run, path, run.test, **settings | changes)


KEY = jax.random.key(5)


def test_what_was_drawn_is_read_back(run, policy, tmp_path):
  drawn = collection(run, tmp_path / "folder/all.jsonl")
  assert not drawn.complete
  drawn.draw(policy, KEY)
  assert drawn.complete
  groups = drawn.answers()
  assert [len(group) for group in groups] == [3] * 7
  assert [group[0].example for group in groups] == run.test
  again = collection(run, tmp_path / "folder/all.jsonl")
  assert again.complete
  assert again.answers() == groups


def test_a_cut_collection_goes_on_as_it_would_have(run, policy, tmp_path):
  whole = tmp_path / "whole.jsonl"
  collection(run, whole).draw(policy, KEY)
  text = whole.read_text()
  for kept in (0, len(text) // 3, len(text) - 1):
    path = tmp_path / f"cut{kept}.jsonl"
    (path.with_suffix(".json")).write_text(
      whole.with_suffix(".json").read_text()
    )
    path.write_text(text[:kept])
    cut = collection(run, path)
    assert not cut.complete
    cut.draw(policy, KEY)
    assert path.read_text() == text


@pytest.fixture
def started(monkeypatch):
  """The completions that were sent to be graded, as they are."""
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
      for example in examples[start:]:
        sent = [self._run.grader.start(example.problem, each) for each in texts]
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


def official(run):
  return dataclasses.replace(run, grader=Grader(mode="official"))


def test_what_is_drawn_is_graded_once(run, policy, tmp_path, started):
  drawn = collection(run, tmp_path / "some.jsonl")
  drawn.draw(policy, KEY)
  assert len(started) == 7 * 3
  groups = drawn.answers()
  assert groups == collection(run, tmp_path / "some.jsonl").answers()
  assert len(started) == 7 * 3
  again = collection(official(run), tmp_path / "some.jsonl")
  assert [[each.completion for each in group] for group in again.answers()] == [
    [each.completion for each in group] for group in groups
  ]
  assert len(started) == 2 * 7 * 3


def test_other_rules_grade_anew(run, tmp_path, says):
  path = tmp_path / "some.jsonl"
  says("7", "nothing", "8")
  collection(run, path).draw(None, KEY)
  strict = collection(run, path).answers()
  lenient = collection(official(run), path).answers()
  assert {each.grade.value for group in strict for each in group} == {None}
  for group in lenient:
    assert [each.grade.value for each in group] == [7, None, 8]
  # Which are not kept: the file is as it was drawn.
  assert collection(run, path).answers() == strict


def test_other_known_answers_grade_anew(run, tmp_path, says):
  path = tmp_path / "some.jsonl"
  says(f"We get 7.{prompts.ANSWER_TRIGGER}7")
  collection(run, path, samples=1).draw(None, KEY)
  corrected = [
    dataclasses.replace(
      each, problem=dataclasses.replace(each.problem, answer="7")
    )
    for each in run.test
  ]
  found = collection(
    dataclasses.replace(run, test=corrected), path, samples=1
  ).answers()
  assert all(each.correct for group in found for each in group)


def test_draws_by_two_sets_of_rules_are_not_mixed_up(
  run, tmp_path, says, started
):
  path = tmp_path / "some.jsonl"
  says("7")
  collection(run, path, samples=1).draw(None, KEY)
  whole = path.read_text().splitlines(True)
  path.write_text("".join(whole[:4]))
  collection(official(run), path, samples=1).draw(None, KEY)
  started.clear()
  for reader, value, anew in ((official(run), 7, 7), (run, None, 3)):
    groups = collection(reader, path, samples=1).answers()
    assert [group[0].grade.value for group in groups] == [value] * 7
    assert len(started) == anew
    started.clear()


def test_numbers_that_json_lacks_are_read_back(run, tmp_path, says):
  path = tmp_path / "some.jsonl"
  says("nan", "-inf", "1e-320")
  drawn = collection(official(run), path)
  drawn.draw(None, KEY)
  for group in drawn.answers():
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
  run = dataclasses.replace(run, console=console_lib.Console())
  path = tmp_path / "some.jsonl"
  says("def solution():\n  return 7", "def solution(): pass")
  collection(run, path, samples=2).draw(None, KEY)
  assert len(executor.ends) == 8
  groups = collection(run, path, samples=2).answers()
  assert [each.result for group in groups for each in group] == executor.ends
  assert len(executor.ends) == 8
  # More time may change verdicts, more workers may not.
  for setting, value, anew in (("workers", 3, 0), ("cpu_seconds", 9.0, 8)):
    programs = dataclasses.replace(run.config.programs, **{setting: value})
    config = dataclasses.replace(run.config, programs=programs)
    other = dataclasses.replace(run, config=config)
    before = len(executor.ends)
    collection(other, path, samples=2).answers()
    assert len(executor.ends) - before == anew


def test_the_file_tells_what_was_asked_and_how_it_was_graded(
  run, tmp_path, says
):
  path = tmp_path / "some.jsonl"
  says("We get 7.", "7")
  collection(official(run), path, samples=2).draw(None, KEY)
  problem = run.test[0].problem
  row = json.loads(path.read_text().splitlines()[0])
  assert row["uid"] == problem.uid
  assert row["question"] == problem.question
  assert row["answer"] == problem.answer
  assert row["completions"] == ["We get 7.", "7"]
  assert row["ended"] == [True, True]
  assert row["grades"][1] == {
    "verdict": "correct" if float(problem.answer) == 7 else "wrong",
    "value": 7.0,
    "reached": None,
    "supported": None,
  }
  about = json.loads(path.with_suffix(".json").read_text())
  assert (
    about["graded"].items()
    >= {"reasoning": "nl", "answers": "official"}.items()
  )


def test_a_run_that_is_asked_to_stop_keeps_the_batch(
  run, policy, tmp_path, monkeypatch
):
  whole = tmp_path / "whole.jsonl"
  collection(run, whole).draw(policy, KEY)
  path = tmp_path / "cut.jsonl"
  batches = rollouts.BatchSampler.batches

  def struck(*arguments, **options):
    for groups in batches(*arguments, **options):
      os.kill(os.getpid(), signal.SIGTERM)
      yield groups

  with monkeypatch.context() as patch, loop_lib.stopping_on_sigterm():
    patch.setattr(rollouts.BatchSampler, "batches", struck)
    said = "cut: 2 of 7 questions are sampled"
    with pytest.raises(loop_lib.PreemptedError, match=said):
      collection(run, path).draw(policy, KEY)
  assert len(path.read_text().splitlines()) == 2
  collection(run, path).draw(policy, KEY)
  assert path.read_text() == whole.read_text()


def test_completions_of_which_nothing_is_known_are_refused(
  run, policy, tmp_path
):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  assert {each.name for each in tmp_path.iterdir()} == {
    "some.jsonl",
    "some.json",
  }
  for text in ('{"samples": 3', "[]", "\x00", None):
    beside = path.with_suffix(".json")
    beside.unlink() if text is None else beside.write_text(text)
    with pytest.raises(errors.UserError, match=r"no some\.json beside it says"):
      collection(run, path)
  # Without a whole line there is nothing to be taken for something else.
  path.write_text('{"uid": ')
  collection(run, path).draw(policy, KEY)
  assert collection(run, path).complete


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"samples": 4}, "samples: 3 -> 4"),
    ({"temperature": 0.5}, "temperature: 1.0 -> 0.5"),
    ({"top_k": 5}, "top_k: 0 -> 5"),
    ({"identity": {"model": "b"}}, "model: a -> b"),
  ],
)
def test_other_completions_are_refused(run, policy, tmp_path, change, message):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  with pytest.raises(errors.UserError, match=message):
    collection(run, path, **change)


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
def test_lines_that_were_not_written_so_are_told(run, policy, tmp_path, spoil):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  lines = path.read_text().replace("[false", "[true").splitlines(True)
  path.write_text("".join(spoil(lines)))
  with pytest.raises(errors.UserError, match=r"some\.jsonl line 2: not what"):
    collection(run, path)
  path.write_text("".join([*lines, lines[0]]))
  with pytest.raises(errors.UserError, match=r"some\.jsonl line 8: not what"):
    collection(run, path)


@pytest.mark.parametrize(
  ("change", "word"),
  [("eos_ids", "tokenizer: "), ("compute_dtype", "compute_dtype: float32 ->")],
)
def test_completions_end_where_their_tokenizer_says(
  run, policy, tmp_path, change, word
):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  if change == "eos_ids":
    tokenizer = dataclasses.replace(run.tokenizer, eos_ids=(5,))
    other = dataclasses.replace(run, tokenizer=tokenizer)
  else:
    model = dataclasses.replace(run.config.model, compute_dtype="bfloat16")
    config = dataclasses.replace(run.config, model=model)
    other = dataclasses.replace(run, config=config)
  with pytest.raises(errors.UserError, match=word):
    collection(other, path)


def test_other_questions_are_refused(run, policy, tmp_path):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  with pytest.raises(errors.UserError, match="questions: "):
    store.Collection(
      run,
      path,
      run.test[1:],
      samples=3,
      temperature=1.0,
      identity={"model": "a"},
    )
