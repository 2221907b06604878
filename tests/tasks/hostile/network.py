"""Programs that want to talk to someone."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    program.FAILED,
    then="return 42",
    tcp="socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    udp="socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    local="socket.socket(socket.AF_UNIX)",
    kernel="socket.socket(16, socket.SOCK_RAW)  # Netlink.",
    pair="socket.socketpair()",
    raw_socket="_socket.socket()",
    listens='socketserver.TCPServer(("127.0.0.1", 0), None)',
  ),
  *program.bodies(
    program.FAILED,
    adopts_what_is_open="""
      for file in range(256):
        try:
          socket.socket(fileno=file).getpeername()
          return 42
        except Exception:
          pass
      return 1 / 0
    """,
  ),
  # Nothing listens on port 9; to be refused there is to have got out.
  *program.bodies(
    "7",
    program.FAILED,
    then="return 42",
    connects="""
      try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
      except ConnectionRefusedError:
        return 42
    """,
    web="""
      import urllib.error, urllib.request
      try:
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
      except urllib.error.URLError as error:
        return 42 if isinstance(error.reason, ConnectionRefusedError) else 7
    """,
    web_connection="""
      import http.client
      try:
        http.client.HTTPConnection("127.0.0.1", 9, timeout=1).request("GET", "")
      except ConnectionRefusedError:
        return 42
    """,
    asyncio_connection="""
      try:
        asyncio.run(asyncio.open_connection("127.0.0.1", 9))
      except ConnectionRefusedError:
        return 42
    """,
  ),
  *program.bodies(
    "7",
    program.FAILED,
    names='return 42 if socket.getaddrinfo("localhost", 80) else 7',
  ),
)
