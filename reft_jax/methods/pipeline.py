"""The stages of a run, in their order: each trains, is kept, and is tested."""

import dataclasses
import json
import pathlib
import time
from typing import Any

from reft_jax import config as config_lib
from reft_jax.errors import UserError
from reft_jax.methods import answering, pretrain, reft, sft
from reft_jax.methods import loop as loop_lib
from reft_jax.methods.run import Run
from reft_jax.models import pretrained


@dataclasses.dataclass(frozen=True)
class Result:
  """What is known of a finished stage; accuracies are None without such data.

  Attributes:
    start: the stage it started from; None for one that starts from nothing.
    test_accuracy: greedy, on the test problems.
    majority_accuracy: of a vote among sampled answers to the same problems.
    dev_accuracy: greedy, of the kept parameters.
    best_step: the step they are from.
    learning_rate: the one they were trained with.
    seconds: training with its evaluations; a cached base model's were spent
      by the run that trained it.
    test_seconds: answering the test problems.
    cached: whether the model was there already.
    shares: of the greedy test answers, by the names that training logs: each
      verdict, partial credit in what they would be rewarded, and on multiple
      choice right letters that come from another value; None if of nothing.
  """

  start: str | None
  test_accuracy: float | None
  majority_accuracy: float | None
  dev_accuracy: float | None
  best_step: int
  learning_rate: float
  seconds: float
  test_seconds: float
  cached: bool
  shares: dict[str, float | None] = dataclasses.field(default_factory=dict)


class Pipeline:
  """Runs a run's stages, skipping those that an earlier process finished."""

  def __init__(self, run: Run):
    self._run = run
    evaluation = run.config.evaluation
    self._greedy = answering.Answerer(run, samples=1, temperature=0.0)
    self._vote = None
    if evaluation.majority_samples:
      self._vote = answering.Answerer(
        run,
        samples=evaluation.majority_samples,
        temperature=evaluation.majority_temperature,
      )

  def __call__(self, policy: Any | None) -> dict[str, Result]:
    """Runs all stages; `policy` is the pretrained one, None with a base stage.

    Returns:
      The result of each stage that is finished, from this call or before.
    """
    policies = {"base": policy}
    for name in self._run.config.stages:
      start = self._start(name)
      policies[name] = self._stage(name, start, policies.get(start))
    reports = {name: self._report(name) for name in config_lib.STAGES}
    return {
      name: Result(**json.loads(report.read_text()))
      for name, report in reports.items()
      if report.exists()
    }

  def _start(self, name: str) -> str | None:
    """The stage whose policy a stage starts from.

    ReFT starts from the warmed-up policy, or from the pretrained one in a run
    without a warm-up.
    """
    config = self._run.config
    match name:
      case "base":
        return None
      case "warmup":
        return "base"
      case "sft":
        return config.sft.start
      case "reft":
        return "warmup" if "warmup" in config.stages else "base"

  def _report(self, name: str) -> pathlib.Path:
    return loop_lib.stage_directory(self._run, name) / "result.json"

  def _stage(self, name: str, start: str | None, policy: Any | None) -> Any:
    """A stage's policy; from disk if the stage is finished."""
    run, report = self._run, self._report(name)
    model = run.directory / "models" / name
    if report.exists():
      before = Result(**json.loads(report.read_text())).start
      if before != start:
        raise UserError(
          f"{run.directory} holds a {name} stage that started from {before}, "
          f"and stages={list(run.config.stages)} would start it from {start}; "
          "set output to another folder."
        )
      run.terminal.line(f"{name}: finished before, kept in {model}")
      return pretrained.load(model)[1]
    trained, cached = self._train(name, policy)
    run.save_model(model, trained.policy, trained.facts())
    begin = time.monotonic()
    graded, majority = self._test(name, trained.policy)
    shares = answering.shares(graded, run.config.reft) if graded else {}
    result = Result(
      start=start,
      test_accuracy=answering.accuracy(graded) if graded else None,
      majority_accuracy=majority,
      dev_accuracy=trained.dev_accuracy,
      shares={
        metric: mean.value() if mean.count else None
        for metric, mean in shares.items()
      },
      best_step=trained.best_step,
      learning_rate=trained.learning_rate,
      seconds=round(trained.seconds, 1),
      test_seconds=round(time.monotonic() - begin, 1),
      cached=cached,
    )
    report.parent.mkdir(parents=True, exist_ok=True)
    new = report.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    new.replace(report)
    return trained.policy

  def _train(self, name, start) -> tuple[loop_lib.Trained, bool]:
    """Trains a stage, or takes the base model that an earlier run kept."""
    config, examine = self._run.config, self._examine
    match name:
      case "base":
        return pretrain.train_once(self._run, name)
      case "warmup":
        trained = sft.train(
          self._run, name, start, config.warmup, examine, keep="last"
        )
      case "sft":
        trained = sft.train(self._run, name, start, config.sft, examine)
      case "reft":
        trained = reft.train(self._run, name, start, config.reft, examine)
    return trained, False

  @property
  def _examine(self) -> loop_lib.Examine | None:
    """Greedy answers to the dev questions, during training."""
    run = self._run
    examples = run.dev[: run.config.evaluation.dev_limit]
    if not examples:
      return None
    return lambda policy: self._answer_greedily(policy, examples)

  def _answer_greedily(self, policy, examples) -> list[answering.Answer]:
    groups = self._greedy(policy, examples, self._run.key("greedy"))
    return [group[0] for group in groups]

  def _test(self, name, policy) -> tuple[list[answering.Answer], float | None]:
    """Greedy test answers and majority accuracy; completions are kept."""
    run = self._run
    if not run.test:
      return [], None
    graded = self._answer_greedily(policy, run.test)
    loop_lib.Samples(run, f"test-{name}").replace(graded)
    if self._vote is None:
      return graded, None
    groups = self._vote(policy, run.test, run.key(name, "vote"))
    first = [group[0] for group in groups]
    loop_lib.Samples(run, f"test-{name}-sampled").replace(first)
    mode = run.config.data.answers
    return graded, answering.majority_accuracy(groups, mode)
