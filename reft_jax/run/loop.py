"""What a training loop does besides learning: tell, choose, keep, resume."""

import contextlib
import dataclasses
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from reft_jax import types
from reft_jax.models import lora
from reft_jax.run.context import Run
from reft_jax.runtime import checkpoints, multihost
from reft_jax.runtime import console as console_lib
from reft_jax.sampling import grading
from reft_jax.tasks.answers import choices

EvaluateFn = Callable[[Any], list[grading.Answer]]


class PreemptedError(Exception):
  """The run was asked to stop, and has saved where it is."""


class DivergedError(Exception):
  """Updates are no longer finite."""


_MOST_SKIPPED = 20

_stop = threading.Event()


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
  """Inside, SIGTERM saves and stops at the end of the step under way.

  Processes that are joined stop together, at a step that jax has them agree on:
  there the signal is jax's, and a handler of our own would take it away.
  """
  if multihost.is_initialized():
    try:
      yield
    finally:
      _stop.clear()
    return
  before = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _stop.clear()


def _asked_to_stop() -> bool:
  """Once a step, in all processes."""
  if multihost.asked_to_stop():
    _stop.set()
  return _stop.is_set()


def stop_if_asked(what: str) -> None:
  """Outside of loops: raises PreemptedError if SIGTERM has come.

  `what` says what is on disk by now.
  """
  if _asked_to_stop():
    raise PreemptedError(f"stopped by a signal; {what}")


@dataclasses.dataclass(frozen=True)
class Trained:
  """The model that a stage ends with, and where in the stage it was best."""

  model: Any
  dev_accuracy: float | None
  best_step: int
  seconds: float
  learning_rate: float

  def metadata(self) -> dict[str, Any]:
    """Everything but the model."""
    fields = (field.name for field in dataclasses.fields(self))
    return {name: getattr(self, name) for name in fields if name != "model"}


def sweep(
  run: Run, name: str, config: Any, train_at: Callable[[str, Any], Trained]
) -> Trained:
  """Trains at each of a stage's learning rates; the best on dev stays.

  A rate at which training diverges is out, unless all do.

  Args:
    run: the run.
    name: the stage's.
    config: the stage's; its `learning_rates`, or else its optimizer's one.
    train_at: takes a name for one part of the sweep and the stage's config
      with that part's learning rate.
  """
  rates = config.learning_rates or (config.optimizer.learning_rate,)
  best, seconds = None, 0.0
  for rate in rates:
    optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
    part = name if len(rates) == 1 else f"{name}-lr{rate:g}"
    one = dataclasses.replace(config, optimizer=optimizer)
    try:
      result = train_at(part, one)
    except DivergedError as error:
      if best is None and rate == rates[-1]:
        raise
      run.console.line(f"{error} This learning rate is left out.")
      continue
    seconds += result.seconds
    if best is None or result.dev_accuracy > best.dev_accuracy:
      best = result
    del result  # It would lie on the devices beside the next.
  return dataclasses.replace(best, seconds=seconds)


class Loop:
  """One stage's loop of numbered steps, which a killed run takes up again.

  Use as a context; `restore` first, `end_step` after every step, `result` at
  the end. Step n, wherever it is logged or saved, is the state after n steps.

  Args:
    run: the run.
    name: the stage's, also its folder's.
    steps: how many there are.
    evaluate_every: steps between evaluations on dev; the last step is always
      evaluated.
    evaluate_fn: a policy's answers to the dev questions; None without them.
    keep: "best", the policy that does best on dev (the last one without a dev
      set), or "last".
    model: which of the parameters are examined and kept, others being means
      to an end.
    base: what the state's parameters are adapters of. The model that is
      examined and that a stage ends with is joined to it; what is saved is
      not.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    *,
    steps: int,
    evaluate_every: int = 1,
    evaluate_fn: EvaluateFn | None = None,
    keep: str = "best",
    model: str = "policy",
    base: Mapping[str, Any] | None = None,
  ):
    self._run = run
    self._name = name
    self._steps = steps
    self._evaluate_every = evaluate_every
    self._evaluate_fn = evaluate_fn
    self._model = model
    self._base = (base or {}).get(model, {})
    self._keep_best = keep == "best" and evaluate_fn is not None
    self._log_every = run.config.logging.every or max(1, steps // 50)
    folder = stage_directory(run, name)
    self._latest = checkpoints.Checkpoints(
      folder / "checkpoints", keep=run.config.checkpoint.keep
    )
    self._kept = checkpoints.Checkpoints(folder / "best", keep=1)
    self._samples = Samples(run, name)
    self.best_step, self.best_accuracy = self._kept_notes()
    self._seconds_before = 0.0
    self._started = time.monotonic()
    self._pending: dict[str, types.Mean] = {}
    self._skipped = 0
    self._sampled = False
    self._warned = False
    self._exit = contextlib.ExitStack()
    self._progress: console_lib.Progress | None = None

  def __enter__(self) -> "Loop":
    self._exit.callback(self._latest.close)
    self._exit.callback(self._kept.close)
    return self

  def __exit__(self, *error) -> None:
    self._exit.__exit__(*error)

  @property
  def seconds(self) -> float:
    """Time spent in this loop, an earlier process's share included."""
    return self._seconds_before + time.monotonic() - self._started

  def restore(self, state: types.TrainState) -> tuple[types.TrainState, int]:
    """The newest saved state and the number of steps it has behind it."""
    restored = self._latest.restore(state)
    step = 0
    if restored is not None:
      state, notes = restored
      step = notes["step"]
      self._seconds_before = notes["seconds"]
      self._pending = {
        name: types.Mean.of(total, count)
        for name, (total, count) in notes["pending"].items()
      }
      self._run.console.line(f"{self._name}: goes on after step {step}")
    next_step = step + 1 if step else 0
    self._run.recorder.rewind(self._name, next_step)
    self._samples.rewind(next_step)
    self._progress = self._exit.enter_context(
      self._run.console.stage(self._name, self._steps, step)
    )
    if step == 0:
      self._evaluate(0, state)
    return state, step

  def end_step(
    self,
    step: int,
    state: types.TrainState,
    metrics: Mapping[str, types.Mean],
    sampled: Sequence[grading.Answer] = (),
  ) -> None:
    """Tells, evaluates and saves as the config asks; stops if asked to.

    Args:
      step: steps done, this one included.
      state: the state after it.
      metrics: this step's; summed until they are due.
      sampled: completions of this step, of which one is shown now and then.

    Raises:
      PreemptedError: after SIGTERM, when the state is saved.
      DivergedError: when too many updates in a row were not finite, or all.
    """
    self._pending = merged(self._pending, metrics)
    last = step == self._steps
    values = None
    if last or step % self._log_every == 0:
      values = self._read()
      self._log(step, values)
      self._warn(step, values)
      self._check_finite(learnt=not last or jax.device_get(state.step) > 0)
    self._progress.step(step, values)
    self._sampled = bool(sampled)
    every = self._run.config.logging.sample_every
    if sampled and every and (step == 1 or last or step % every == 0):
      self._samples.write(step, sampled, show=True)
    if last or step % self._evaluate_every == 0:
      self._evaluate(step, state)
    stop = _asked_to_stop()
    if last or stop or step % self._run.config.checkpoint.every == 0:
      self._save(step, state)
    if stop and not last:
      self._latest.wait()
      raise PreemptedError(
        f"stopped by a signal; {self._name} step {step} is saved"
      )

  def result(self, state: types.TrainState, learning_rate: float) -> Trained:
    """What the stage ends with."""
    model = state.params[self._model]
    if self._keep_best:
      model, _ = self._kept.restore(model)
    return Trained(
      model=lora.join(self._base, model),
      dev_accuracy=self.best_accuracy if self._evaluate_fn else None,
      best_step=self.best_step if self._evaluate_fn else self._steps,
      seconds=self.seconds,
      learning_rate=learning_rate,
    )

  def _kept_notes(self) -> tuple[int, float]:
    notes = self._kept.notes() or {"step": 0, "accuracy": -1.0}
    return notes["step"], notes["accuracy"]

  def _read(self) -> dict[str, float]:
    """The metrics since they were last read, as numbers."""
    means = jax.device_get(self._pending)
    self._pending = {}
    skipped = means.get("skipped_updates")
    if skipped is not None:
      everything = skipped.total == skipped.count
      self._skipped = self._skipped + int(skipped.total) if everything else 0
    return {name: mean.value() for name, mean in means.items()}

  def _check_finite(self, *, learnt: bool) -> None:
    if self._skipped >= _MOST_SKIPPED or (self._skipped and not learnt):
      raise DivergedError(
        f"{self._name}: the last {self._skipped} updates were not finite and "
        "were skipped; lower the learning rate, or raise kl_coef."
      )

  def _log(self, step: int, values: Mapping[str, float]) -> None:
    self._run.recorder.log(step, values, stage=self._name)

  def _warn(self, step: int, values: Mapping[str, float]) -> None:
    """Says so when the policy begins to name letters without reaching them."""
    share = values.get(grading.UNREACHED, 0.0)
    limit = self._run.config.reft.unreached_limit
    if share > limit and not self._warned:
      letter, constant = choices.constant_letter(
        [example.problem for example in self._run.train]
      )
      self._progress.note(
        f"step {step}: warning: {share:.0%} of the right letters come with a "
        f"value that is not theirs (limit {limit:.0%}); always answering "
        f"{letter!r} would be right on {constant:.1%}"
      )
    self._warned = share > limit

  def _evaluate(self, step: int, state: types.TrainState) -> None:
    """Greedy accuracy on dev; the best parameters so far are kept."""
    if self._evaluate_fn is None:
      return
    model = lora.join(self._base, state.params[self._model])
    graded = self._evaluate_fn(model)
    accuracy = grading.accuracy(graded)
    shares = grading.verdict_metrics(graded, self._run.config.reft)
    self._log(
      step,
      {"dev/accuracy": accuracy}
      | {f"dev/{name}": mean.value() for name, mean in shares.items()},
    )
    self._progress.note(f"step {step}: {accuracy:.1%} of dev correct")
    # A loop that samples shows what it samples; another shows this.
    last = step == self._steps and not self._sampled
    show = last and bool(self._run.config.logging.sample_every)
    self._samples.write(step, graded[:8], show=show)
    if accuracy > self.best_accuracy or not self._keep_best:
      self.best_accuracy, self.best_step = accuracy, step
      self._kept.save(
        self._kept.newest + 1,
        state.params[self._model],
        {"step": step, "accuracy": accuracy},
      )

  def _save(self, step: int, state: types.TrainState) -> None:
    self._kept.wait()
    pending = {
      name: [float(mean.total), float(mean.count)]
      for name, mean in jax.device_get(self._pending).items()
    }
    notes = {"step": step, "seconds": self.seconds, "pending": pending}
    self._latest.save(step, state, notes)


class Samples:
  """Completions of one stage with their verdicts, as JSON lines.

  Of several processes the first alone writes them.
  """

  def __init__(self, run: Run, name: str):
    self._run = run
    self._name = name
    self._path = run.directory / "samples" / f"{name}.jsonl"
    self._writes = multihost.is_lead()
    if self._writes:
      self._path.parent.mkdir(parents=True, exist_ok=True)

  def write(
    self, step: int, sampled: Sequence[grading.Answer], *, show: bool
  ) -> None:
    """Appends completions of a step; the first is shown if asked to."""
    if not self._writes:
      return
    with self._path.open("a", encoding="utf-8") as file:
      file.writelines(
        json.dumps({"step": step, **answer.row()}) + "\n" for answer in sampled
      )
    if show:
      first = sampled[0]
      self._run.console.sample(
        self._name,
        step,
        first.example.problem.question,
        first.solution(),
        first.example.problem.answer,
      )

  def replace(self, answered: Sequence[grading.Answer]) -> None:
    """Makes these the file's only rows."""
    if not self._writes:
      return
    self._path.write_text(
      "".join(json.dumps(answer.row()) + "\n" for answer in answered),
      encoding="utf-8",
    )

  def rewind(self, next_step: int) -> None:
    """Drops the rows of steps that will be done again, and a torn line."""
    if self._writes and self._path.exists():
      lines = self._path.read_text(encoding="utf-8").splitlines(True)
      whole = [line for line in lines if line.endswith("\n")]
      kept = [line for line in whole if json.loads(line)["step"] < next_step]
      self._path.write_text("".join(kept), encoding="utf-8")


def stage_directory(run: Run, name: str) -> pathlib.Path:
  """Where a stage keeps its checkpoints and its result."""
  return run.directory / "stages" / name


def merged(
  a: Mapping[str, types.Mean], b: Mapping[str, types.Mean]
) -> dict[str, types.Mean]:
  """Metrics of two spans together."""
  return {
    name: a[name] + b[name]
    if name in a and name in b
    else a.get(name, b.get(name))
    for name in {**a, **b}
  }
