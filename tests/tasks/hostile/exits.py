"""Programs that leave by another door than return."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    program.FAILED,
    sys_exit="sys.exit(0)",
    sys_exit_42="sys.exit(42)",
    os_exit="os._exit(0)",
    os_exit_42="os._exit(42)",
    quits="quit()",
    exits="exit(42)",
    system_exit="raise SystemExit",
    system_exit_42="raise SystemExit(42)",
    interrupt="raise KeyboardInterrupt",
    base_exception="raise BaseException(42)",
    generator_exit="raise GeneratorExit",
    base_exception_of_its_own="""
      class Leave(BaseException):
        pass
      raise Leave
    """,
    os_error="raise BrokenPipeError(32, 'the worker is lost')",
    end_of_file="raise EOFError",
    assertion="assert False, 42",
    group_of_errors="raise BaseExceptionGroup('42', [SystemExit(42)])",
    long_message="raise ValueError('42' * 10**6)",
    message_of_half_a_character="raise ValueError('\\ud800')",
    message_of_lines="raise ValueError('\\n'.join(['42'] * 1000))",
    long_name="raise type('E' * 10**6, (Exception,), {})",
    error_that_lies="""
      class Lie(Exception):
        __class__ = property(lambda self: SystemExit)
        __str__ = __repr__ = lambda self: 1 / 0
      raise Lie
    """,
    causes_in_a_circle="""
      a, b = ValueError(), ValueError()
      a.__cause__, b.__cause__ = b, a
      raise a
    """,
  ),
  *program.bodies(
    *program.STOPPED,
    memory_error="raise MemoryError",
    time_out="raise TimeoutError",
    recursion_error="raise RecursionError",
    error_whose_text_never_ends="""
      class Endless(Exception):
        def __str__(self):
          while True: pass
        __repr__ = __str__
      raise Endless
    """,
    error_whose_name_never_ends="""
      class Meta(type):
        @property
        def __name__(cls):
          while True: pass
      class Endless(Exception, metaclass=Meta):
        pass
      raise Endless
    """,
  ),
  *program.bodies(
    "7",
    program.FAILED,
    leaves_at_exit="""
      atexit.register(os._exit, 42)
      return 7
    """,
    leaves_when_deleted="""
      class Leaver:
        def __del__(self):
          os._exit(42)
      leaver = Leaver()
      return 7
    """,
  ),
  *program.modules(
    program.FAILED,
    leaves_before_the_start="""
      raise SystemExit(42)
      def solution():
        return 42
    """,
  ),
)
