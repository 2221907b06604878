"""SIGTERM: a preempted run saves at the end of its step, then stops."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class PreemptedError(Exception):
  """The run got SIGTERM, has saved its state and stops."""


_stop = threading.Event()

_sync_points = itertools.count(1)


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
  """Inside, SIGTERM does not end the process: `stop_requested` says it came."""
  previous = None
  # Once processes are joined, jax listens to SIGTERM, so that they agree on the
  # step at which to stop. A handler here would replace jax's.
  if not jax.distributed.is_initialized():
    previous = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
  try:
    yield
  finally:
    if previous is not None:
      signal.signal(signal.SIGTERM, previous)
    _stop.clear()


def stop_requested() -> bool:
  """Whether the run is to stop, since one of its processes got SIGTERM.

  All processes must ask equally often, as once a step: they get the same
  answer to the same question.
  """
  if jax.distributed.is_initialized():
    step = next(_sync_points)
    if multihost_utils.reached_preemption_sync_point(step):  # True only once.
      _stop.set()
  return _stop.is_set()


def raise_if_stop_requested(saved: str) -> None:
  """Stops the run if SIGTERM came.

  Args:
    saved: what is on disk by now, for the message.

  Raises:
    PreemptedError: the run is to stop.
  """
  if stop_requested():
    raise PreemptedError(f"stopped by a signal; {saved}")
