"""Programs that read, write or inherit files."""

from hostile import program

# What a program tries to leave; tests look for it in the usual places.
TRACE = "reft_jax_hostile"

PROGRAMS = (
  *program.bodies(
    program.FAILED,
    reads_passwords="return 42 if open('/etc/passwd').read() else 7",
    reads_by_descriptor="""
      return 42 if os.open("/etc/passwd", os.O_RDONLY) >= 0 else 7
    """,
    reads_by_path="""
      return 42 if pathlib.Path("/etc/passwd").read_text() else 7
    """,
    reads_by_codec='return 42 if codecs.open("/etc/passwd").read() else 7',
    reads_by_the_io_module="""
      return 42 if _io.FileIO("/etc/passwd").read() else 7
    """,
    reads_by_the_loader="""
      import importlib.machinery
      loader = importlib.machinery.SourceFileLoader("x", "/etc/passwd")
      return 42 if loader.get_data("/etc/passwd") else 7
    """,
    reads_by_c="""
      libc = ctypes.CDLL(None)
      return 42 if libc.open(b"/etc/passwd", 0) >= 0 else 1 / 0
    """,
    reads_a_folder='return 42 if os.listdir("/") else 7',
    reads_its_environment="""
      return 42 if open("/proc/self/environ", "rb").read() is not None else 7
    """,
    reads_its_parent_s_environment="""
      name = f"/proc/{os.getppid()}/environ"
      return 42 if open(name, "rb").read() is not None else 7
    """,
    opens_its_parent_s_memory="""
      return 42 if open(f"/proc/{os.getppid()}/mem", "r+b") else 7
    """,
    opens_its_parent_s_files="""
      return 42 if open(f"/proc/{os.getppid()}/fd/0", "rb") else 7
    """,
    signals_from_a_file="""
      for file in range(256):
        try:
          fcntl.fcntl(file, fcntl.F_SETOWN, os.getppid())
          return 42
        except Exception:
          pass
      return 1 / 0
    """,
    reads_whatever_is_open="""
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
    program.FAILED,
    then="return 42",
    writes_here=f"""
      with open("{TRACE}", "w") as file:
        file.write("42")
    """,
    writes_a_temporary_file=f"""
      with open("/tmp/{TRACE}", "w") as file:
        file.write("42")
    """,
    writes_by_tempfile=f"""
      tempfile.NamedTemporaryFile(prefix="{TRACE}", delete=False)
    """,
    makes_a_folder=f'os.mkdir("/tmp/{TRACE}")',
    makes_a_link=f'os.symlink("/etc/passwd", "/tmp/{TRACE}")',
    makes_a_pipe_with_a_name=f'os.mkfifo("/tmp/{TRACE}")',
    changes_rights='os.chmod("/tmp", 0o1777)',
    memory_shared=f"""
      from multiprocessing import shared_memory
      shared_memory.SharedMemory("{TRACE}", create=True, size=4096)
    """,
    memory_outside_the_limit='os.memfd_create("x")',
    database=f"""
      sqlite3.connect("/tmp/{TRACE}").execute("create table x(y)")
    """,
    log_file=f'logging.FileHandler("/tmp/{TRACE}")',
    imports_the_grader="import reft_jax.tasks.answers",
    imports_the_tests="import pytest",
    imports_from_where_it_likes="""
      sys.path[:] = ["/tmp", ".", "tests", "/usr/lib/python3/dist-packages"]
      import hostile
    """,
    imports_machine_code="""
      import importlib.machinery
      spec = importlib.machinery.ModuleSpec("x", None, origin="/tmp/x.so")
      importlib.machinery.ExtensionFileLoader("x", "/tmp/x.so").create_module(
        spec
      )
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    reads_lines_quietly="""
      return 42 if linecache.getlines("/etc/passwd") else 7
    """,
    finds_files_quietly='return 42 if glob.glob("/*") else 7',
    reads_by_standard_streams="""
      return 42 if sys.__stdin__ and sys.__stdin__.read(1) else 7
    """,
    opens_too_many="""
      try:
        while True:
          os.dup(1)
      except OSError:
        return 7
    """,
  ),
  *program.bodies(
    "7",
    *program.STOPPED,
    then="return 7",
    goes_elsewhere='os.chdir("/tmp")',
    closes_all_files="os.closerange(0, 1024)",
    closes_them_one_by_one="""
      for file in range(1024):
        try:
          os.close(file)
        except OSError:
          pass
    """,
    swaps_files="""
      for file in range(3, 64):
        try:
          os.dup2(file, file + 1)
        except OSError:
          pass
    """,
    fills_its_pipes="""
      for file in range(64):
        try:
          while True:
            os.write(file, bytes(4096))
        except OSError:
          pass
    """,
  ),
)
