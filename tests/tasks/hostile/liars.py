"""Programs that return objects which are not what they say."""

import textwrap

from hostile import files, program

# What may come of an object that is no number: told apart, or given up.
_NO_NUMBER = ("other", *program.STOPPED)


def _liars(*may: str, **bodies: str) -> tuple[program.Program, ...]:
  """Programs that return an object of a class, written as the class's body."""
  classes = {}
  for name, body in bodies.items():
    methods = textwrap.dedent(body).strip("\n")
    classes[name] = "class Liar:\n" + textwrap.indent(methods, "  ")
  return program.bodies(*may, then="return Liar()", **classes)


PROGRAMS = (
  *_liars(
    "text",
    *_NO_NUMBER,
    equals_everything="""
      __eq__ = __ge__ = __le__ = lambda self, other: True
      __hash__ = lambda self: 42
      __sub__ = __rsub__ = __abs__ = lambda self, *other: 0
    """,
    float_that_raises="def __float__(self): raise SystemExit(42)",
    float_that_returns_text='def __float__(self): return "42"',
    float_that_never_ends="""
      def __float__(self):
        while True: pass
    """,
    text_that_never_ends="""
      def __str__(self):
        while True: pass
      __repr__ = __str__
    """,
    text_that_is_long='def __str__(self): return "42" * 10**9',
    text_that_is_none="def __str__(self): return None",
    text_that_exits="def __str__(self): os._exit(42)",
    number_by_index="__index__ = __int__ = lambda self: 13",
    class_of_its_choice="""
      __class__ = int
      __float__ = lambda self: 13.0
    """,
    attributes_that_raise="""
      def __getattribute__(self, name):
        raise SystemExit(42)
    """,
    attributes_that_never_end="""
      def __getattribute__(self, name):
        while True: pass
    """,
    pickles_to_a_command=f"""
      def __reduce__(self):
        return os.system, ("touch {files.TRACE} /tmp/{files.TRACE}",)
    """,
  ),
  *program.bodies(
    "text",
    *_NO_NUMBER,
    class_of_text="""
      class Liar(str):
        __str__ = __repr__ = lambda self: "42" * 10**6
        __len__ = lambda self: 1
        __getitem__ = lambda self, key: self
        encode = lambda self, *_: b'{"number": 42}'
      return Liar("7")
    """,
    class_that_lies="""
      class Meta(type):
        __instancecheck__ = __subclasscheck__ = lambda cls, other: True
        __eq__ = lambda cls, other: True
        __hash__ = lambda cls: hash(int)
        __name__ = property(lambda cls: "int")
      class Liar(metaclass=Meta):
        __float__ = lambda self: 13.0
      return Liar()
    """,
    pickles_to_an_exit="""
      class Liar(dict):
        def __reduce_ex__(self, protocol):
          return os._exit, (42,)
      return Liar(answer=42)
    """,
    a_function="return lambda *_: 42",
    a_class="return int",
    a_module="return math",
    a_generator="""
      def endless():
        while True: yield 42
      return endless()
    """,
    a_coroutine="""
      async def late():
        return 42
      return late()
    """,
    an_error="return SystemExit(42)",
    a_list="return [42]",
    a_dictionary="return {'number': 42}",
    a_range="return range(10**18)",
    a_complex_number="return 7 + 42j",
    not_implemented="return NotImplemented",
    a_symbol='return sympy.Symbol("x")',
    an_equation='return sympy.Eq(sympy.Symbol("x"), 42)',
    a_list_of_solutions="""
      x = sympy.Symbol("x")
      return sympy.solve(x**2 - 49, x)
    """,
  ),
  # Classes of numbers that claim to be others.
  *program.bodies(
    *_NO_NUMBER,
    integer_that_lies="""
      class Liar(int):
        __float__ = lambda self: 13.0
        __repr__ = __str__ = lambda self: "13"
      return Liar(7)
    """,
    float_that_lies="""
      class Liar(float):
        __float__ = lambda self: 13.0
        __eq__ = lambda self, other: True
        __repr__ = __str__ = lambda self: "1" * 10**6
      return Liar(7)
    """,
    fraction_that_lies="""
      class Liar(fractions.Fraction):
        __float__ = lambda self: 13.0
      return Liar(7)
    """,
    number_of_sympy_that_lies="""
      class Liar(sympy.Integer):
        __float__ = lambda self: 13.0
      return Liar(7)
    """,
    object_of_sympy_that_lies="""
      class Liar(sympy.Basic):
        is_number = True
        __float__ = lambda self: 13.0
      return Liar()
    """,
    class_that_moves_to_sympy="""
      class Integer(sympy.Integer):
        __float__ = lambda self: 13.0
      Integer.__module__ = "sympy.core.numbers"
      Integer.__qualname__ = "Integer"
      sys.modules["sympy.core.numbers"].Integer = Integer
      return Integer(7)
    """,
    class_called_float="""
      class float:
        def __float__(self):
          return 13.0
      return float()
    """,
    class_called_integer="""
      class int:
        def __float__(self):
          return 13.0
      return int()
    """,
    class_called_decimal="""
      class Decimal:
        def __float__(self):
          return 13.0
      return Decimal()
    """,
    kinds_of_its_callers="""
      class Liar:
        __float__ = lambda self: 13.0
      frame = sys._getframe()
      while frame := frame.f_back:
        if "TEXT_CHARACTERS" in frame.f_globals:
          frame.f_globals["KINDS"][Liar] = "int"
          frame.f_globals["reader"] = lambda *_: lambda _: {
            "kind": "int", "number": 13.0, "text": "13"
          }
      return Liar()
    """,
  ),
  *program.bodies(
    "nan",
    "unreadable",
    "other",
    program.FAILED,
    not_a_number="return float('nan')",
    not_a_decimal='return decimal.Decimal("NaN")',
    not_a_decimal_at_all='return decimal.Decimal("sNaN")',
    sympy_nan="return sympy.nan",
  ),
  *program.bodies(
    "inf",
    "-inf",
    "unreadable",
    *_NO_NUMBER,
    infinity="return float('inf')",
    infinity_below="return -float('inf')",
    infinity_by_overflow="return 1e308 * 10",
    decimal_beyond_all='return decimal.Decimal("1e999999")',
    fraction_beyond_all="return fractions.Fraction(10**1000, 3)",
    sympy_infinity="return sympy.oo",
    sympy_infinity_of_complex="return sympy.zoo",
    sympy_number_beyond_all="return sympy.Integer(10) ** (10**5)",
    sympy_tower="""
      return sympy.Pow(9, sympy.Pow(9, 99, evaluate=False), evaluate=False)
    """,
  ),
  *program.bodies(
    "bool",
    truth="return True",
  ),
  *program.bodies(
    "none",
    nothing="return None",
    nothing_at_all="x = 42",
  ),
  *program.bodies(
    "text",
    program.FAILED,
    digits_as_text="return '７'",
    empty_text="return ''",
    null_in_text="return '7\\0'",
    text_that_looks_like_a_result="""
      return '7", "number": 42, "kind": "int"}\\n{"kind": "int", "number": 42}'
    """,
    half_a_character="return '\\ud800'",
  ),
)
