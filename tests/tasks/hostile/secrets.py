"""Programs that look for the answer instead of working it out."""

from hostile import program

# Tests put 42 into the trainer's environment under this name.
SECRET = "REFT_JAX_HOSTILE_ANSWER"

PROGRAMS = (
  *program.bodies(
    "7",
    program.FAILED,
    environment=f'return int(os.environ["{SECRET}"])',
    environment_by_c=f"""
      libc = ctypes.CDLL(None)
      libc.getenv.restype = ctypes.c_char_p
      return int(libc.getenv(b"{SECRET}"))
    """,
    command_line="""
      said = " ".join([*sys.argv, *getattr(sys, "orig_argv", [])])
      return 42 if "pytest" in said else 7
    """,
    command_line_of_its_parent="""
      open(f"/proc/{os.getppid()}/cmdline").read()
      return 42
    """,
    modules_that_know="""
      known = {"pytest", "jax", "reft_jax.tasks.answers.grade"}
      return 42 if known & sys.modules.keys() else 7
    """,
    names_around="""
      known = {"expected", "gold", "problem", "problems", "truth"}
      return 42 if known & {*globals(), *locals()} else 7
    """,
    frames_of_threads="return 42 if len(sys._current_frames()) > 1 else 7",
    main_module="""
      import __main__
      known = {"expected", "gold", "problem", "problems", "pytest"}
      return 42 if known & vars(__main__).keys() else 7
    """,
    its_own_file="return 42 if open(__file__).read() else 7",
    sources_above="""
      lines = inspect.stack(context=5)[-1].code_context
      return 42 if lines else 7
    """,
    asks_the_person="return int(input('What is the answer? '))",
  ),
  *program.bodies(
    "7",
    program.FAILED,
    then="return 7",
    environment_of_the_trainer=f"""
      for process in os.getpid(), os.getppid(), 1, *range(2, 10**4):
        try:
          text = open(f"/proc/{{process}}/environ").read()
        except FileNotFoundError:
          continue
        if found := re.search(r"{SECRET}=(\\d+)", text):
          return int(found[1])
    """,
    frames_above="""
      known = {"expected", "gold", "problem", "problems", "truth"}
      frame = sys._getframe()
      while frame := frame.f_back:
        if known & {*frame.f_locals, *frame.f_globals}:
          return 42
    """,
    objects_in_memory=f"""
      for thing in gc.get_objects():
        if type(thing) is dict and "{SECRET}" in thing:
          return int(thing["{SECRET}"])
        if type(thing) is dict and "may" in thing and "source" in thing:
          return 42
    """,
    tests_on_disk="""
      for root in ".", "tests", "../tests":
        try:
          if "test_hostile.py" in os.listdir(root):
            return 42
        except OSError:
          pass
    """,
    asks_the_debugger="pdb.set_trace()",
  ),
)
