"""Programs that want more memory than there is."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    *program.STOPPED,
    list_of_zeros="return len([0] * 10**10)",
    text="return len('a' * 10**12)",
    many_bytes="return len(bytes(10**10))",
    bytearray_that_grows="""
      x = bytearray(1)
      while True:
        x += x
    """,
    text_that_doubles="""
      x = "a"
      while True:
        x += x
    """,
    list_that_doubles="""
      x = [0]
      while True:
        x = x + x
    """,
    list_of_lists="""
      x = []
      while True:
        x.append([x] * 1000)
    """,
    dictionary="""
      x = {}
      while True:
        x[len(x)] = str(len(x)) * 100
    """,
    set_of_texts="""
      x = set()
      while True:
        x.add(str(len(x)) * 100)
    """,
    tuples="""
      x = ()
      while True:
        x = (x, x, list(range(1000)))
    """,
    shift="return (1 << 10**11) % 43",
    list_of_a_range="return len(list(range(10**9)))",
    list_of_a_product="""
      return len(list(itertools.product(range(100), repeat=8)))
    """,
    padding="return len(f'{1:>10000000000}')",
    padding_by_percent="return len('%*d' % (2 * 10**9, 1)) * 0 + 42",
    join="return len('x'.join(['y' * 10**6] * 10**4)) * 0 + 42",
    replace="return len(('a' * 10**5).replace('a', 'b' * 10**5)) * 0 + 42",
    never_gives_in="""
      x = []
      while True:
        try:
          while True:
            x.append(bytes(10**6))
        except MemoryError:
          pass
    """,
    inflated="""
      x = zlib.compress(bytes(10**6))
      kept = [zlib.decompress(x) for _ in range(10**4)]
      return len(kept) * 0 + 42
    """,
    mapped="""
      x = mmap.mmap(-1, 2**30)
      for n in range(0, 2**30, 4096):
        x[n] = 1
      return 42
    """,
    gigabyte="return len(bytearray(2**30)) * 0 + 42",
    gigabyte_in_pieces="""
      x = [b"x" * (2**20 + n) for n in range(2**10)]
      return len(x) * 0 + 42
    """,
    sympy_matrix="return sympy.ones(10**4, 10**4).shape[0] * 0 + 42",
    buffer_in_memory="""
      x = io.BytesIO()
      for n in range(2**10):
        x.write(bytes(2**20))
      return 42
    """,
  ),
)
