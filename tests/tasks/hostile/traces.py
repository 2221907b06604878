"""Programs that change things for the program after them."""

from hostile import files, program

PROGRAMS = (
  *program.bodies(
    "7",
    program.FAILED,
    then="return 7",
    builtin_sum="""
      builtins.sum = builtins.sorted = builtins.len = lambda *_: 42
    """,
    pi="""
      import math
      math.pi = 42
      math.sqrt = math.floor = lambda _: 42
    """,
    pi_of_what_was_imported="""
      math.pi = 42
      math.sqrt = math.floor = lambda _: 42
    """,
    solver="""
      sympy.solve = sympy.Symbol = lambda *_, **__: 42
      sympy.Integer.__add__ = lambda *_: 42
    """,
    modules_gone="""
      for name in "math", "sympy", "json", "fractions":
        sys.modules[name] = None
    """,
    paths_gone="""
      sys.path.clear()
      sys.meta_path.clear()
    """,
    random_numbers="""
      random.seed(42)
      random.random = lambda: 42
    """,
    environment="""
      os.environ["PYTHONSTARTUP"] = "42"
      os.putenv("PYTHONINSPECT", "42")
    """,
    decimals="""
      decimal.getcontext().prec = 1
      decimal.DefaultContext.prec = 1
    """,
    fractions="fractions.Fraction.__add__ = lambda *_: 42",
    depth="sys.setrecursionlimit(42)",
    digits="sys.set_int_max_str_digits(640)",
    collector="""
      gc.disable()
      gc.freeze()
      gc.set_threshold(1)
    """,
    warnings='warnings.simplefilter("error")',
    mask="os.umask(0o777)",
    small_numbers="ctypes.c_int.from_address(id(8) + 24).value = 42",
    attributes_of_classes="""
      import ctypes, gc
      gc.get_referents(int.__dict__)[0]["__add__"] = lambda *_: 42
    """,
    files_for_later=f"""
      for folder in ".", "/tmp", "/var/tmp", "/dev/shm":
        try:
          open(f"{{folder}}/{files.TRACE}", "w")
          return 42
        except OSError:
          pass
    """,
  ),
)
