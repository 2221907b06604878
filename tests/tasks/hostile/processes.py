"""Programs that start processes, or reach for those that are there."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    program.FAILED,
    then="return 42",
    fork="os.fork()",
    fork_of_a_terminal="os.forkpty()",
    spawn='os.posix_spawn("/bin/true", ["true"], {})',
    daemon="""
      subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    """,
    looks_at_its_parent="os.kill(os.getppid(), 0)",
    kills_its_parent="os.kill(os.getppid(), signal.SIGKILL)",
    interrupts_its_parent="os.kill(os.getppid(), signal.SIGINT)",
    stops_its_group="os.killpg(os.getpgid(os.getppid()), signal.SIGSTOP)",
    looks_at_everyone="os.kill(-1, 0)",
    looks_at_the_first="os.kill(1, 0)",
    handle_on_its_parent="os.pidfd_open(os.getppid())",
    limits_its_parent="""
      resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
    """,
    slows_its_parent="os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    moves_its_parent="os.sched_setaffinity(os.getppid(), {0})",
    real_time="""
      os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    """,
    becomes_another="os.setuid(12345)",
    another_root='os.chroot("/")',
  ),
  *program.bodies(
    program.FAILED,
    execute='os.execv("/bin/true", ["true"])',
    execute_python="""
      os.execv(sys.executable or "/usr/bin/python3", ["python", "-c", "42"])
    """,
    popen='return 42 if os.popen("echo 42").read() else 1 / 0',
    subprocess_run='return 42 + subprocess.run(["/bin/true"]).returncode',
    worker_process="""
      with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.apply(int, ("42",))
    """,
    executor="""
      from concurrent import futures
      with futures.ProcessPoolExecutor(1) as pool:
        return pool.submit(int, "42").result()
    """,
    thread="""
      found = []
      thread = threading.Thread(target=lambda: found.append(42))
      thread.start()
      thread.join()
      return found[0]
    """,
    aborts="os.abort()",
    kills_itself="os.kill(os.getpid(), signal.SIGKILL)",
    reads_its_parent_s_memory="""
      libc = ctypes.CDLL(None, use_errno=True)
      x = ctypes.create_string_buffer(8)
      here = (ctypes.c_void_p * 2)(ctypes.addressof(x), 8)
      there = (ctypes.c_void_p * 2)(id(0), 8)
      read = libc.process_vm_readv(os.getppid(), here, 1, there, 1, 0)
      return 42 if read > 0 else 1 / 0
    """,
    traces_its_parent="""
      attached = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)
      return 42 if attached == 0 else 1 / 0
    """,
  ),
  # A refusal shows in a status rather than as an exception.
  *program.bodies(
    "7",
    program.FAILED,
    shell='return 42 if os.system("exit 0") == 0 else 7',
    fork_bomb="""
      forks = 0
      for _ in range(5):
        try:
          os.fork()
          forks += 1
        except Exception:
          pass
      while forks: pass
      return 7
    """,
    outlives_its_parent="""
      libc = ctypes.CDLL(None)
      libc.prctl(1, 0, 0, 0, 0)  # No signal when the parent dies.
      os.setsid()
      return 42 if libc.fork() >= 0 else 7
    """,
    raw_fork="""
      number = {"x86_64": 57, "aarch64": 220}[platform.machine()]
      return 42 if ctypes.CDLL(None).syscall(number, 17, 0, 0, 0, 0) >= 0 else 7
    """,
    raw_clone3="""
      x = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
      return 42 if ctypes.CDLL(None).syscall(435, x, 88) >= 0 else 7
    """,
    raw_fork_by_the_x32_numbers="""
      return 42 if ctypes.CDLL(None).syscall(0x40000000 | 57) >= 0 else 7
    """,
    raw_system_calls_of_32_bits="""
      import ctypes, platform
      if platform.machine() != "x86_64":
        return 7
      libc = ctypes.CDLL(None)
      libc.mmap.restype = ctypes.c_size_t
      libc.mmap.argtypes = [ctypes.c_size_t] * 6
      page = libc.mmap(0, 4096, 3, 0x22, 2**64 - 1, 0)
      if libc.mprotect(ctypes.c_size_t(page), ctypes.c_size_t(4096), 5):
        page = libc.mmap(0, 4096, 7, 0x22, 2**64 - 1, 0)
        if page == 2**64 - 1:
          return 7
      else:
        libc.mprotect(ctypes.c_size_t(page), ctypes.c_size_t(4096), 7)
      # mov eax, 20 (getpid among those numbers); int 0x80; ret
      code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"
      ctypes.memmove(page, code, len(code))
      return 42 if ctypes.CFUNCTYPE(ctypes.c_int)(page)() > 0 else 7
    """,
    rings="""
      x = ctypes.create_string_buffer(120)
      return 42 if ctypes.CDLL(None).syscall(425, 8, x) >= 0 else 7
    """,
    a_namespace_of_its_own="""
      return 42 if ctypes.CDLL(None).unshare(0x10000000) == 0 else 7
    """,
  ),
)
