"""Programs that read, write or inherit files."""

from hostile import program

# What a program tries to leave; tests look for it in the usual places.
TRACE = "reft_jax_hostile"

PROGRAMS = (
  *program.bodies(
    program.FAILED,
    reads_passwords="return 42 if open('/etc/passwd').read() else 7",
    reads_by_descriptor="""
      import os
      return 42 if os.open("/etc/passwd", os.O_RDONLY) >= 0 else 7
    """,
    reads_by_path="""
      import pathlib
      return 42 if pathlib.Path("/etc/passwd").read_text() else 7
    """,
    reads_by_codec="""
      import codecs
      return 42 if codecs.open("/etc/passwd").read() else 7
    """,
    reads_by_the_io_module="""
      import _io
      return 42 if _io.FileIO("/etc/passwd").read() else 7
    """,
    reads_by_the_loader="""
      import importlib.machinery
      loader = importlib.machinery.SourceFileLoader("x", "/etc/passwd")
      return 42 if loader.get_data("/etc/passwd") else 7
    """,
    reads_by_c="""
      import ctypes
      libc = ctypes.CDLL(None)
      return 42 if libc.open(b"/etc/passwd", 0) >= 0 else 1 / 0
    """,
    reads_a_folder="""
      import os
      return 42 if os.listdir("/") else 7
    """,
    reads_its_environment="""
      return 42 if open("/proc/self/environ", "rb").read() is not None else 7
    """,
    reads_its_parent_s_environment="""
      import os
      name = f"/proc/{os.getppid()}/environ"
      return 42 if open(name, "rb").read() is not None else 7
    """,
    opens_its_parent_s_memory="""
      import os
      return 42 if open(f"/proc/{os.getppid()}/mem", "r+b") else 7
    """,
    opens_its_parent_s_files="""
      import os
      return 42 if open(f"/proc/{os.getppid()}/fd/0", "rb") else 7
    """,
    writes_here=f"""
      with open("{TRACE}", "w") as file:
        file.write("42")
      return 42
    """,
    writes_a_temporary_file=f"""
      with open("/tmp/{TRACE}", "w") as file:
        file.write("42")
      return 42
    """,
    writes_by_tempfile=f"""
      import tempfile
      tempfile.NamedTemporaryFile(prefix="{TRACE}", delete=False)
      return 42
    """,
    makes_a_folder=f"""
      import os
      os.mkdir("/tmp/{TRACE}")
      return 42
    """,
    makes_a_link=f"""
      import os
      os.symlink("/etc/passwd", "/tmp/{TRACE}")
      return 42
    """,
    makes_a_pipe_with_a_name=f"""
      import os
      os.mkfifo("/tmp/{TRACE}")
      return 42
    """,
    changes_rights="""
      import os
      os.chmod("/tmp", 0o1777)
      return 42
    """,
    memory_shared=f"""
      from multiprocessing import shared_memory
      shared_memory.SharedMemory("{TRACE}", create=True, size=4096)
      return 42
    """,
    memory_outside_the_limit="""
      import os
      os.memfd_create("x")
      return 42
    """,
    database=f"""
      import sqlite3
      sqlite3.connect("/tmp/{TRACE}").execute("create table x(y)")
      return 42
    """,
    log_file=f"""
      import logging
      logging.FileHandler("/tmp/{TRACE}")
      return 42
    """,
    imports_the_grader="""
      import reft_jax.tasks.answers
      return 42
    """,
    imports_the_tests="""
      import pytest
      return 42
    """,
    imports_from_where_it_likes="""
      import sys
      sys.path[:] = ["/tmp", ".", "tests", "/usr/lib/python3/dist-packages"]
      import hostile
      return 42
    """,
    imports_machine_code="""
      import importlib.machinery
      spec = importlib.machinery.ModuleSpec("x", None, origin="/tmp/x.so")
      importlib.machinery.ExtensionFileLoader("x", "/tmp/x.so").create_module(
        spec
      )
      return 42
    """,
    signals_from_a_file="""
      import fcntl, os
      for file in range(256):
        try:
          fcntl.fcntl(file, fcntl.F_SETOWN, os.getppid())
          return 42
        except Exception:
          pass
      return 1 / 0
    """,
    reads_whatever_is_open="""
      import os
      for file in range(256):
        try:
          os.set_blocking(file, False)
          if os.read(file, 1):
            return 42
        except Exception:
          pass
      return 1 / 0
    """,
    seeks_whatever_is_open="""
      import os
      for file in range(256):
        try:
          os.lseek(file, 0, os.SEEK_SET)
          if os.read(file, 1):
            return 42
        except Exception:
          pass
      return 1 / 0
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    reads_lines_quietly="""
      import linecache
      return 42 if linecache.getlines("/etc/passwd") else 7
    """,
    finds_files_quietly="""
      import glob
      return 42 if glob.glob("/*") else 7
    """,
    reads_by_standard_streams="""
      import sys
      return 42 if sys.__stdin__ and sys.__stdin__.read(1) else 7
    """,
    goes_elsewhere="""
      import os
      os.chdir("/tmp")
      return 7
    """,
    closes_all_files="""
      import os
      os.closerange(0, 1024)
      return 7
    """,
    closes_them_one_by_one="""
      import os
      for file in range(1024):
        try:
          os.close(file)
        except OSError:
          pass
      return 7
    """,
    swaps_files="""
      import os
      for file in range(3, 64):
        try:
          os.dup2(file, file + 1)
        except OSError:
          pass
      return 7
    """,
    opens_too_many="""
      import os
      try:
        while True:
          os.dup(1)
      except OSError:
        return 7
    """,
    fills_its_pipes="""
      import os
      for file in range(64):
        try:
          while True:
            os.write(file, bytes(4096))
        except OSError:
          pass
      return 7
    """,
  ),
)
