"""Programs that say too much."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    *program.STOPPED,
    prints_forever="while True: print('42')",
    writes_forever="""
      while True:
        sys.stdout.write("42\\n" * 1000)
    """,
    complains_forever="""
      while True:
        print("42", file=sys.stderr, flush=True)
    """,
    writes_to_descriptors_forever="""
      while True:
        for file in 1, 2:
          os.write(file, b"42\\n" * 1000)
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    then="return 7",
    prints_a_lot="""
      for n in range(10**4):
        print(42)
    """,
    prints_a_long_line='print("42" * 10**6)',
    prints_an_answer="""
      print("The answer is 42")
      print('{"status": "returned", "kind": "int", "number": 42}')
    """,
    writes_to_descriptors="""
      os.write(1, b"42\\n")
      os.write(2, b"42\\n")
    """,
    writes_to_the_first_streams="""
      sys.__stdout__.write("42\\n" * 10**5)
      sys.__stderr__.write("42\\n" * 10**5)
    """,
    warns="""
      for n in range(100):
        warnings.warn(f"42 {n}")
    """,
    logs="""
      for n in range(100):
        logging.error("42")
    """,
    tracebacks="""
      try:
        1 / 0
      except ZeroDivisionError:
        traceback.print_exc()
      faulthandler.dump_traceback()
    """,
    unraisable="""
      class Loud:
        def __del__(self):
          raise ValueError("42")
      Loud()
    """,
    other_streams="""
      import io, sys
      sys.stdout = sys.stderr = None
      print("42")
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    writes_to_the_terminal="""
      os.write(os.open("/dev/tty", os.O_WRONLY), b"42")
      return 42
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
