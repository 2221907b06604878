"""Completions on disk: sampled once, and graded as they are sampled.

A collection is two files. `NAME.json` says what is asked, of what model and
how, and by what rules it was graded; `NAME.jsonl` has a line for each question,
with all its completions and their grades, in the questions' order. Lines are
added as they are sampled, so a killed process loses one batch at most; what is
sampled for a question depends on its number alone, so the next process adds
what the first would have.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from reft_jax import files
from reft_jax.data import encode
from reft_jax.errors import UserError
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.runtime import multihost
from reft_jax.sampling import grading, rollouts

# In NAME.json beside what identifies the completions: how they were graded.
_GRADED = "graded"


class Collection:
  """The completions of some questions.

  Args:
    run: the run.
    path: the `.jsonl` file; made, with its folder, by the first draw.
    examples: the questions.
    samples: completions a question.
    temperature: 0 decodes greedily.
    top_k: likeliest tokens drawn from; 0 draws from all.
    identity: what else must not change, such as the model's fingerprint.

  Raises:
    UserError: the file holds other completions, or nothing says which.
  """

  def __init__(
    self,
    run: Run,
    path: pathlib.Path,
    examples: Sequence[encode.Example],
    *,
    samples: int,
    temperature: float,
    top_k: int = 0,
    identity: Mapping[str, Any] | None = None,
  ):
    self._run = run
    self._path = path
    self._beside = path.with_suffix(".json")
    self._examples = examples
    self._answerer = rollouts.BatchSampler(
      run, samples=samples, temperature=temperature, top_k=top_k
    )
    self._identity = {
      "samples": samples,
      "temperature": temperature,
      "top_k": top_k,
      "max_response_tokens": run.config.data.max_response_tokens,
      "seed": run.config.seed,
      "compute_dtype": run.config.model.compute_dtype,
      "tokenizer": run.tokenizer.fingerprint[:16],
      "questions": _fingerprint(
        (each.problem.uid, each.prompt) for each in examples
      ),
      **(identity or {}),
    }
    self._check()

  @property
  def complete(self) -> bool:
    """Whether nothing is left to be sampled."""
    return len(self._lines()) == len(self._examples)

  def draw(self, policy: Any, key: jax.Array) -> None:
    """Samples what is missing.

    Raises:
      PreemptedError: after SIGTERM, when a batch is on disk.
    """
    kept = self._lines()  # Without a line that a crash has torn.
    rules = self._rules()
    graded = (
      files.read_json(self._beside).get(_GRADED, rules) if kept else rules
    )
    multihost.barrier("read")
    if multihost.is_lead():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      about = {**self._identity, _GRADED: graded}
      files.replace(self._beside, json.dumps(about, indent=2) + "\n")
      files.replace(self._path, (line.encode() for line in kept))
    batches = self._answerer.batches(
      policy, self._examples, key, start=len(kept)
    )
    with (
      multihost.open_to_append(self._path) as file,
      self._run.console.stage(
        self._path.stem, len(self._examples), len(kept)
      ) as progress,
    ):
      for groups in batches:
        # The file knows one set of rules; grades by others are not kept.
        file.writelines(_line(group, graded == rules) for group in groups)
        file.flush()
        progress.step(progress.done + len(groups))
        loop_lib.stop_if_asked(
          f"{self._path.stem}: {progress.done} of {len(self._examples)}"
          " questions are sampled"
        )
    multihost.barrier("drawn")  # What one has written all will read.

  def answers(self) -> list[list[grading.Answer]]:
    """All completions, graded by the rules of the run's grader.

    What was graded by them when it was sampled is not graded again: of a
    program near its limits another verdict might come.
    """
    alike = files.read_json(self._beside).get(_GRADED) == self._rules()
    pairs = [*zip(self._examples, self._rows(), strict=True)]
    anew = [
      pair for pair in pairs if not alike or pair[1].get("grades") is None
    ]
    started = {
      index: self._graded(*anew[index])
      for index in multihost.own_rows(len(anew))
    }
    # Only now are programs waited for: many run at once.
    grades = multihost.allgather_rows(
      {
        index: [answer.to_json() for answer in group]
        for index, group in started.items()
      },
      len(anew),
    )
    for (_, row), judgements in zip(anew, grades, strict=True):
      row["grades"] = judgements
    return [_recalled(*pair) for pair in pairs]

  def _graded(
    self, example: encode.Example, row: Mapping[str, Any]
  ) -> Iterator[grading.Answer]:
    """The answers of a line, graded anew; starts at once, waits when asked."""
    started = [
      self._run.grader.start(example.problem, completion)
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
    grader = self._run.grader
    rules = {
      "reasoning": grader.reasoning,
      "answers": grader.mode,
      "known": _fingerprint(
        (each.problem.task, each.problem.answer) for each in self._examples
      ),
    }
    if grader.reasoning == "python":
      rules |= vars(self._run.config.programs)
      del rules["workers"]  # How many programs run at once.
    return rules

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
    lines = self._lines()
    for number, line in enumerate(lines, start=1):
      try:
        rows.append(json.loads(line))
        uid = self._examples[number - 1].problem.uid
        counts = [len(rows[-1][name]) for name in ("completions", "ended")]
        alike = rows[-1]["uid"] == uid
        alike &= counts == [self._identity["samples"]] * 2
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
    before = files.read_json(self._beside)
    if not before:
      raise UserError(
        f"{self._path} holds completions, but no {self._beside.name} beside it"
        " says of what model; set output to another folder, or remove it."
      )
    before.pop(_GRADED, None)
    changed = [
      f"{key}: {before.get(key)} -> {self._identity.get(key)}"
      for key in dict.fromkeys((*before, *self._identity))
      if before.get(key) != self._identity.get(key)
    ]
    if changed:
      raise UserError(
        f"{self._path} holds completions of another kind"
        f" ({'; '.join(changed)}); set output to another folder, or remove it."
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


def _recalled(
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
