"""Completions of one stage with their verdicts, as JSON lines."""

import json
from collections.abc import Sequence

from reft_jax import files
from reft_jax.run import context
from reft_jax.runtime import multihost
from reft_jax.sampling import grading


class Samples:
  """Writes a stage's `samples/NAME.jsonl`; the lead process alone does."""

  def __init__(self, run: context.Run, name: str):
    self._run = run
    self._name = name
    self._path = run.directory / "samples" / f"{name}.jsonl"
    self._writes = multihost.is_lead()
    if self._writes:
      self._path.parent.mkdir(parents=True, exist_ok=True)

  def write(
    self, step: int, answers: Sequence[grading.Answer], *, show: bool
  ) -> None:
    """Appends completions of a step; the first is shown if asked to."""
    if not self._writes:
      return
    with self._path.open("a", encoding="utf-8") as file:
      file.writelines(
        json.dumps({"step": step, **answer.row()}) + "\n" for answer in answers
      )
    if show:
      problem, solution = answers[0].example.problem, answers[0].solution()
      self._run.console.sample(
        self._name, step, problem.question, solution, problem.answer
      )

  def replace(self, answers: Sequence[grading.Answer]) -> None:
    """Makes these the file's only rows."""
    if self._writes:
      rows = (json.dumps(answer.row()) + "\n" for answer in answers)
      files.replace(self._path, "".join(rows))

  def rewind(self, next_step: int) -> None:
    """Drops the rows of steps that are to be run again, and a torn line."""
    if self._writes and self._path.exists():
      lines = self._path.read_text(encoding="utf-8").splitlines(True)
      whole = [line for line in lines if line.endswith("\n")]
      kept = [line for line in whole if json.loads(line)["step"] < next_step]
      self._path.write_text("".join(kept), encoding="utf-8")
