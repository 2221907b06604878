"""Questions to graded completions: what evaluation and rollouts share."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from reft_jax import (
  batching,
  devices,
  processes,
  rollout,
  selection,
  steps,
  terminal,
  types,
)
from reft_jax import config as config_lib
from reft_jax.methods.run import Run
from reft_jax.tasks import answers, choices, grading
from reft_jax.tasks.answers import Verdict
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import results

# The share of right letters that come from another value.
UNREACHED = "choice/unreached"


@dataclasses.dataclass(frozen=True)
class Answer:
  """One completion of a question and what it is worth.

  `result` is how its program ended, where chains of thought are programs; what
  the program returned is left out of one that was `recalled`.
  """

  example: batching.Example
  completion: str
  grade: answers.Grade
  ended: bool
  result: results.Result | None = None

  @property
  def correct(self) -> bool:
    """Whether the final answer is right."""
    return self.grade.verdict is Verdict.CORRECT

  @property
  def choice(self) -> bool:
    """Whether the question is multiple choice."""
    return answers.kind(self.example.problem.task) == "letter"

  def solution(self) -> terminal.Solution:
    """As the terminal shows it."""
    return terminal.Solution(
      completion=self.completion,
      verdict=self.grade.verdict.value,
      value=self.grade.value,
    )

  def row(self) -> dict[str, Any]:
    """As a file of samples holds it."""
    problem = self.example.problem
    return {
      "uid": problem.uid,
      "question": problem.question,
      "completion": self.completion,
      **self.judgement(),
      "answer": problem.answer,
      "ended": self.ended,
    }

  def judgement(self) -> dict[str, Any]:
    """The grade, and how the program ended, as JSON knows them."""
    grade, result = self.grade, self.result
    ran = result and {
      "program": result.status.value,
      "tier": result.tier,
      "reason": result.reason,
    }
    return {
      "verdict": grade.verdict.value,
      "value": grade.value,
      "reached": grade.reached,
      "supported": grade.supported,
      **(ran or {}),
    }

  @classmethod
  def recalled(
    cls,
    example: batching.Example,
    completion: str,
    ended: bool,
    judgement: Mapping[str, Any],
  ) -> "Answer":
    """The answer whose `judgement` was kept."""
    grade = answers.Grade(
      Verdict(judgement["verdict"]),
      judgement["value"],
      judgement["reached"],
      judgement["supported"],
    )
    result = None
    if "program" in judgement:
      status = results.Status(judgement["program"])
      result = results.Result(
        status, judgement["tier"], reason=judgement["reason"]
      )
    return cls(example, completion, grade, ended, result)


class Verdicts:
  """The completions of one rollout on their way to their verdicts.

  It is given to a sampler as `on_ended`: programs of rows that have ended run
  while others are sampled and, until `answers` is called, while the device
  goes on with something else. Of several processes each grades its share.

  Args:
    run: the run.
    examples: one for each row; further rows of the rollout are ignored.
  """

  def __init__(self, run: Run, examples: Sequence[batching.Example]):
    self._run = run
    self._examples = examples
    self._share = processes.share(len(examples))
    self._started: dict[int, grading.Started] = {}

  def __call__(self, rows: Sequence[int], sampled: rollout.Progress) -> None:
    """Starts to grade rows that have ended."""
    response_BT, lengths_B = jax.device_get(
      (sampled.response_BT, sampled.lengths_B)
    )
    self._start(rows, response_BT, lengths_B)

  def answers(self, sampled: types.Rollout) -> list[Answer]:
    """One answer for each example; waits for programs that still run."""
    response_BT, lengths_B, ended_B = processes.whole(
      (sampled.response_BT, sampled.response_lengths_B, sampled.ended_B)
    )
    self._start(self._share, response_BT, lengths_B)
    mine = {
      row: Answer(
        self._examples[row],
        started.completion,
        started.grade(),
        bool(ended_B[row]),
        started.result(),
      )
      for row, started in self._started.items()
    }
    judgements = processes.exchange(
      {row: answer.judgement() for row, answer in mine.items()},
      len(self._examples),
    )
    return [
      mine[row]
      if row in mine
      else Answer.recalled(
        example,
        self._completion(row, response_BT, lengths_B),
        bool(ended_B[row]),
        judgements[row],
      )
      for row, example in enumerate(self._examples)
    ]

  def _completion(
    self, row: int, response_BT: np.ndarray, lengths_B: np.ndarray
  ) -> str:
    return self._run.tokenizer.decode(response_BT[row, : lengths_B[row]])

  def _start(
    self, rows: Sequence[int], response_BT: np.ndarray, lengths_B: np.ndarray
  ) -> None:
    for row in rows:
      if row in self._share and row not in self._started:
        self._started[row] = self._run.grader.start(
          self._examples[row].problem,
          self._completion(row, response_BT, lengths_B),
        )


def accuracy(graded: Sequence[Answer]) -> float:
  """Share of answers that are correct; nan without any."""
  if not graded:
    return float("nan")
  return sum(answer.correct for answer in graded) / len(graded)


def majority_accuracy(
  groups: Sequence[Sequence[Answer]], mode: str = "strict"
) -> float:
  """Share of questions whose most frequent answer is correct."""
  right = 0
  for group in groups:
    chosen = selection.majority([a.grade.value for a in group], mode)
    right += any(
      answer.correct and selection.same(answer.grade.value, chosen, mode)
      for answer in group
    )
  return right / len(groups) if groups else float("nan")


def rewards(
  answered: Sequence[Answer], config: config_lib.ReftConfig
) -> np.ndarray:
  """Terminal scores, by `worth`."""
  worths = [worth(a.example.problem, a.grade, config) for a in answered]
  return np.array(worths, np.float32)


def worth(
  problem: Problem, grade: answers.Grade, config: config_lib.ReftConfig
) -> float:
  """What an answer earns: 1 right, `partial_reward` wrong, 0 if there is none.

  With choice_reward=value a right letter whose value the reasoning does not
  reach is worth as much as a wrong one. A letter without a value, such as
  `none of these`, is paid as it is.

  Deviation: the paper gives partial credit to wrong numbers only, its code to
  wrong letters too, as here.
  """
  if grade.verdict is Verdict.NONE:
    return 0.0
  if grade.verdict is Verdict.WRONG:
    return config.partial_reward
  if config.choice_reward == "value" and grade.supported is not True:
    option = choices.options(problem.question).get(grade.value)
    if option is not None and option.value is not None:
      return config.partial_reward
  return 1.0


def shares(
  answered: Sequence[Answer], config: config_lib.ReftConfig
) -> dict[str, types.Mean]:
  """The share of each verdict, and of the reward that is partial credit.

  On multiple choice also the share of right letters, of those where it can be
  told, that come with a value that is not the letter's; of programs also the
  share that ended in each way.
  """
  rows = len(answered)
  metrics = {
    f"verdict/{verdict.value}": types.Mean.of(
      sum(answer.grade.verdict is verdict for answer in answered), rows
    )
    for verdict in Verdict
  }
  scores_B = rewards(answered, config)
  partial = scores_B[scores_B < 1].sum()
  metrics["reward/partial"] = types.Mean.of(partial, scores_B.sum())
  if any(answer.choice for answer in answered):
    told = [a.grade.supported for a in answered if a.correct]
    told = [supported for supported in told if supported is not None]
    metrics[UNREACHED] = types.Mean.of(told.count(False), len(told))
  ran = [a.result.status for a in answered if a.result is not None]
  if ran:
    metrics |= {
      f"program/{status.name.lower()}": types.Mean.of(ran.count(status), rows)
      for status in results.Status
    }
  return metrics


class Answerer:
  """Answers any number of questions, a batch of one shape at a time.

  A batch holds at most `evaluation.batch_size` rows, samples counted (or a row
  for each device).

  Args:
    run: the run.
    samples: completions a question.
    temperature: 0 decodes greedily.
    top_k: likeliest tokens drawn from; 0 draws from all.
  """

  def __init__(
    self, run: Run, *, samples: int, temperature: float, top_k: int = 0
  ):
    self._run = run
    ways = devices.batch_ways(run.sampling_mesh)
    rows = max(run.config.evaluation.batch_size, ways)
    # So many samples at a time that they fit a batch, in equal passes.
    at_once = max(
      n for n in range(1, samples + 1) if samples % n == 0 and n * ways <= rows
    )
    self._passes = samples // at_once
    self._batch = rows // at_once // ways * ways
    self._sample = rollout.Sampler(
      run.networks,
      response_tokens=run.config.data.max_response_tokens,
      eos_ids=run.tokenizer.eos_ids,
      pad_id=run.tokenizer.pad_id,
      temperature=temperature,
      top_k=top_k,
      samples=at_once,
    )

  def __call__(
    self, policy: Any, examples: Sequence[batching.Example], key: jax.Array
  ) -> list[list[Answer]]:
    """`samples` answers for each example, in their order."""
    return list(itertools.chain(*self.batches(policy, examples, key)))

  def batches(
    self,
    policy: Any,
    examples: Sequence[batching.Example],
    key: jax.Array,
    start: int = 0,
  ) -> Iterator[list[list[Answer]]]:
    """The same a batch of examples at a time, from example `start` on."""
    published = self._run.publish(policy)
    for first in range(start, len(examples), self._batch):
      some = range(first, min(first + self._batch, len(examples)))
      groups: list[list[Answer]] = [[] for _ in some]
      for number in range(self._passes):
        requests = [index * self._passes + number for index in some]
        prompts = self._run.prompts(
          [examples[index] for index in some], requests, self._batch
        )
        rows = [each for each in some for _ in range(self._sample.samples)]
        verdicts = Verdicts(self._run, [examples[row] for row in rows])
        sampled = self._run.sample(
          self._sample, published, prompts, key, verdicts
        )
        for row, answer in zip(rows, verdicts.answers(sampled), strict=True):
          groups[row - first].append(answer)
      yield groups


class Rollouts:
  """What a stage that samples as it learns samples, step by step.

  Args:
    run: the run.
    name: the stage's; its random streams follow from it.
    config: how many questions and samples a step has.

  Attributes:
    steps: how many there are.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    config: config_lib.RolloutsConfig,
  ):
    self._run = run
    self._name = name
    self._rows = config.batch_size
    self._questions = config.batch_size // config.samples_per_question
    self.steps = config.steps or config.epochs * -(
      -len(run.train) // self._questions
    )
    self._sample = rollout.Sampler(
      run.networks,
      response_tokens=run.config.data.max_response_tokens,
      eos_ids=run.tokenizer.eos_ids,
      pad_id=run.tokenizer.pad_id,
      temperature=config.temperature,
      samples=config.samples_per_question,
    )

  def __call__(
    self, policy: Any, step: int
  ) -> tuple[types.Rollout, list[batching.Example], Verdicts]:
    """A step's rollout, each row's question, and its verdicts under way.

    The rollout is as wide as its longest response, in steps of
    `data.length_bucket`.
    """
    run = self._run
    requests = batching.stream_requests(
      len(run.train),
      seed=run.config.seed,
      step=step,
      batch=self._questions,
    )
    examples = [run.train[number % len(run.train)] for number in requests]
    batch = devices.shared_alike(
      run.sampling_mesh, self._questions, self._sample.samples
    )
    prompts = run.prompts(examples, requests, batch)
    rows = [each for each in examples for _ in range(self._sample.samples)]
    verdicts = Verdicts(run, rows)
    sampled = run.sample(
      self._sample,
      run.publish(policy),
      prompts,
      run.key(self._name, "sample", step),
      verdicts,
    )
    if batch > self._questions:
      sampled = steps.some_rows(sampled, 0, self._rows)
    data = run.config.data
    slots = batching.width(
      processes.whole(sampled.response_lengths_B).tolist(),
      bucket=data.length_bucket,
      most=data.max_response_tokens,
    )
    if slots < data.max_response_tokens:
      sampled = steps.trimmed(sampled, slots)
    return sampled, rows, verdicts
