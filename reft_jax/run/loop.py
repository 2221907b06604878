"""What a training loop does besides training: log, evaluate, keep, resume."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax

from reft_jax import types
from reft_jax.learning import learner as learner_lib
from reft_jax.learning import means
from reft_jax.run import context
from reft_jax.runtime import checkpoints, preemption
from reft_jax.runtime import console as console_lib
from reft_jax.sampling import grading
from reft_jax.tasks.answers import choices

# So many updates that were not finite, in a row, end a training.
_MOST_SKIPPED = 20


class DivergedError(Exception):
  """Updates are no longer finite."""


def sweep(
  run: context.Run,
  stage: context.StageRun,
  train_at: Callable[[context.Run, context.StageRun], context.Trained],
) -> context.Trained:
  """Trains at each of a stage's learning rates and keeps the best on dev.

  A rate at which training diverges is left out, unless all do. The rates are
  the stage's `learning_rates`, or else its optimizer's one; `train_at` trains
  at one of them. All use the same random keys.
  """
  config = stage.config
  rates = config.learning_rates or (config.optimizer.learning_rate,)
  best: context.Trained | None = None
  seconds = 0.0
  for rate in rates:
    optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
    part = dataclasses.replace(
      stage,
      config=dataclasses.replace(config, optimizer=optimizer),
      part=None if len(rates) == 1 else f"{stage.name}-lr{rate:g}",
    )
    try:
      trained = train_at(run, part)
    except DivergedError as error:
      if best is None and rate == rates[-1]:
        raise
      run.console.line(f"{error} This learning rate is left out.")
      continue
    seconds += trained.seconds
    if best is None or _on_dev(trained) > _on_dev(best):
      best = trained
    del trained  # It would lie on the devices beside the next.
  # One was kept: if all diverge, the last raises.
  return dataclasses.replace(cast(context.Trained, best), seconds=seconds)


def _on_dev(trained: context.Trained) -> float:
  return -1.0 if trained.dev_accuracy is None else trained.dev_accuracy


class Loop:
  """One training's numbered steps, which a killed run resumes.

  Use it as a context and iterate over it: it yields the steps that are left,
  from the last checkpoint on. Call `end_step` after each, `result` at the end.
  What is logged or saved as step n is the state after n steps. Every
  `evaluate_every` steps, and after the last, the model is evaluated on dev.
  """

  def __init__(
    self,
    run: context.Run,
    stage: context.StageRun,
    learner: learner_lib.Learner,
    *,
    steps: int,
    evaluate_every: int = 1,
  ):
    self._run, self._learner, self._steps = run, learner, steps
    self._name = stage.label
    self._evaluate_every = evaluate_every
    self._evaluate_fn = stage.evaluate_fn
    self._keep_best = stage.keep == "best" and stage.evaluate_fn is not None
    self._log_every = run.config.logging.every or max(1, steps // 50)
    folder, keep = run.stage_directory(self._name), run.config.checkpoint.keep
    self._latest = checkpoints.Checkpoints(folder / "checkpoints", keep=keep)
    self._kept = checkpoints.Checkpoints(folder / "best", keep=1)
    self._samples = context.Samples(run, self._name)
    kept = self._kept.notes() or {"step": 0, "accuracy": -1.0}
    self.best_step, self.best_accuracy = kept["step"], kept["accuracy"]
    self._seconds_before = 0.0
    self._started = time.monotonic()
    self._pending: dict[str, types.Mean] = {}
    self._skipped = 0
    self._sampled = False
    self._warned = False
    self._exit = contextlib.ExitStack()
    self._progress: console_lib.Progress

  def __enter__(self) -> "Loop":
    self._exit.callback(self._latest.close)
    self._exit.callback(self._kept.close)
    return self

  def __exit__(self, *error: Any) -> None:
    self._exit.__exit__(*error)

  def __iter__(self) -> Iterator[int]:
    """The steps that are left, from 0; restores the learner's state first."""
    return iter(range(self._restore(), self._steps))

  @property
  def seconds(self) -> float:
    """Time spent in this loop, an earlier process's share included."""
    return self._seconds_before + time.monotonic() - self._started

  def end_step(
    self,
    step: int,
    metrics: Mapping[str, types.Mean],
    answers: Sequence[grading.Answer] = (),
  ) -> None:
    """Logs, evaluates and saves as the settings ask; stops if asked to.

    Args:
      step: the one that ends, from 0.
      metrics: this step's; summed until they are due.
      answers: completions of this step, of which one is shown now and then.

    Raises:
      PreemptedError: after SIGTERM, when the state is saved.
      DivergedError: when too many updates in a row were not finite, or all.
    """
    done = step + 1
    self._pending = means.merge(self._pending, metrics)
    last = done == self._steps
    values = None
    if last or done % self._log_every == 0:
      values = self._read()
      self._run.recorder.log(done, values, stage=self._name)
      self._warn(done, values)
      self._check_finite(last=last)
    self._progress.step(done, values)
    self._sampled = bool(answers)
    every = self._run.config.logging.sample_every
    if answers and every and (done == 1 or last or done % every == 0):
      self._samples.write(done, answers, show=True)
    if last or done % self._evaluate_every == 0:
      self._evaluate(done)
    stop = preemption.stop_requested()
    if last or stop or done % self._run.config.checkpoint.every == 0:
      self._save(done)
    if stop and not last:
      self._latest.wait()
      raise preemption.PreemptedError(
        f"stopped by a signal; {self._name} step {done} is saved"
      )

  def result(self) -> context.Trained:
    """What the training ends with."""
    learner = self._learner
    trained = learner.trained
    if self._keep_best and (kept := self._kept.restore(trained)):
      trained, _ = kept
    return context.Trained(
      model=learner.model(trained),
      dev_accuracy=self.best_accuracy if self._evaluate_fn else None,
      best_step=self.best_step if self._evaluate_fn else self._steps,
      seconds=self.seconds,
      learning_rate=learner.peak_learning_rate,
    )

  def _restore(self) -> int:
    """Restores the newest checkpoint; the number of steps it has behind it."""
    restored = self._latest.restore(self._learner.state)
    step = 0
    if restored is not None:
      self._learner.state, notes = restored
      step = notes["step"]
      self._seconds_before = notes["seconds"]
      self._pending = {
        name: types.Mean.of(total, count)
        for name, (total, count) in notes["pending"].items()
      }
      self._run.console.line(f"{self._name}: resumes after step {step}")
    next_step = step + 1 if step else 0
    self._run.recorder.rewind(self._name, next_step)
    self._samples.rewind(next_step)
    progress = self._run.console.stage(self._name, self._steps, step)
    self._progress = self._exit.enter_context(progress)
    if step == 0:
      self._evaluate(0)
    return step

  def _read(self) -> dict[str, float]:
    """The metrics since they were last read, as numbers."""
    read = jax.device_get(self._pending)
    self._pending = {}
    skipped = read.get("skipped_updates")
    if skipped is not None:
      everything = skipped.total == skipped.count
      self._skipped = self._skipped + int(skipped.total) if everything else 0
    return {name: mean.value() for name, mean in read.items()}

  def _check_finite(self, *, last: bool) -> None:
    untrained = last and jax.device_get(self._learner.state.step) == 0
    if self._skipped >= _MOST_SKIPPED or (self._skipped and untrained):
      raise DivergedError(
        f"{self._name}: the last {self._skipped} updates were not finite and "
        "were skipped; lower the learning rate, or raise kl_coef."
      )

  def _warn(self, step: int, values: Mapping[str, float]) -> None:
    """Says so when the policy begins to name letters without reaching them."""
    share = values.get(grading.UNREACHED, 0.0)
    limit = self._run.config.reft.unreached_limit
    if share > limit and not self._warned:
      problems = [example.problem for example in self._run.train]
      letter, constant = choices.constant_letter(problems)
      self._progress.note(
        f"step {step}: warning: {share:.0%} of the right letters come with a "
        f"value that is not theirs (limit {limit:.0%}); always answering "
        f"{letter!r} would be right on {constant:.1%}"
      )
    self._warned = share > limit

  def _evaluate(self, step: int) -> None:
    """Greedy accuracy on dev; the best parameters so far are kept."""
    if self._evaluate_fn is None:
      return
    graded = self._evaluate_fn(self._learner.model())
    accuracy = grading.accuracy(graded)
    shares = grading.verdict_metrics(graded, self._run.config.reft)
    values = {"dev/accuracy": accuracy}
    values |= {f"dev/{name}": mean.value() for name, mean in shares.items()}
    self._run.recorder.log(step, values, stage=self._name)
    self._progress.note(f"step {step}: {accuracy:.1%} of dev correct")
    # A loop that samples shows what it samples; another shows this.
    last = step == self._steps and not self._sampled
    show = last and bool(self._run.config.logging.sample_every)
    self._samples.write(step, graded[:8], show=show)
    if accuracy > self.best_accuracy or not self._keep_best:
      self.best_accuracy, self.best_step = accuracy, step
      notes = {"step": step, "accuracy": accuracy}
      self._kept.save(self._kept.newest + 1, self._learner.trained, notes)

  def _save(self, step: int) -> None:
    self._kept.wait()
    pending = {
      name: [float(mean.total), float(mean.count)]
      for name, mean in jax.device_get(self._pending).items()
    }
    notes = {"step": step, "seconds": self.seconds, "pending": pending}
    self._latest.save(step, self._learner.state, notes)
