"""Programs that change things for the program after them."""

from hostile import files, program

PROGRAMS = (
  *program.bodies(
    "7",
    program.FAILED,
    builtin_sum="""
      import builtins
      builtins.sum = builtins.sorted = builtins.len = lambda *_: 42
      return 7
    """,
    pi="""
      import math
      math.pi = 42
      math.sqrt = math.floor = lambda _: 42
      return 7
    """,
    pi_of_what_was_imported="""
      math.pi = 42
      math.sqrt = math.floor = lambda _: 42
      return 7
    """,
    solver="""
      sympy.solve = sympy.Symbol = lambda *_, **__: 42
      sympy.Integer.__add__ = lambda *_: 42
      return 7
    """,
    modules_gone="""
      import sys
      for name in "math", "sympy", "json", "fractions":
        sys.modules[name] = None
      return 7
    """,
    paths_gone="""
      import sys
      sys.path.clear()
      sys.meta_path.clear()
      return 7
    """,
    random_numbers="""
      import random
      random.seed(42)
      random.random = lambda: 42
      return 7
    """,
    environment="""
      import os
      os.environ["PYTHONSTARTUP"] = "42"
      os.putenv("PYTHONINSPECT", "42")
      return 7
    """,
    decimals="""
      import decimal
      decimal.getcontext().prec = 1
      decimal.DefaultContext.prec = 1
      return 7
    """,
    fractions="""
      import fractions
      fractions.Fraction.__add__ = lambda *_: 42
      return 7
    """,
    depth="""
      import sys
      sys.setrecursionlimit(42)
      return 7
    """,
    digits="""
      import sys
      sys.set_int_max_str_digits(640)
      return 7
    """,
    collector="""
      import gc
      gc.disable()
      gc.freeze()
      gc.set_threshold(1)
      return 7
    """,
    warnings="""
      import warnings
      warnings.simplefilter("error")
      return 7
    """,
    mask="""
      import os
      os.umask(0o777)
      return 7
    """,
    small_numbers="""
      import ctypes
      ctypes.c_int.from_address(id(8) + 24).value = 42
      return 7
    """,
    attributes_of_classes="""
      import ctypes, gc
      gc.get_referents(int.__dict__)[0]["__add__"] = lambda *_: 42
      return 7
    """,
    files_for_later=f"""
      for folder in ".", "/tmp", "/var/tmp", "/dev/shm":
        try:
          open(f"{{folder}}/{files.TRACE}", "w")
          return 42
        except OSError:
          pass
      return 7
    """,
  ),
)
