"""Programs that go too deep."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    *program.STOPPED,
    without_end="""
      def f(n):
        return f(n + 1)
      return f(0)
    """,
    mutual="""
      def f():
        return g()
      def g():
        return f()
      return f()
    """,
    limit_lifted="""
      sys.setrecursionlimit(10**9)
      def f(n):
        return f(n + 1) + 1
      return f(0)
    """,
    limit_lifted_in_c="""
      sys.setrecursionlimit(10**9)
      class Deep:
        def __repr__(self):
          return repr(self)
      return repr(Deep())
    """,
    error_swallowed="""
      def f():
        try:
          f()
        except RecursionError:
          f()
      f()
      f()
      return 42
    """,
    combinator="return (lambda f: f(f))(lambda f: f(f))",
    attribute="""
      class Deep:
        def __getattr__(self, name):
          return getattr(self, name + "x")
      return Deep().x
    """,
    nested_chains="""
      x = itertools.chain([0])
      for _ in range(10**6):
        x = itertools.chain(x, [0])
      return next(x) + 42
    """,
    deep_json='return len(json.loads("[" * 10**6)) * 0 + 42',
    deep_sympy="""
      x = sympy.Symbol("x")
      for _ in range(10**4):
        x = sympy.sin(x, evaluate=False)
      return float(x.subs("x", 1)) * 0 + 42
    """,
    deep_literal='return ast.literal_eval("-" * 10**6 + "42")',
    deep_source='return eval("(" * 10**5 + "42" + ")" * 10**5)',
  ),
  *program.bodies(
    "7",
    "other",
    *program.STOPPED,
    deep_tuple="""
      x = None
      for _ in range(10**5):
        x = (x,)
      del x
      return 7
    """,
    deep_list_returned="""
      x = []
      for _ in range(10**5):
        x = [x]
      return x
    """,
    list_in_itself="""
      x = []
      x.append(x)
      return x
    """,
  ),
)
