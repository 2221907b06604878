"""One model's answers to one set of questions, and what they come to.

Answers are sampled once and kept with their grades; votes, reranking, intervals
and grades by other rules are worked out from the files each time, without the
model's weights.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reft_jax import files as files_lib
from reft_jax import manifest
from reft_jax.data import encode
from reft_jax.errors import UserError
from reft_jax.evaluation import settings as settings_lib
from reft_jax.evaluation import votes
from reft_jax.huggingface import fingerprint, hub
from reft_jax.models.hf import read as reader
from reft_jax.run import model_paths, setup
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import keys, multihost, pages, preemption
from reft_jax.sampling import engine as engine_lib
from reft_jax.sampling import grading, store
from reft_jax.sampling import judge as judge_lib
from reft_jax.tasks.answers.grade import Verdict

Groups = Sequence[Sequence[grading.Answer]]

# Of the questions drawn for an interval. One seed for all: figures of the same
# questions are then compared on the same resamples.
_BOOTSTRAP_SEED = 0
_QUESTIONS_JUDGED_AT_ONCE = 16
# The settings of an evaluation that say how answers are sampled.
_SAMPLING = ("samples", "temperature", "top_k")


@dataclasses.dataclass(frozen=True)
class Figure:
  """A share of the questions, and its 95 % interval over questions."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Answered:
  """All that is known of each question.

  Attributes:
    greedy: a greedy answer a question.
    sampled: the samples of each question; none where none were asked for.
    rewards: for each sample the probability of being right that a reward model
      gives it; None without one.
  """

  greedy: Sequence[grading.Answer]
  sampled: Groups
  rewards: Sequence[Sequence[float]] | None


class Evaluation:
  """A model's answers in a folder.

  Args:
    engine: what samples the answers.
    directory: where they are kept.
    model: the model.
    problems: the questions, and how many were left out.
    console: where progress is shown.

  Raises:
    UserError: the folder holds answers of another model or to other questions,
      or what is to be opened later cannot be.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    directory: pathlib.Path,
    model: model_paths.Model,
    problems: encode.Encoded,
    console: console_lib.Console,
  ):
    self.engine = engine
    self.directory = directory
    self.model = model
    self.problems = problems
    self._console = console
    self._seconds = self._seconds_before()
    settings = engine.config.evaluation
    facts = {"model": fingerprint.of_weights(model.folder)}
    sampled = {name: getattr(settings, name) for name in _SAMPLING}
    asked = {"greedy": {"samples": 1, "temperature": 0.0}, "sampled": sampled}
    self._stores = {
      name: store.Store(
        engine,
        directory / f"{name}.jsonl",
        problems.examples,
        **options,
        facts=facts,
      )
      for name, options in asked.items()
      if options["samples"]
    }
    check(model, engine)
    if settings.reward_model:
      judge_lib.check(engine, self._judge_folder)

  def sample(self) -> None:
    """Answers what is not yet answered."""
    missing = {
      name: stored
      for name, stored in self._stores.items()
      if not stored.complete
    }
    if not missing:
      return
    policy = open_policy(self.model, self.engine)
    seed = self.engine.config.seed
    for name, stored in missing.items():
      begin = time.monotonic()
      key = keys.derive(seed, "evaluation", name)
      stored.fill(policy, key, self._console)
      self._spent(name, begin)

  def answers(self) -> Answered:
    """Everything sampled, graded; what no reward model has seen is judged."""
    greedy = [group[0] for group in self._stores["greedy"].answers()]
    if "sampled" not in self._stores:
      return Answered(greedy, [], None)
    sampled = self._stores["sampled"].answers()
    rewards = None
    if self.engine.config.evaluation.reward_model:
      rewards = self._rewards(sampled)
    return Answered(greedy, sampled, rewards)

  def write(self, answered: Answered) -> dict[str, Any]:
    """Writes evaluation.json and report.html; returns what the first holds."""
    summary = self._summary(answered)
    if not multihost.is_lead():
      return summary
    directory = self.directory
    page = pages.render("report", report(summary, answered))
    files_lib.replace(directory / "report.html", page)
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    files_lib.replace(directory / settings_lib.FILE, text)  # Last: all is done.
    return summary

  def _summary(self, answered: Answered) -> dict[str, Any]:
    config = self.engine.config
    settings = config.evaluation
    found = figures(
      answered,
      at=settings_lib.numbers(settings),
      mode=config.data.answers,
      resamples=settings.resamples,
    )
    samples = [answer for group in answered.sampled for answer in group]
    return {
      "model": self.model.name,
      "folder": str(self.model.folder),
      "split": settings.split,
      "questions": len(self.problems.examples),
      "left_out": self.problems.left_out,
      "long_prompts": self.problems.long_prompts,
      "samples": settings.samples,
      "temperature": settings.temperature,
      "top_k": settings.top_k,
      "reasoning": config.data.reasoning,
      "answers": config.data.answers,
      "reward_model": settings.reward_model,
      "resamples": settings.resamples,
      "accuracy": {
        name: dataclasses.asdict(figure) for name, figure in found.items()
      },
      "verdicts": {"greedy": verdicts(answered.greedy)}
      | ({"sampled": verdicts(samples)} if samples else {}),
      "seconds": self._seconds,
    }

  @property
  def _judge_folder(self) -> pathlib.Path:
    name = self.engine.config.evaluation.reward_model
    return hub.folder(str(name), "evaluation.reward_model")

  def _rewards(self, sampled: Groups) -> list[list[float]]:
    """A reward model's opinion of each sample, taken once.

    What another reward model said, or of other samples, is written over.
    """
    directory = self.directory
    file, about = directory / "rewards.jsonl", directory / "rewards.json"
    described = manifest.Manifest(
      "rewards",
      {
        "reward_model": fingerprint.of_weights(self._judge_folder),
        "sampled": hashlib.sha256(
          (directory / "sampled.jsonl").read_bytes()
        ).hexdigest(),
      },
    )
    known = manifest.read(about, "remove it.") == described
    kept = _judged(file, sampled) if known else []
    if len(kept) < len(sampled):
      begin = time.monotonic()
      judge = judge_lib.load(self.engine, self._judge_folder)
      multihost.barrier("read")
      if multihost.is_lead():
        files_lib.replace(file, "".join(kept))
        described.write(about)
      with (
        multihost.open_to_append(file) as out,
        self._console.stage("rewards", len(sampled), len(kept)) as progress,
      ):
        for start in range(len(kept), len(sampled), _QUESTIONS_JUDGED_AT_ONCE):
          some = sampled[start : start + _QUESTIONS_JUDGED_AT_ONCE]
          for group, probabilities in zip(some, judge(some), strict=True):
            uid = group[0].example.problem.uid
            row = {"uid": uid, "probabilities": probabilities}
            kept.append(json.dumps(row) + "\n")
            out.write(kept[-1])
          out.flush()
          progress.step(len(kept))
          preemption.raise_if_stop_requested(
            f"{len(kept)} questions are judged"
          )
      self._spent("rewards", begin)
    return [json.loads(line)["probabilities"] for line in kept]

  def _seconds_before(self) -> dict[str, float]:
    """What earlier commands spent on these answers, killed ones left out."""
    return files_lib.read_json(self.directory / settings_lib.FILE).get(
      "seconds", {}
    )

  def _spent(self, name: str, begin: float) -> None:
    spent = self._seconds.get(name, 0.0) + time.monotonic() - begin
    self._seconds[name] = round(spent, 1)


def _judged(file: pathlib.Path, sampled: Groups) -> list[str]:
  """The lines of rewards as they were written, up to one that was not."""
  kept = []
  lines = file.read_text().splitlines(True) if file.exists() else []
  for line, group in zip(lines, sampled, strict=False):
    try:
      row = json.loads(line)
      uid, count = row["uid"], len(row["probabilities"])
    except (ValueError, LookupError, TypeError):
      break
    known = uid == group[0].example.problem.uid and count == len(group)
    if not (known and line.endswith("\n")):
      break
    kept.append(line)
  return kept


def check(model: model_paths.Model, engine: engine_lib.Engine) -> None:
  """Finds out whether `open_policy` will do, without reading the weights.

  Raises:
    UserError: the folder holds no policy of the run's shape.
    UnsupportedModelError: its tensors do not fit its config.json.
  """
  if model.checkpoint:
    if "policy" not in model_paths.parts(model.folder, engine.networks):
      raise UserError(
        f"{model.folder}: no language model of the shape that the settings of "
        f"{model.run} describe; give another checkpoint."
      )
  elif reader.is_classifier(model.folder):
    raise UserError(
      f"{model.folder} holds a reward model, which answers no questions; give "
      f"a language model, with evaluation.reward_model={model.folder} to "
      "rerank its answers."
    )
  else:
    reader.check(model.folder)


def open_policy(model: model_paths.Model, engine: engine_lib.Engine) -> Any:
  """A model's parameters, on the devices."""
  if model.checkpoint:
    held = model_paths.read(
      model.folder, engine.networks, engine.mesh, ("policy",)
    )
    return held["policy"]
  size = engine.networks.config.vocab_size
  return setup.read_policy(model.folder, engine.mesh, size)


def figures(
  answered: Answered, *, at: Sequence[int], mode: votes.Mode, resamples: int
) -> dict[str, Figure]:
  """Accuracies by how an answer is chosen.

  `greedy`; `sampled`, of one sample; for each k of `at` `majority@k`, `pass@k`
  and, with rewards, `rerank@k`; `upper_bound`, of a choice that is never wrong
  where any sample is right. Votes and choices among fewer than all samples are
  averaged over disjoint blocks of k.
  """
  scores_Q: dict[str, list[float]] = {
    "greedy": [answer.correct for answer in answered.greedy]
  }
  if answered.sampled:
    right = [[answer.correct for answer in group] for group in answered.sampled]
    scores_Q["sampled"] = [statistics.fmean(marks) for marks in right]
    blocks = {k: votes.blocks(len(right[0]), k) for k in at}
    for k in at:
      scores_Q[f"majority@{k}"] = [
        statistics.fmean(
          grading.majority_accuracy([group[b]], mode) for b in blocks[k]
        )
        for group in answered.sampled
      ]
    rewards_QK = answered.rewards
    for k in at if rewards_QK is not None else ():
      scores_Q[f"rerank@{k}"] = [
        statistics.fmean(
          reranked(group[b], rewards[b], mode) for b in blocks[k]
        )
        for group, rewards in zip(
          answered.sampled, rewards_QK or (), strict=True
        )
      ]
    for k in at:
      scores_Q[f"pass@{k}"] = [
        votes.pass_at_k(len(marks), sum(marks), k) for marks in right
      ]
    scores_Q["upper_bound"] = [any(marks) for marks in right]
  return {
    name: Figure(
      statistics.fmean(scores),
      *votes.bootstrap(scores, resamples, _BOOTSTRAP_SEED),
    )
    for name, scores in scores_Q.items()
  }


def reranked(
  group: Sequence[grading.Answer], rewards: Sequence[float], mode: votes.Mode
) -> bool:
  """Whether the answer that a reward model finds best is right."""
  best = votes.rerank([a.grade.value for a in group], rewards, mode)
  return best is not None and group[best].correct


def report(summary: Mapping[str, Any], answered: Answered) -> dict[str, Any]:
  """The data of templates/report.html."""
  sampled = answered.sampled or [[] for _ in answered.greedy]
  rewards: Sequence[Sequence[float | None]] = answered.rewards or [
    [None] * len(group) for group in sampled
  ]
  mode = summary["answers"]
  return {
    "summary": summary,
    "questions": [
      _question(greedy, group, probabilities, mode)
      for greedy, group, probabilities in zip(
        answered.greedy, sampled, rewards, strict=True
      )
    ],
  }


def _question(
  greedy: grading.Answer,
  group: Sequence[grading.Answer],
  probabilities: Sequence[float | None],
  mode: votes.Mode,
) -> dict[str, Any]:
  problem = greedy.example.problem
  values = [answer.grade.value for answer in group]
  vote = votes.majority(values, mode)
  judged = [each for each in probabilities if each is not None]
  best = votes.rerank(values, judged, mode) if judged else None
  return {
    "uid": problem.uid,
    "question": problem.question.strip(),
    "answer": problem.answer,
    "greedy": _sample(greedy, None),
    "samples": [
      _sample(answer, probability)
      for answer, probability in zip(group, probabilities, strict=True)
    ],
    "vote": _text(vote),
    "vote_right": grading.majority_accuracy([group], mode) == 1,
    "best": best,
  }


def _sample(answer: grading.Answer, probability: float | None) -> list[Any]:
  """Completion, verdict, value, probability of being right, whether it ended.

  Without names, as a page may hold a hundred thousand of them.
  """
  if probability is not None and math.isnan(probability):
    probability = None
  return [
    answer.completion,
    answer.grade.verdict.value,
    _text(answer.grade.value),
    probability and round(probability, 4),
    answer.ended,
  ]


def _text(value: votes.Value | None) -> str | None:
  return f"{value:.10g}" if isinstance(value, float) else value


def verdicts(answers: Iterable[grading.Answer]) -> dict[str, int]:
  """How many answers are right, wrong and none."""
  counts = Counter(answer.grade.verdict for answer in answers)
  return {verdict.value: counts[verdict] for verdict in Verdict}
