"""Files that are whole or not there; folders that come with the package."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

_PACKAGE = pathlib.Path(__file__).resolve().parent


def replace(
  path: str | os.PathLike[str], content: str | Iterable[bytes]
) -> None:
  """Gives a file new content in one move: it holds the old or the new.

  The new content is written beside it, to `NAME.new`, and brought to the disk
  first, so that even a machine that goes down leaves no file half written.

  Args:
    path: the file, whose folder exists.
    content: text, written as UTF-8, or pieces of bytes; these may be read from
      the old file, which is there until the end.

  Raises:
    OSError: it cannot be written; the old file, if any, is as it was.
  """
  path = pathlib.Path(path)
  new = path.with_name(f"{path.name}.new")
  with new.open("wb") as file:
    file.writelines([content.encode()] if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())
  new.replace(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """What a file of JSON says by name; nothing where it cannot be read."""
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError):
    return {}


def packaged(folder: str) -> pathlib.Path:
  """A folder of `launch`, which lies inside the package once installed."""
  installed = _PACKAGE / folder
  return (
    installed if installed.is_dir() else _PACKAGE.parent / "launch" / folder
  )


def expand_user(path: str) -> pathlib.Path:
  """A path of a setting; ~ is home, which shells leave alone in `key=~/x`."""
  return pathlib.Path(os.path.expanduser(path))
