"""HTML pages that a browser opens from disk: one file each, without a server.

A page is a template of `templates/` with its data, as compressed JSON in
base64: no character of it has a meaning in HTML, and scripts show the data as
text. So a model's text never becomes markup, and the page may not use the
network.
"""

import base64
import json
import pathlib
import re
import zlib
from typing import Any

TEMPLATES = pathlib.Path(__file__).resolve().parents[1] / "templates"
_MARK = re.compile(r"\{\{([a-z.]+)\}\}")


def render(template: str, data: Any) -> str:
  """Fills `templates/TEMPLATE.html`.

  In a template, `{{data}}` is replaced by the data, which `readData` of page.js
  unpacks, and `{{page.css}}` by that file of the same folder.

  Args:
    template: the template's name, such as "report".
    data: values that fit into JSON.

  Raises:
    ValueError: a number is nan or inf.
  """
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  packed = base64.b64encode(zlib.compress(text.encode())).decode()
  page = _read(f"{template}.html")
  return _MARK.sub(lambda m: packed if m[1] == "data" else _read(m[1]), page)


def _read(name: str) -> str:
  return (TEMPLATES / name).read_text(encoding="utf-8")
