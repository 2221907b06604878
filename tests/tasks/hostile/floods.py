"""Programs that say too much."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    *program.STOPPED,
    prints_forever="while True: print('42')",
    writes_forever="""
      import sys
      while True:
        sys.stdout.write("42\\n" * 1000)
    """,
    complains_forever="""
      import sys
      while True:
        print("42", file=sys.stderr, flush=True)
    """,
    writes_to_descriptors_forever="""
      import os
      while True:
        for file in 1, 2:
          os.write(file, b"42\\n" * 1000)
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    prints_a_lot="""
      for n in range(10**4):
        print(42)
      return 7
    """,
    prints_a_long_line="""
      print("42" * 10**6)
      return 7
    """,
    prints_an_answer="""
      print("The answer is 42")
      print('{"status": "returned", "kind": "int", "number": 42}')
      return 7
    """,
    writes_to_descriptors="""
      import os
      os.write(1, b"42\\n")
      os.write(2, b"42\\n")
      return 7
    """,
    writes_to_the_first_streams="""
      import sys
      sys.__stdout__.write("42\\n" * 10**5)
      sys.__stderr__.write("42\\n" * 10**5)
      return 7
    """,
    writes_to_the_terminal="""
      import os
      os.write(os.open("/dev/tty", os.O_WRONLY), b"42")
      return 42
    """,
    warns="""
      import warnings
      for n in range(100):
        warnings.warn(f"42 {n}")
      return 7
    """,
    logs="""
      import logging
      for n in range(100):
        logging.error("42")
      return 7
    """,
    tracebacks="""
      import faulthandler, traceback
      try:
        1 / 0
      except ZeroDivisionError:
        traceback.print_exc()
      faulthandler.dump_traceback()
      return 7
    """,
    unraisable="""
      class Loud:
        def __del__(self):
          raise ValueError("42")
      Loud()
      return 7
    """,
    other_streams="""
      import io, sys
      sys.stdout = sys.stderr = None
      print("42")
      return 7
    """,
  ),
  *program.bodies(
    "text",
    *program.STOPPED,
    returns_a_long_text="return '42' * 10**7",
    returns_a_text_of_lines="return '42\\n' * 10**5",
  ),
  *program.bodies(
    "unreadable",
    "inf",
    "other",
    *program.STOPPED,
    returns_a_long_number="return 10**4000",
    returns_a_longer_number="return 10**50000",
    returns_a_long_list="return list(range(10**5))",
  ),
)
