"""Programs that never end, or not before the sun does."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    program.TIMED_OUT,
    while_true="while True: pass",
    swallows_everything="""
      while True:
        try:
          while True: pass
        except BaseException:
          pass
    """,
    loops_in_finally="""
      try:
        while True: pass
      finally:
        while True: pass
    """,
    two_by_two="""
      def left(n):
        return n + 1
      n = 0
      while True:
        n = left(n) - 1
    """,
    sum_of_a_range="return sum(range(10**12))",
    comprehension="return len([0 for n in range(10**12) if n < 0])",
    fibonacci="""
      def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)
      return fib(80)
    """,
    generator_without_end="""
      def forever():
        while True:
          yield 1
      return sum(forever())
    """,
    itertools_product="""
      return sum(1 for _ in itertools.product(range(10), repeat=20))
    """,
    decimal_in_c="""
      decimal.getcontext().prec = 10**6
      x = decimal.Decimal(2)
      while True:
        x = x.sqrt()
    """,
    sympy_factors="""
      p, q = sympy.nextprime(10**40), sympy.nextprime(10**41)
      return len(sympy.factorint(p * q)) * 21
    """,
    sympy_loop="""
      x = sympy.Symbol("x")
      while True:
        sympy.solve(x**2 - 4, x)
    """,
  ),
  *program.bodies(
    program.TIMED_OUT,
    then="return 42",
    counting="""
      n = 0
      while n >= 0:
        n += 1
    """,
    nested_loops="""
      for a in range(10**6):
        for b in range(10**6):
          pass
    """,
    iterator_without_end="""
      for _ in iter(int, 1):
        pass
    """,
    busy_wait="while time.perf_counter() < 10**12: pass",
  ),
  *program.bodies(
    *program.STOPPED,
    then="return 42",
    deque_in_c="collections.deque(itertools.repeat(0), maxlen=0)",
    factorial="""
      n = 1
      for k in range(1, 10**9):
        n *= k
    """,
    grows_while_read="""
      xs = [1]
      for x in xs:
        xs.append(x)
    """,
    sleeps_on_a_select="select.select([], [], [], 3600)",
    waits_for_itself="""
      lock = threading.Lock()
      lock.acquire()
      lock.acquire()
    """,
    asyncio_forever="""
      async def forever():
        while True:
          await asyncio.sleep(0)
      asyncio.run(forever())
    """,
  ),
  *program.bodies(
    *program.STOPPED,
    text_of_a_number="""
      sys.set_int_max_str_digits(0)
      while True:
        str(3 ** 10**5)
    """,
    tower_of_nines="return 9**9**9",
    tower_of_tens="return 10**10**9",
    power="return pow(7, 10**9)",
    squaring="""
      n = 3
      while True:
        n = n * n
    """,
    modular_power="return pow(3, 2**(10**6), 10**5000 + 1) * 0 + 42",
    factorial_in_c="return math.factorial(10**7)",
    one_long_step="return math.lcm(*range(1, 10**6))",
    binomial="return math.comb(10**9, 10**8)",
    sorts_a_lot="return sorted(range(10**8), key=lambda n: -n)[0]",
    ackermann="""
      def a(m, n):
        if m == 0:
          return n + 1
        return a(m - 1, 1 if n == 0 else a(m, n - 1))
      return a(4, 4)
    """,
    sympy_expand="""
      a, b, c, d = sympy.symbols("a b c d")
      return len(str(sympy.expand((a + b + c + d + 1) ** 90)))
    """,
    sympy_parses_a_tower='return sympy.sympify("9**9**9")',
    sympy_digits="return sympy.pi.evalf(10**7)",
    sympy_sum="""
      k = sympy.Symbol("k")
      return sympy.Sum(sympy.sin(k) / k**2, (k, 1, 10**9)).doit().evalf()
    """,
    compiles_for_long='return eval("+".join(["1"] * 10**6))',
    waits_for_input="return len(input()) * 0 + 42",
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    then="return 7",
    sleeps="time.sleep(3600)",
    waits_for_a_signal="signal.pause()",
    loops_when_deleted="""
      class Sticky:
        def __del__(self):
          while True: pass
      global sticky
      sticky = Sticky()
    """,
    loops_at_exit="""
      def forever():
        while True: pass
      atexit.register(forever)
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    reads_standard_input="return 42 if sys.stdin.read() else 7",
    backtracking="""
      return 7 if re.match(r"(a+)+$", "a" * 40 + "b") is None else 42
    """,
    backtracking_in_words="""
      text = "x" * 5000
      return 7 if re.search(r"(x*)*(x*)*y", text) is None else 42
    """,
  ),
)
