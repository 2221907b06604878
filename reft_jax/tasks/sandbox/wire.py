"""JSON objects over a socket, each preceded by its length in four bytes."""

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
  """Sends one object. Raises OSError if the other end is closed."""
  body = json.dumps(message).encode()
  connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket) -> dict[str, Any] | None:
  """The next object; None at the end of the connection. Raises OSError."""
  head = _receive_exactly(connection, _LENGTH.size)
  body = head and _receive_exactly(connection, _LENGTH.unpack(head)[0])
  return json.loads(body) if body else None


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
  """`size` bytes; none if the connection ends before."""
  parts = bytearray()
  while len(parts) < size:
    part = connection.recv(size - len(parts))
    if not part:
      return b""
    parts += part
  return bytes(parts)
