"""The stages of a run, in their order: each trains, is kept, and is tested."""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reft_jax import files
from reft_jax.algorithms import (
  offline_st,
  online_st,
  pretrain,
  reft,
  reward_model,
  sft,
)
from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import lora as lora_lib
from reft_jax.models.hf import peft, pretrained
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.runtime import multihost
from reft_jax.sampling import grading, rollouts, store


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
    seconds: training with its evaluations, and draws that were sampled for
      it; a cached base model's were spent by the run that trained it.
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


def starts_from(config: schema.Config, stage: str) -> str | None:
  """The stage whose policy a stage starts from.

  ReFT and online self-training start from the warmed-up policy, or from the
  pretrained one where nothing is warmed up.
  """
  match stage:
    case "base":
      return None
    case "warmup":
      return "base"
    case "sft" | "offline_st" | "reward_model":
      return getattr(config, stage).start
    case "online_st" | "reft":
      return sampling_policy_stage(config)


def origin(config: schema.Config, directory: pathlib.Path, start: str) -> str:
  """The model of the stage `start`: a folder, or a name on the hub.

  Args:
    config: the run's.
    directory: its folder.
    start: a stage that others start from.
  """
  given = {"base": config.model.path, "warmup": config.model.warmup}[start]
  if given is None:
    return str((directory / "models" / start).resolve())
  if hub.is_id(given):
    return given
  return str(files.expand_user(given).resolve())


def sampling_policy_stage(config: schema.Config) -> str:
  """The stage whose policy draws solutions: the warmed-up one if there is."""
  return "warmup" if schema.warmed(config) else "base"


class Pipeline:
  """Runs a run's stages, skipping those that an earlier process finished.

  It holds on to one policy at most, between the stage that trained it and the
  next one that asks for any. Others are read from disk when they are needed.
  """

  def __init__(self, run: Run):
    self._run = run
    evaluation = run.config.evaluation
    self._greedy = rollouts.BatchSampler(run, samples=1, temperature=0.0)
    self._vote = None
    if evaluation.majority_samples:
      self._vote = rollouts.BatchSampler(
        run,
        samples=evaluation.majority_samples,
        temperature=evaluation.temperature,
        top_k=evaluation.top_k,
      )
    self._policies: Mapping[str, Callable[[], Any]] = {}
    self._held: dict[str, Any] = {}

  def __call__(
    self, policies: Mapping[str, Callable[[], Any]]
  ) -> dict[str, Result]:
    """Runs all stages.

    Args:
      policies: what reads those that no stage of this run trains: the
        pretrained one as `base`, a warmed-up one as `warmup`.

    Returns:
      The result of each stage that is finished, from this call or before.
    """
    self._policies = policies
    for name in self._run.config.stages:
      self._stage(name, starts_from(self._run.config, name))
    results = {name: self._result(name) for name in schema.STAGES}
    return {name: result for name, result in results.items() if result}

  def _report(self, name: str) -> pathlib.Path:
    return loop_lib.stage_directory(self._run, name) / "result.json"

  def _result(self, name: str) -> Result | None:
    """A stage's result if it is finished, as the first process reads it."""
    report = self._report(name)
    read = multihost.is_lead() and report.exists()
    text = multihost.broadcast_from_lead(report.read_text() if read else None)
    return Result(**json.loads(text)) if text else None

  def _model(self, name: str) -> pathlib.Path:
    return self._run.directory / "models" / name

  def _policy(self, name: str) -> Any:
    """A stage's policy, which from now on is its caller's alone."""
    held, self._held = self._held, {}
    if name in held:
      return held[name]
    held.clear()
    if name in self._policies:
      return self._policies[name]()
    return pretrained.load(
      self._model(name), mesh_lib.placement(self._run.mesh)
    )[1]

  def _stage(self, name: str, start: str | None) -> None:
    """Runs a stage unless it is finished."""
    run, finished = self._run, self._result(name)
    if finished:
      if finished.start != start:
        raise UserError(
          f"{run.directory} holds a {name} stage that started from "
          f"{finished.start}, "
          f"and stages={list(run.config.stages)} would start it from {start}; "
          "set output to another folder."
        )
      run.console.line(f"{name}: finished before, kept in {self._model(name)}")
      return
    begin = time.monotonic()
    draws = self._draws_for(name)
    drawn_in = time.monotonic() - begin
    policy = functools.partial(self._policy, start)
    if run.config.lora.rank:  # It stays as it is: one will do for all rates.
      policy = functools.cache(policy)
    trained, cached = self._train(name, policy, draws)
    trained, adapter = self._merged(trained, start)
    run.save_model(
      self._model(name),
      trained.model,
      trained.metadata(),
      classifier=name == "reward_model",
      adapter=adapter,
    )
    begin = time.monotonic()
    graded, majority = self._test(name, trained.model)
    shares = grading.verdict_metrics(graded, run.config.reft) if graded else {}
    result = Result(
      start=start,
      test_accuracy=grading.accuracy(graded) if graded else None,
      majority_accuracy=majority,
      dev_accuracy=trained.dev_accuracy,
      shares={
        metric: mean.value() if mean.count else None
        for metric, mean in shares.items()
      },
      best_step=trained.best_step,
      learning_rate=trained.learning_rate,
      seconds=round(drawn_in + trained.seconds, 1),
      test_seconds=round(time.monotonic() - begin, 1),
      cached=cached,
    )
    if multihost.is_lead():
      report = self._report(name)
      report.parent.mkdir(parents=True, exist_ok=True)
      text = json.dumps(dataclasses.asdict(result), indent=2)
      files.replace(report, text + "\n")
    if name in ("base", "warmup"):  # Others start from these.
      self._held = {name: trained.model}

  def _train(self, name, policy, draws) -> tuple[loop_lib.Trained, bool]:
    """Trains a stage, or takes the base model that an earlier run kept.

    `policy` gives the one that it starts from. It is asked as often as it is
    needed, so that none is kept for later.
    """
    run, evaluate_fn = self._run, self._evaluate_fn
    config = getattr(run.config, name)
    match name:
      case "base":
        return pretrain.train_once(run, name)
      case "warmup":
        trained = sft.train(run, name, policy, config, evaluate_fn, keep="last")
      case "sft":
        trained = sft.train(run, name, policy, config, evaluate_fn)
      case "offline_st":
        trained = offline_st.train(
          run, name, policy, config, evaluate_fn, *draws
        )
      case "online_st":
        trained = online_st.train(run, name, policy, config, evaluate_fn)
      case "reft":
        trained = reft.train(run, name, policy, config, evaluate_fn)
      case "reward_model":
        trained = reward_model.train(run, name, policy, config, *draws)
    return trained, False

  def _merged(
    self, trained: loop_lib.Trained, start: str | None
  ) -> tuple[loop_lib.Trained, peft.Adapter | None]:
    """A stage's model with its adapter merged, in place, and the adapter."""
    _, params = lora_lib.split(trained.model)
    if not params:
      return trained, None
    config, lora = self._run.config, self._run.config.lora
    base = origin(config, self._run.directory, start)
    model = lora_lib.merge_in_place(trained.model, lora.scale)
    return dataclasses.replace(trained, model=model), peft.Adapter(
      params, lora.rank, lora.alpha, base
    )

  def _draws_for(self, name: str) -> list[list[list[grading.Answer]]]:
    """The draws that a stage learns from, split by split."""
    splits = {"offline_st": ["train"], "reward_model": ["train", "dev"]}
    return [self._draws(split) for split in splits.get(name, [])]

  def _draws(self, split: str) -> list[list[grading.Answer]]:
    """Solutions drawn from the warmed-up policy; sampled once a run."""
    run = self._run
    who = sampling_policy_stage(run.config)
    drawn = store.Collection(
      run,
      run.directory / "samples" / f"draws-{split}.jsonl",
      self._dev if split == "dev" else run.train,
      identity={"model": who},
      samples=run.config.collect.per_question,
      temperature=run.config.collect.temperature,
      top_k=run.config.collect.top_k,
    )
    if not drawn.complete:
      run.console.line(f"draws from the model of {who}: {split} questions")
      drawn.draw(self._policy(who), run.key("draws", split))
    return drawn.answers()

  @property
  def _dev(self) -> Sequence[encode.Example]:
    """The dev questions that are asked during training."""
    return self._run.dev[: self._run.config.evaluation.dev_limit]

  @property
  def _evaluate_fn(self) -> loop_lib.EvaluateFn | None:
    """Greedy answers to the dev questions, during training."""
    if not self._dev:
      return None
    return lambda policy: self._answer_greedily(policy, self._dev)

  def _answer_greedily(self, policy, examples) -> list[grading.Answer]:
    groups = self._greedy(policy, examples, self._run.key("greedy"))
    return [group[0] for group in groups]

  def _test(self, name, policy) -> tuple[list[grading.Answer], float | None]:
    """Greedy test answers and majority accuracy; completions are kept."""
    run = self._run
    if not run.test or name == "reward_model":
      return [], None
    graded = self._answer_greedily(policy, run.test)
    loop_lib.Samples(run, f"test-{name}").replace(graded)
    if self._vote is None:
      return graded, None
    groups = self._vote(policy, run.test, run.key(name, "vote"))
    first = [group[0] for group in groups]
    loop_lib.Samples(run, f"test-{name}-sampled").replace(first)
    mode = run.config.data.answers
    return graded, grading.majority_accuracy(groups, mode)
