"""Programs that rewrite what surrounds them, or forge the way out."""

from hostile import program

# A guess at what the process that ran a program writes when it is done.
_FORGED = (
  r'{"status": "returned", "tier": "cpython", "kind": "int", '
  r'"number": 13.0, "text": "13", "reason": ""}'
)

PROGRAMS = (
  *program.bodies(
    "7",
    program.FAILED,
    then="return 7",
    builtin_float="builtins.float = lambda x: 42.0",
    builtin_text='builtins.str = builtins.repr = lambda x: "42"',
    builtin_checks="""
      builtins.isinstance = builtins.issubclass = lambda *_: True
      builtins.type = lambda *_: int
      builtins.len = lambda _: 1
    """,
    builtins_gone="builtins.__dict__.clear()",
    errors_gone="builtins.Exception = builtins.BaseException = None",
    imports_gone="""
      builtins.__import__ = None
      sys.modules.clear()
    """,
    json_that_lies="""
      json.dumps = json.JSONEncoder.encode = lambda *_, **__: '{"number": 42}'
      json.encoder.c_make_encoder = None
    """,
    json_encoder_that_lies="""
      json.encoder.JSONEncoder.iterencode = lambda *_: iter(["42"])
      json.encoder.encode_basestring_ascii = lambda _: "42"
    """,
    marshal_and_struct_that_lie="""
      marshal.dumps = struct.pack = lambda *_: b"42"
    """,
    mathematics_that_lies="""
      import math
      math.isfinite = math.isnan = lambda _: True
      math.pi = 42
    """,
    system_calls_that_lie="""
      os.write = lambda file, data: len(data)
      os.close = os.dup2 = os.kill = lambda *_: None
    """,
    exit_that_does_nothing="""
      os._exit = sys.exit = os.abort = lambda *_: None
    """,
    exit_and_wait_that_do_nothing="""
      import os, posix
      for module in os, posix:
        module._exit = lambda *_: None
        module.waitpid = lambda *_: (0, 0)
        module.fork = lambda: 1
    """,
    errors_that_lie="""
      sys.excepthook = sys.unraisablehook = lambda *_: None
    """,
    streams_that_lie="""
      sys.stdout = sys.stderr = sys.__stdout__ = io.StringIO("42")
      sys.stdin = io.StringIO("42")
    """,
    no_recursion="sys.setrecursionlimit(20)",
    hooks="""
      def hook(*_):
        raise SystemExit(42)
      sys.addaudithook(hook)
    """,
    trace="""
      def trace(frame, event, argument):
        frame.f_globals["number"] = frame.f_globals["result"] = 42
        return trace
      sys.settrace(trace)
    """,
    profile="""
      def profile(frame, event, argument):
        raise SystemExit(42)
      sys.setprofile(profile)
    """,
    jumps_in_its_caller="""
      frame = sys._getframe(1)
      def trace(frame, event, argument):
        frame.f_lineno += 1
        return trace
      frame.f_trace = trace
      sys.settrace(trace)
    """,
    collector="""
      gc.callbacks.append(lambda *_: 1 / 0)
      gc.disable()
    """,
    encodings_that_lie="""
      codecs.register(lambda name: 1 / 0)
      codecs.register_error("strict", lambda error: ("42", error.end))
      codecs.register_error("replace", lambda error: ("42", error.end))
    """,
    functions_of_its_callers="""
      frame = sys._getframe()
      while frame := frame.f_back:
        for name, value in list(frame.f_globals.items()):
          if callable(value):
            frame.f_globals[name] = lambda *_, **__: 42
    """,
    names_of_its_callers="""
      frame = sys._getframe()
      while frame := frame.f_back:
        for name in list(frame.f_locals):
          frame.f_locals[name] = 42
        ctypes.pythonapi.PyFrame_LocalsToFast(
          ctypes.py_object(frame), ctypes.c_int(0)
        )
    """,
    functions_of_everyone="""
      def lie(*_, **__):
        return 42
      for thing in gc.get_objects():
        if type(thing) is type(lie) and thing.__module__ not in (None, "gc"):
          try:
            thing.__code__ = lie.__code__
          except ValueError:
            pass
    """,
    dictionaries_of_everyone="""
      for thing in gc.get_objects():
        if type(thing) is dict and "solution" in thing:
          thing["solution"] = lambda: 42
    """,
  ),
  *program.modules(
    "7",
    program.FAILED,
    names_of_its_own="""
      def lie(*_, **__):
        return 42
      float = int = str = bool = type = len = isinstance = repr = lie
      def solution():
        return 7
    """,
    names_that_lie_later="""
      def lie(*_, **__):
        return 42
      def solution():
        global float, int, str, bool, type, len, isinstance, repr
        float = int = str = bool = type = len = isinstance = repr = lie
        return 7
    """,
    solution_that_changes="""
      def solution():
        global solution
        solution = lambda: 42
        return 7
    """,
  ),
  # Whoever forges a result could have returned it, so it may come back; what
  # must not is a change to the result of another program.
  *program.bodies(
    "7",
    "13",
    *program.STOPPED,
    then="return 7",
    forges_a_line=f"""
      for file in range(3, 256):
        try:
          os.write(file, b'{_FORGED}\\n' * 3)
        except OSError:
          pass
    """,
    forges_a_message_with_its_length=f"""
      data = b'{_FORGED}'
      for order in "<", ">":
        for size in "I", "Q", "i":
          for file in range(3, 256):
            try:
              os.write(file, struct.pack(order + size, len(data)) + data)
            except OSError:
              pass
    """,
    forges_rubbish="""
      for file in range(3, 256):
        try:
          os.write(file, bytes(range(256)) * 16)
        except OSError:
          pass
    """,
    forges_numbers="""
      for file in range(3, 256):
        for data in b"NaN", b"1e999", b"[" * 10**4, b"null", b"{}", b'"42':
          try:
            os.write(file, data + b"\\n")
          except OSError:
            pass
    """,
    changes_small_numbers="""
      ctypes.c_int.from_address(id(7) + 24).value = 13
    """,
    calls_its_callers="""
      frame = sys._getframe(1)
      for thing in list(frame.f_globals.values()):
        try:
          thing()
        except BaseException:
          pass
    """,
  ),
  *program.bodies(
    "7",
    "13",
    *program.STOPPED,
    forges_and_leaves=f"""
      for file in range(3, 256):
        try:
          os.write(file, b'{_FORGED}\\n')
        except OSError:
          pass
      os._exit(0)
    """,
  ),
)
