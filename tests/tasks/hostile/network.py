"""Programs that want to talk to someone."""

from hostile import program

PROGRAMS = (
  *program.bodies(
    program.FAILED,
    tcp="""
      import socket
      socket.socket(socket.AF_INET, socket.SOCK_STREAM)
      return 42
    """,
    udp="""
      import socket
      socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
      return 42
    """,
    local="""
      import socket
      socket.socket(socket.AF_UNIX)
      return 42
    """,
    kernel="""
      import socket
      socket.socket(16, socket.SOCK_RAW)  # Netlink.
      return 42
    """,
    pair="""
      import socket
      socket.socketpair()
      return 42
    """,
    raw_socket="""
      import _socket
      _socket.socket()
      return 42
    """,
    listens="""
      import socketserver
      socketserver.TCPServer(("127.0.0.1", 0), None)
      return 42
    """,
    adopts_what_is_open="""
      import socket
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
    connects="""
      import socket
      try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
      except ConnectionRefusedError:
        return 42
      return 42
    """,
    web="""
      import urllib.error, urllib.request
      try:
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
      except urllib.error.URLError as error:
        return 42 if isinstance(error.reason, ConnectionRefusedError) else 7
      return 42
    """,
    web_connection="""
      import http.client
      try:
        http.client.HTTPConnection("127.0.0.1", 9, timeout=1).request("GET", "")
      except ConnectionRefusedError:
        return 42
      return 42
    """,
    names="""
      import socket
      return 42 if socket.getaddrinfo("localhost", 80) else 7
    """,
    asyncio_connection="""
      import asyncio
      try:
        asyncio.run(asyncio.open_connection("127.0.0.1", 9))
      except ConnectionRefusedError:
        return 42
      return 42
    """,
  ),
)
