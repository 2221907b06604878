"""Atomic file writes, and the folders that come with the package."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

_PACKAGE = pathlib.Path(__file__).resolve().parent


def replace(
  path: str | os.PathLike[str], content: str | Iterable[bytes]
) -> None:
  """Replaces a file's content atomically.

  The new content is first written to `NAME.new` and flushed to disk, so that a
  crash leaves either the old or the new content.

  Args:
    path: the file; its folder exists.
    content: text, written as UTF-8, or pieces of bytes; these may be read from
      the old file, which exists until the end.

  Raises:
    OSError: the file cannot be written; the old one is unchanged.
  """
  path = pathlib.Path(path)
  new = path.with_name(f"{path.name}.new")
  with new.open("wb") as file:
    file.writelines([content.encode()] if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())
  new.replace(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; empty if it cannot be read."""
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError):
    return {}


def packaged(folder: str) -> pathlib.Path:
  """A folder of `launch`; an installed package contains it."""
  installed = _PACKAGE / folder
  checkout = _PACKAGE.parent / "launch" / folder
  return installed if installed.is_dir() else checkout


def expand_user(path: str) -> pathlib.Path:
  """Expands ~ in a setting's path: shells do not expand it in `key=~/x`."""
  return pathlib.Path(os.path.expanduser(path))
