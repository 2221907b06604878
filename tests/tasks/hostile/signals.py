"""Programs that would rather not be stopped."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    *program.STOPPED,
    ignores_all="""
      for number in range(1, 65):
        try:
          signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
          pass
      while True: pass
    """,
    handles_all="""
      for number in range(1, 65):
        try:
          signal.signal(number, lambda number, frame: None)
        except (OSError, ValueError):
          pass
      while True: pass
    """,
    blocks_all="""
      signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
      while True: pass
    """,
    timers_off="""
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.setitimer(signal.ITIMER_VIRTUAL, 0)
      signal.setitimer(signal.ITIMER_PROF, 0)
      signal.alarm(0)
      while True: pass
    """,
    more_time="""
      resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))
      while True: pass
    """,
    time_without_limit="""
      resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
      while True: pass
    """,
    alarm_in_python="""
      def handler(number, frame):
        while True: pass
      signal.signal(signal.SIGALRM, handler)
      signal.setitimer(signal.ITIMER_REAL, 0.01)
      while True: pass
    """,
    storm="""
      signal.signal(signal.SIGALRM, lambda number, frame: None)
      signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
      while True: pass
    """,
    reads_nothing="return ctypes.string_at(0)[0] * 0 + 42",
  ),
  *program.bodies(
    *program.STOPPED,
    then="return 42",
    more_memory="""
      for limit in resource.RLIMIT_AS, resource.RLIMIT_DATA:
        resource.setrlimit(limit, (-1, -1))
      x = bytearray(2**30)
    """,
    stops_itself="os.kill(os.getpid(), signal.SIGSTOP)",
    stops_itself_by_raising="signal.raise_signal(signal.SIGSTOP)",
    crashes="signal.raise_signal(signal.SIGSEGV)",
    pretends_time_is_up="signal.raise_signal(signal.SIGXCPU)",
  ),
)
