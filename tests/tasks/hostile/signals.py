"""Programs that would rather not be stopped."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    *program.STOPPED,
    ignores_all="""
      import signal
      for number in range(1, 65):
        try:
          signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
          pass
      while True: pass
    """,
    handles_all="""
      import signal
      for number in range(1, 65):
        try:
          signal.signal(number, lambda number, frame: None)
        except (OSError, ValueError):
          pass
      while True: pass
    """,
    blocks_all="""
      import signal
      signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
      while True: pass
    """,
    timers_off="""
      import signal
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.setitimer(signal.ITIMER_VIRTUAL, 0)
      signal.setitimer(signal.ITIMER_PROF, 0)
      signal.alarm(0)
      while True: pass
    """,
    more_time="""
      import resource
      resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))
      while True: pass
    """,
    time_without_limit="""
      import resource
      resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
      while True: pass
    """,
    more_memory="""
      import resource
      for limit in resource.RLIMIT_AS, resource.RLIMIT_DATA:
        resource.setrlimit(limit, (-1, -1))
      x = bytearray(2**30)
      return 42
    """,
    alarm_in_python="""
      import signal
      def handler(number, frame):
        while True: pass
      signal.signal(signal.SIGALRM, handler)
      signal.setitimer(signal.ITIMER_REAL, 0.01)
      while True: pass
    """,
    storm="""
      import signal
      signal.signal(signal.SIGALRM, lambda number, frame: None)
      signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
      while True: pass
    """,
    stops_itself="""
      import os, signal
      os.kill(os.getpid(), signal.SIGSTOP)
      return 42
    """,
    stops_itself_by_raising="""
      import signal
      signal.raise_signal(signal.SIGSTOP)
      return 42
    """,
    crashes="""
      import signal
      signal.raise_signal(signal.SIGSEGV)
      return 42
    """,
    pretends_time_is_up="""
      import signal
      signal.raise_signal(signal.SIGXCPU)
      return 42
    """,
    reads_nothing="""
      import ctypes
      return ctypes.string_at(0)[0] * 0 + 42
    """,
  ),
)
