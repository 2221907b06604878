"""Completions on disk: sampled once, and graded as they are sampled.

A store is two files. `NAME.json` is its manifest: the questions, the model, how
they were sampled and, as a note, the rules by which they were graded.
`NAME.jsonl` has a line for each question, in their order, with all its
completions and their grades. Lines are added as they are sampled, so a killed
process loses one batch at most. What is sampled for a question depends on its
number alone, so the next process adds what the first would have added.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from reft_jax import files
from reft_jax import manifest as manifest_lib
from reft_jax.data import encode
from reft_jax.errors import UserError
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import multihost, preemption
from reft_jax.sampling import engine as engine_lib
from reft_jax.sampling import grading, rollouts

_KIND = "samples"
# The note in the manifest that says how completions were graded.
_GRADED = "graded"
_REMEDY = "set output to another folder, or remove it."


class Store:
  """The completions of some questions.

  Args:
    engine: what samples.
    path: the `.jsonl` file; made, with its folder, by the first `fill`.
    examples: the questions.
    samples: completions a question.
    temperature: 0 decodes greedily.
    top_k: likeliest tokens sampled from; 0 samples from all.
    facts: what else must not change, such as the model's fingerprint.

  Raises:
    UserError: the file holds other completions, or nothing says which.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    path: pathlib.Path,
    examples: Sequence[encode.Example],
    *,
    samples: int,
    temperature: float,
    top_k: int = 0,
    facts: Mapping[str, Any] | None = None,
  ):
    self._engine = engine
    self._path = path
    self._manifest_path = path.with_suffix(".json")
    self._examples = examples
    self._samples = samples
    self._sampler = rollouts.BatchSampler(
      engine, samples=samples, temperature=temperature, top_k=top_k
    )
    config = engine.config
    self._facts = {
      "samples": samples,
      "temperature": temperature,
      "top_k": top_k,
      "max_response_tokens": config.data.max_response_tokens,
      "seed": config.seed,
      "compute_dtype": config.model.compute_dtype,
      "tokenizer": engine.tokenizer.fingerprint[:16],
      "questions": _fingerprint(
        (each.problem.uid, each.prompt) for each in examples
      ),
      **(facts or {}),
    }
    self._check()

  @property
  def complete(self) -> bool:
    """Whether nothing is left to be sampled."""
    return len(self._lines()) == len(self._examples)

  def fill(
    self, policy: Any, key: jax.Array, console: console_lib.Console
  ) -> None:
    """Samples what is missing.

    Raises:
      PreemptedError: after SIGTERM, when a batch is on disk.
    """
    kept = self._lines()  # Without a line that a crash has torn.
    rules = self._rules()
    graded = self._graded_by() if kept else rules
    multihost.barrier("read")
    if multihost.is_lead():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      notes = {_GRADED: graded}
      manifest_lib.Manifest(_KIND, self._facts, notes).write(
        self._manifest_path
      )
      files.replace(self._path, (line.encode() for line in kept))
    batches = self._sampler.batches(
      policy, self._examples, key, start=len(kept)
    )
    name = self._path.stem
    with (
      multihost.open_to_append(self._path) as file,
      console.stage(name, len(self._examples), len(kept)) as progress,
    ):
      for groups in batches:
        # The file knows one set of rules; grades by others are not kept.
        file.writelines(_line(group, graded == rules) for group in groups)
        file.flush()
        progress.step(progress.done + len(groups))
        preemption.raise_if_stop_requested(
          f"{name}: {progress.done} of {len(self._examples)}"
          " questions are sampled"
        )
    multihost.barrier("sampled")  # All read what the lead has written.

  def answers(self) -> list[list[grading.Answer]]:
    """All completions, graded by the rules of the run's grader.

    What was graded by them when it was sampled is not graded again: of a
    program near its limits another verdict might come.
    """
    same_rules = self._graded_by() == self._rules()
    pairs = [*zip(self._examples, self._rows(), strict=True)]
    again = [
      pair for pair in pairs if not same_rules or pair[1].get("grades") is None
    ]
    started = {
      index: self._grade(*again[index])
      for index in multihost.own_rows(len(again))
    }
    # Only now are programs waited for: many run at once.
    grades = multihost.allgather_rows(
      {
        index: [answer.to_json() for answer in group]
        for index, group in started.items()
      },
      len(again),
    )
    for (_, row), group in zip(again, grades, strict=True):
      row["grades"] = group
    return [_answers(*pair) for pair in pairs]

  def _grade(
    self, example: encode.Example, row: Mapping[str, Any]
  ) -> Iterator[grading.Answer]:
    """The answers of a line, graded again; starts at once, waits when asked."""
    started = [
      self._engine.grader.start(example.problem, completion)
      for completion in row["completions"]
    ]
    return (
      grading.Answer(
        example, each.completion, each.grade(), ended, each.result()
      )
      for each, ended in zip(started, row["ended"], strict=True)
    )

  def _rules(self) -> dict[str, Any]:
    """By what the run's grader grades."""
    grader = self._engine.grader
    rules = {
      "reasoning": grader.reasoning,
      "answers": grader.mode,
      "known": _fingerprint(
        (each.problem.task, each.problem.answer) for each in self._examples
      ),
    }
    if grader.reasoning == "python":
      rules |= vars(self._engine.config.programs)
      del rules["workers"]  # How many programs run at once.
    return rules

  def _graded_by(self) -> Any:
    """The rules by which the completions on disk were graded."""
    found = manifest_lib.read(self._manifest_path, _REMEDY)
    return found and found.notes.get(_GRADED)

  def _lines(self) -> list[str]:
    """The whole lines of the file."""
    if not self._path.exists():
      return []
    lines = self._path.read_text(encoding="utf-8").splitlines(True)
    return [line for line in lines if line.endswith("\n")]

  def _rows(self) -> list[dict[str, Any]]:
    """What the whole lines hold.

    Raises:
      UserError: they are not these questions', in their order.
    """
    rows = []
    for number, line in enumerate(self._lines(), start=1):
      try:
        rows.append(json.loads(line))
        uid = self._examples[number - 1].problem.uid
        counts = [len(rows[-1][name]) for name in ("completions", "ended")]
        alike = rows[-1]["uid"] == uid and counts == [self._samples] * 2
      except (ValueError, LookupError, TypeError):
        alike = False
      if not alike:
        raise UserError(
          f"{self._path} line {number}: not what was written for question"
          f" {number} of {len(self._examples)}; set output to another folder,"
          " or remove the file."
        )
    return rows

  def _check(self) -> None:
    if not self._lines():
      return
    before = manifest_lib.read(self._manifest_path, _REMEDY)
    if before is None:
      raise UserError(
        f"{self._path} holds completions, but no {self._manifest_path.name}"
        f" beside it says of what model; {_REMEDY}"
      )
    changed = before.changes(manifest_lib.Manifest(_KIND, self._facts))
    if changed:
      raise UserError(
        f"{self._path} holds completions of another kind"
        f" ({'; '.join(changed)}); {_REMEDY}"
      )
    self._rows()


def _line(group: Sequence[grading.Answer], graded: bool) -> str:
  problem = group[0].example.problem
  row = {
    "uid": problem.uid,
    "question": problem.question,
    "answer": problem.answer,
    "completions": [answer.completion for answer in group],
    "ended": [answer.ended for answer in group],
    "grades": [answer.to_json() for answer in group] if graded else None,
  }
  return json.dumps(row) + "\n"


def _answers(
  example: encode.Example, row: Mapping[str, Any]
) -> list[grading.Answer]:
  """The answers of a line, with the grades it holds."""
  columns = (row[name] for name in ("completions", "ended", "grades"))
  return [
    grading.Answer.from_json(example, *each)
    for each in zip(*columns, strict=True)
  ]


def _fingerprint(facts: Iterable[tuple[Any, ...]]) -> str:
  """SHA-256 of facts, one for each question, as 16 hex digits."""
  return hashlib.sha256(repr(list(facts)).encode()).hexdigest()[:16]
