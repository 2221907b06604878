"""Completions on disk: sampled once, graded as often as one likes.

A collection is two files. `NAME.json` says what is asked, of what model and
how; `NAME.jsonl` has a line for each question, with all its completions, in
the questions' order. Lines are added as they are sampled, so a killed process
loses one batch at most; what is sampled for a question depends on its number
alone, so the next process adds what the first would have.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from reft_jax import batching
from reft_jax.errors import UserError
from reft_jax.methods import answering
from reft_jax.methods.run import Run


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
    UserError: the file holds other completions.
  """

  def __init__(
    self,
    run: Run,
    path: pathlib.Path,
    examples: Sequence[batching.Example],
    *,
    samples: int,
    temperature: float,
    top_k: int = 0,
    identity: Mapping[str, Any] | None = None,
  ):
    self._run = run
    self._path = path
    self._examples = examples
    self._answerer = answering.Answerer(
      run, samples=samples, temperature=temperature, top_k=top_k
    )
    self._about = {
      "samples": samples,
      "temperature": temperature,
      "top_k": top_k,
      "max_response_tokens": run.config.data.max_response_tokens,
      "seed": run.config.seed,
      "questions": _fingerprint(examples),
      **(identity or {}),
    }
    self._check()

  @property
  def complete(self) -> bool:
    """Whether nothing is left to be sampled."""
    return len(self._lines()) == len(self._examples)

  def draw(self, policy: Any, key: jax.Array) -> None:
    """Samples what is missing."""
    self._path.parent.mkdir(parents=True, exist_ok=True)
    about = self._path.with_suffix(".json")
    about.write_text(json.dumps(self._about, indent=2) + "\n")
    kept = self._lines()  # Without a line that a crash has torn.
    self._path.write_text("".join(kept), encoding="utf-8")
    batches = self._answerer.batches(
      policy, self._examples, key, start=len(kept)
    )
    with (
      self._path.open("a", encoding="utf-8") as file,
      self._run.terminal.stage(
        self._path.stem, len(self._examples), len(kept)
      ) as progress,
    ):
      for groups in batches:
        file.writelines(map(_line, groups))
        file.flush()
        progress.step(progress.done + len(groups))

  def answers(self) -> list[list[answering.Answer]]:
    """All completions, graded by the run's grader as it is now."""
    rows = [json.loads(line) for line in self._lines()]
    started = [
      [
        self._run.grader.start(example.problem, completion)
        for completion in row["completions"]
      ]
      for example, row in zip(self._examples, rows, strict=True)
    ]
    return [
      [
        answering.Answer(
          example, each.completion, each.grade(), ended, each.result()
        )
        for each, ended in zip(group, row["ended"], strict=True)
      ]
      for example, group, row in zip(self._examples, started, rows, strict=True)
    ]

  def _lines(self) -> list[str]:
    """The whole lines of the file."""
    if not self._path.exists():
      return []
    lines = self._path.read_text(encoding="utf-8").splitlines(True)
    return [line for line in lines if line.endswith("\n")]

  def _check(self) -> None:
    about = self._path.with_suffix(".json")
    if not about.exists():
      return
    before = json.loads(about.read_text(encoding="utf-8"))
    changed = [
      f"{key}: {before.get(key)} -> {self._about.get(key)}"
      for key in dict.fromkeys((*before, *self._about))
      if before.get(key) != self._about.get(key)
    ]
    if changed:
      raise UserError(
        f"{self._path} holds completions of another kind"
        f" ({'; '.join(changed)}); set output to another folder, or remove it."
      )


def _line(group: Sequence[answering.Answer]) -> str:
  row = {
    "uid": group[0].example.problem.uid,
    "completions": [answer.completion for answer in group],
    "ended": [answer.ended for answer in group],
  }
  return json.dumps(row) + "\n"


def _fingerprint(examples: Sequence[batching.Example]) -> str:
  """SHA-256 of the questions as they are asked, as 16 hex digits."""
  asked = [(each.problem.uid, each.prompt) for each in examples]
  return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
