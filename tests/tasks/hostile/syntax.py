"""Texts that are hardly programs."""

from hostile import program

PROGRAMS = (
  *program.modules(
    program.FAILED,
    empty="",
    blank=" \n\t\n",
    comment="# return 42",
    prose="The answer is 42.",
    null="def solution():\n  return 42\0",
    null_inside="def solution():\n  return 4\0 2",
    unfinished="def solution(:\n  return 42",
    unfinished_text='def solution():\n  return 42\nx = """',
    unfinished_call="def solution():\n  return 42\nx = str(",
    unfinished_condition="def solution():\n  return 42\nif 0:",
    unfinished_line="def solution():\n  return 42\nx = \\",
    not_indented="def solution():\nreturn 42",
    return_outside="return 42",
    yield_outside="yield 42\ndef solution():\n  return 42",
    name_of_a_number="solution = 42",
    wants_an_argument="def solution(answer):\n  return answer",
    no_longer_there="def solution():\n  return 42\ndel solution",
    another_letter="def s\N{CYRILLIC SMALL LETTER O}lution():\n  return 42",
    turned_around="\N{RIGHT-TO-LEFT OVERRIDE}def solution():\n  return 42",
    half_a_character="def solution():\n  return '\ud800' and 42 #\udfff",
    spaces_of_no_width="def\N{ZERO WIDTH SPACE} solution():\n  return 42",
    nonlocal_at_the_top="nonlocal x\ndef solution():\n  return 42",
    star_in_a_function="def solution():\n  from math import *\n  return 42",
    number_of_many_digits=f"def solution():\n  return {'4' * 60000}",
    decorated="import sys\n@sys.exit\ndef solution():\n  return 42",
    class_that_exits="""
      import os
      class solution(metaclass=lambda *_: os._exit(42)):
        pass
    """,
    default_that_forks="""
      import os
      def solution(child=os.fork()):
        return 42
    """,
    blocks_in_blocks="def solution():\n"
    + "\n".join(" " * n + "if 1:" for n in range(1, 200))
    + "\n"
    + " " * 200
    + "return 42",
  ),
  *program.modules(
    "7",
    *program.STOPPED,
    parentheses="def solution():\n  return " + "(" * 30000 + "7" + ")" * 30000,
    brackets="def solution():\n  x = "
    + "[" * 10**5
    + "]" * 10**5
    + "\n  return 7",
    minuses="def solution():\n  return " + "-" * 60000 + "7",
    nots="def solution():\n  return " + "not " * 15000 + "1 or 7",
    sum_of_ones="def solution():\n  return 0" + "+1-1" * 15000 + "+7",
    powers="def solution():\n  return 7" + "**1" * 20000,
    comparisons="def solution():\n  return 7 if 1" + "<1" * 30000 + " else 7",
    dots="def solution():\n  return 7 if math" + ".pi" * 20000 + " else 7",
    lambdas="def solution():\n  return (" + "lambda: " * 7000 + "7) and 7",
    branches="def solution():\n  if 0: pass\n"
    + "  elif 0: pass\n" * 4000
    + "  return 7",
    megabyte_of_comment=f"def solution():\n  return 7\n#{'4' * 10**6}",
    megabyte_of_text=f"def solution():\n  x = '{'4' * 10**6}'\n  return 7",
    megabyte_of_lines="def solution():\n" + "  x = 4\n" * 10**5 + "  return 7",
    megabyte_of_names="def solution():\n  return 7\n"
    + "\n".join(f"x{n} = {n}" for n in range(10**5)),
    loops_in_loops="def solution():\n"
    + "\n".join(" " * n + "for x in 1,:" for n in range(1, 50))
    + "\n"
    + " " * 50
    + "return 7",
    wide_letters="def ｓｏｌｕｔｉｏｎ():\n  return 7",
    byte_order_mark="\N{BYTE ORDER MARK}def solution():\n  return 7",
    carriage_returns="def solution():\r\n  return 7\r\n",
    form_feeds="\fdef solution():\n\f  return 7",
    line_of_another_kind="def solution():\n  '\N{LINE SEPARATOR}'\n  return 7",
    cookie="# coding: utf-7\ndef solution():\n  return 7 #+AAo-  return 42",
    from_the_future="""
      from __future__ import barry_as_FLUFL
      def solution():
        return 7
    """,
    twice="""
      def solution():
        return 42
      def solution():
        return 7
    """,
    calls_itself_first="""
      def solution():
        return 7
      print(solution())
    """,
    formats_in_formats="""
      def solution():
        return 7 if f"{f'{f"{1}"}'}" else 42
    """,
  ),
  *program.modules(
    "other",
    program.FAILED,
    coroutine="async def solution():\n  return 42",
    generator="def solution():\n  yield 42",
    class_for_a_function="class solution:\n  answer = 42",
  ),
)
