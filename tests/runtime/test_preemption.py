"""SIGTERM asks a run to stop; with several processes, jax says when."""

import os
import signal

import jax
import pytest

from reft_jax.runtime import preemption


def test_sigterm_stops_a_run_once_it_has_saved():
  before = signal.getsignal(signal.SIGTERM)
  with preemption.stopping_on_sigterm():
    preemption.raise_if_stop_requested("nothing is saved")
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):
      assert preemption.stop_requested()
    with pytest.raises(preemption.PreemptedError, match="signal; step 3 is"):
      preemption.raise_if_stop_requested("step 3 is saved")
  assert not preemption.stop_requested()
  assert signal.getsignal(signal.SIGTERM) == before


def test_with_several_processes_jax_keeps_its_handler(monkeypatch):
  """It answers True once, at a step that it is asked about in all processes."""
  asked = []

  def reached(step: int) -> bool:
    asked.append(step)
    return len(asked) == 2

  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(
    preemption.multihost_utils, "reached_preemption_sync_point", reached
  )
  before = signal.getsignal(signal.SIGTERM)
  with preemption.stopping_on_sigterm():
    assert signal.getsignal(signal.SIGTERM) == before
    answers = [preemption.stop_requested() for _ in range(3)]
  assert answers == [False, True, True]
  assert asked == [asked[0], asked[0] + 1, asked[0] + 2]
