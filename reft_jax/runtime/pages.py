"""Pages that a browser opens from disk: one file each, no network, no server.

A page is a template of `templates/` and its data. The data travel as
compressed JSON in base64, which holds no character that means something to
HTML; scripts unpack them and show them as text. What a model wrote thus never
becomes markup, and a page without network could not tell anybody anyway.
"""

import base64
import json
import pathlib
import re
import zlib
from typing import Any

_TEMPLATES = pathlib.Path(__file__).resolve().parents[1] / "templates"
_MARK = re.compile(r"\{\{([a-z.]+)\}\}")


def render(template: str, data: Any) -> str:
  """The page of `templates/TEMPLATE.html` with these data.

  In a template `{{data}}` stands for the data, which `readData` of page.js
  unpacks, and `{{page.css}}` for that file of the same folder.

  Args:
    template: the template's name, such as "report".
    data: what JSON can hold; nan and inf it cannot.

  Raises:
    ValueError: a number that JSON cannot hold.
  """
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  packed = base64.b64encode(zlib.compress(text.encode())).decode()

  def fill(mark: re.Match[str]) -> str:
    name = mark[1]
    return packed if name == "data" else _read(name)

  return _MARK.sub(fill, _read(f"{template}.html"))


def _read(name: str) -> str:
  return (_TEMPLATES / name).read_text(encoding="utf-8")
