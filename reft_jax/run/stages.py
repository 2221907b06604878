"""The stages of a run, in their order: each trains, is kept, and is tested."""

import dataclasses
import functools
import json
import pathlib
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reft_jax import files
from reft_jax.config import schema
from reft_jax.config import stages as table
from reft_jax.data import encode
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import lora as lora_lib
from reft_jax.models.hf import peft
from reft_jax.models.hf import read as reader
from reft_jax.run import context
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
    seconds: training with its evaluations, and collecting samples for it; a
      cached base model's were spent by the run that trained it.
    test_seconds: answering the test problems.
    cached: whether the model was there already.
    shares: of the greedy test answers, `grading.verdict_metrics`; None if of
      nothing.
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


def origin(config: schema.Config, directory: pathlib.Path, start: str) -> str:
  """The model of the stage `start` of a run: a folder, or a name on the hub."""
  given = {"base": config.model.path, "warmup": config.model.warmup}[start]
  if given and hub.is_id(given):
    return given
  own = directory / "models" / start
  return str((files.expand_user(given) if given else own).resolve())


class Stages:
  """Runs a run's stages, skipping those that an earlier process finished.

  It holds on to one policy at most, between the stage that trained it and the
  next one that asks for any. Others are read from disk when they are needed;
  `policies` read those that no stage of this run trains: the pretrained one as
  `base`, a warmed-up one as `warmup`.
  """

  def __init__(
    self, run: context.Run, policies: Mapping[str, Callable[[], Any]]
  ):
    self._run = run
    self._policies = policies
    evaluation = run.config.evaluation
    # The dev questions that are asked during training.
    self._dev = run.dev[: evaluation.dev_limit]
    self._greedy = rollouts.BatchSampler(run.engine, samples=1, temperature=0.0)
    self._vote = None
    if evaluation.majority_samples:
      self._vote = rollouts.BatchSampler(
        run.engine,
        samples=evaluation.majority_samples,
        temperature=evaluation.temperature,
        top_k=evaluation.top_k,
      )
    self._held: dict[str, Any] = {}

  def run_all(self) -> dict[str, Result]:
    """Runs what is not finished; the result of each stage that is by then."""
    for name in self._run.config.stages:
      self._run_stage(name)
    results = {name: self._result(name) for name in table.TABLE}
    return {name: result for name, result in results.items() if result}

  def _run_stage(self, name: str) -> None:
    """Runs a stage unless it is finished."""
    run, start = self._run, table.starts_from(self._run.config, name)
    if finished := self._result(name):
      if finished.start != start:
        raise UserError(
          f"{run.directory} holds a {name} stage that started from"
          f" {finished.start}, and stages={list(run.config.stages)} would"
          f" start it from {start}; set output to another folder."
        )
      run.console.line(f"{name}: finished before, kept in {self._model(name)}")
      return
    begin = time.monotonic()
    splits: Sequence[str] = table.TABLE[name].collects
    collected = {split: self._collect(split) for split in splits}
    collected_in = time.monotonic() - begin
    trained, adapter = self._merged(self._train(name, start, collected), start)
    run.save_model(
      self._model(name),
      trained.model,
      trained.metadata(),
      classifier=table.TABLE[name].classifier,
      adapter=adapter,
    )
    begin = time.monotonic()
    answers, majority = self._test(name, trained.model)
    accuracy, shares = None, {}
    if answers:
      accuracy = grading.accuracy(answers)
      means = grading.verdict_metrics(answers, run.config.reft)
      shares = {k: v.value() if v.count else None for k, v in means.items()}
    result = Result(
      start=start,
      test_accuracy=accuracy,
      majority_accuracy=majority,
      dev_accuracy=trained.dev_accuracy,
      shares=shares,
      best_step=trained.best_step,
      learning_rate=trained.learning_rate,
      seconds=round(collected_in + trained.seconds, 1),
      test_seconds=round(time.monotonic() - begin, 1),
      cached=trained.cached,
    )
    if multihost.is_lead():
      report = self._report(name)
      report.parent.mkdir(parents=True, exist_ok=True)
      files.replace(report, json.dumps(vars(result), indent=2) + "\n")
    if name in ("base", "warmup"):  # Others start from these.
      self._held = {name: trained.model}

  def _train(
    self, name: str, start: str | None, collected: Mapping[str, context.Groups]
  ) -> context.Trained:
    run, stage = self._run, table.TABLE[name]
    start_policy: Callable[[], Any] = functools.partial(self._policy, start)
    if run.config.lora.rank:  # It stays as it is: one will do for all rates.
      start_policy = functools.cache(start_policy)
    evaluate = functools.partial(self._answer_greedily, examples=self._dev)
    stage_run = context.StageRun(
      name=name,
      config=getattr(run.config, name),
      start_policy=start_policy,
      evaluate_fn=evaluate if start and self._dev else None,
      keep=stage.keeps,
      collected=collected,
    )
    return pkgutil.resolve_name(stage.train)(run, stage_run)

  def _merged(
    self, trained: context.Trained, start: str | None
  ) -> tuple[context.Trained, peft.Adapter | None]:
    """A stage's model with its adapter merged, in place, and the adapter."""
    _, params = lora_lib.split(trained.model)
    if not params or start is None:
      return trained, None
    config, lora = self._run.config, self._run.config.lora
    base = origin(config, self._run.directory, start)
    model = lora_lib.merge_in_place(trained.model, lora.scale)
    return dataclasses.replace(trained, model=model), peft.Adapter(
      params, lora.rank, lora.alpha, base
    )

  def _collect(self, split: str) -> context.Groups:
    """Solutions sampled from the warmed-up policy, once a run."""
    run, settings = self._run, self._run.config.collect
    sampled_by = table.sampling_policy_stage(run.config)
    collected = store.Store(
      run.engine,
      run.directory / "samples" / f"collected-{split}.jsonl",
      self._dev if split == "dev" else run.train,
      facts={"model": sampled_by},
      samples=settings.per_question,
      temperature=settings.temperature,
      top_k=settings.top_k,
    )
    if not collected.complete:
      what = f"samples of the {sampled_by} model: {split} questions"
      run.console.line(f"collecting {what}")
      # Renaming a key would change what a seed samples.
      key = run.key("draws", split)
      collected.fill(self._policy(sampled_by), key, run.console)
    return collected.answers()

  def _policy(self, name: str | None) -> Any:
    """A stage's policy, which from now on is its caller's alone."""
    if name is None:
      raise ValueError("a stage that starts from nothing has no policy")
    held, self._held = self._held, {}
    if name in held:
      return held[name]
    held.clear()
    if name in self._policies:
      return self._policies[name]()
    placement = mesh_lib.placement(self._run.engine.mesh)
    return reader.load(self._model(name), placement)[1]

  def _answer_greedily(
    self, policy: Any, examples: Sequence[encode.Example]
  ) -> list[grading.Answer]:
    groups = self._greedy(policy, examples, self._run.key("greedy"))
    return [group[0] for group in groups]

  def _test(
    self, name: str, policy: Any
  ) -> tuple[list[grading.Answer], float | None]:
    """Greedy test answers and majority accuracy; completions are kept."""
    run = self._run
    if not run.test or table.TABLE[name].classifier:
      return [], None
    greedy = self._answer_greedily(policy, run.test)
    context.Samples(run, f"test-{name}").replace(greedy)
    if self._vote is None:
      return greedy, None
    groups = self._vote(policy, run.test, run.key(name, "vote"))
    first = [group[0] for group in groups]
    context.Samples(run, f"test-{name}-sampled").replace(first)
    mode = run.config.data.answers
    return greedy, grading.majority_accuracy(groups, mode)

  def _report(self, name: str) -> pathlib.Path:
    return self._run.stage_directory(name) / "result.json"

  def _result(self, name: str) -> Result | None:
    """A stage's result if it is finished, as the lead process reads it."""
    report = self._report(name)
    read = multihost.is_lead() and report.exists()
    text = multihost.broadcast_from_lead(report.read_text() if read else None)
    return Result(**json.loads(text)) if text else None

  def _model(self, name: str) -> pathlib.Path:
    return self._run.directory / "models" / name
