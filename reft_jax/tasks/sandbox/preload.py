"""The modules that programs can import in CPython, imported before they run.

Programs cannot open files, so they cannot import any other module.
"""

import contextlib
import importlib
import types
import warnings

STANDARD = """
  __future__ _pylong _strptime abc array ast base64 bisect calendar cmath
  collections collections.abc contextlib copy dataclasses datetime decimal
  difflib enum fractions functools graphlib hashlib heapq inspect io itertools
  json locale math numbers operator os os.path pprint queue random re secrets
  statistics string struct sys textwrap threading time timeit traceback types
  typing unicodedata warnings
"""

# Typical uses of sympy. It imports many modules at first use, which would fail
# in a program, and caches results, which makes programs faster.
SYMPY = """
  solve(Eq(2*x + 3, 11), x)
  solve([x + y - 3, x - y - 1], [x, y])
  solve([x**2 + y - 3, x - y - 1], [x, y], dict=True)
  solve(x**3 - x - 1, x), solve(exp(x) - 3, x), solve(sqrt(x) - 2, x)
  solve(x/(x + 1) - Rational(1, 2), x)
  solve(Abs(r - 1) - 2, r), solve(2*r > 3, r)
  solveset(x**2 - 4, x, S.Reals)
  linsolve([x + y - 3, x - y - 1], x, y)
  nonlinsolve([x*y - 2, x - y - 1], [x, y])
  nsolve(cos(x) - x, x, 1)
  reduce_inequalities([r > 1, r < 3], r)
  simplify((x**2 - 1)/(x - 1) + sin(x)**2)
  expand((x + y)**3), factor(x**2 - y**2), apart(1/(x*(x + 1)))
  diff(sin(x)*exp(x), x), integrate(x**2*exp(x), (x, 0, 1))
  limit(sin(x)/x, x, 0), series(cos(x), x, 0, 4)
  summation(n**2, (n, 1, 10)), Sum(n, (n, 1, 10)).doit().evalf()
  Product(n, (n, 1, 5)).doit()
  rsolve(f(n) - f(n - 1) - 1, f(n))
  sympify("x**2 + 1/3").subs(x, 2), nsimplify(0.25)
  factorint(360), divisors(36), isprime(97), nextprime(10)
  gcd(12, 18), lcm(4, 6), factorial(5), binomial(5, 2)
  floor(pi), ceiling(pi), log(8, 2), N(sqrt(2) + pi)
  Matrix([[1, 2], [3, 4]]).inv().det()
  Point(0, 0).distance(Point(3, 4)), Interval(0, 1).measure
  Piecewise((x, x > 0), (-x, True)).subs(x, -2)
  Poly(x**2 - 1, x).nroots()
  str(x/3), float(Rational(1, 3)), latex(x/2)
"""


def preload() -> types.ModuleType:
  """Imports the modules of the standard library and sympy; returns sympy.

  Raises:
    ImportError: if sympy is not installed.
  """
  for name in STANDARD.split():
    # Some versions of Python lack some, such as _pylong, which str() needs.
    with contextlib.suppress(ModuleNotFoundError):
      importlib.import_module(name)
  import sympy

  names = dict(vars(sympy))
  names["x"], names["y"] = sympy.symbols("x y")
  names["r"] = sympy.Symbol("r", real=True)
  names["n"] = sympy.Symbol("n", integer=True, positive=True)
  names["f"] = sympy.Function("f")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for line in SYMPY.strip().splitlines():
      # Other versions of sympy may lack a function.
      with contextlib.suppress(Exception):
        eval(line.strip(), names)
  return sympy
