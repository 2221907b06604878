"""Completions are sampled once, kept, and graded again at will."""

import dataclasses
import json

import jax
import pytest
import tiny

from reft_jax import errors, terminal
from reft_jax.methods import collecting
from reft_jax.tasks import embedded
from reft_jax.tasks.grading import Grader


@pytest.fixture(scope="module")
def run():
  run = tiny.run(
    embedded.problems(7, seed=1),
    "evaluation.batch_size=6",
    "data.max_response_tokens=8",
  )
  return dataclasses.replace(run, terminal=terminal.Terminal())


@pytest.fixture(scope="module")
def policy(run):
  return jax.jit(run.networks.init)(jax.random.key(0))


def collection(run, path, **changes):
  settings = {"samples": 3, "temperature": 1.0, "identity": {"model": "a"}}
  return collecting.Collection(run, path, run.test, **settings | changes)


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


def test_grades_are_those_of_the_grader_that_reads(run, policy, tmp_path):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row, example in zip(rows, run.test, strict=True):
    row["completions"] = [example.problem.answer] * 3  # Without its phrase.
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  strict = collection(run, path).answers()
  lenient = dataclasses.replace(run, grader=Grader(mode="official"))
  official = collection(lenient, path).answers()
  assert not any(answer.correct for group in strict for answer in group)
  assert all(answer.correct for group in official for answer in group)


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


def test_other_questions_are_refused(run, policy, tmp_path):
  path = tmp_path / "some.jsonl"
  collection(run, path).draw(policy, KEY)
  with pytest.raises(errors.UserError, match="questions: "):
    collecting.Collection(
      run,
      path,
      run.test[1:],
      samples=3,
      temperature=1.0,
      identity={"model": "a"},
    )
