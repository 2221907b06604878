"""Pages: what goes in comes out, and nothing of it is markup."""

import base64
import html.parser
import json
import re
import shutil
import subprocess
import zlib

import hypothesis
import pytest
from hypothesis import strategies as st

from reft_jax.runtime import pages

HOSTILE = "</script><img src=x onerror=alert(1)> {{data}} <!-- \u2028 \ud800 \0"
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=20,
)
TEMPLATES = sorted(path.stem for path in pages.TEMPLATES.glob("*.html"))


def packed(page: str) -> str:
  return re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', page)[1]


def unpacked(page: str):
  return json.loads(zlib.decompress(base64.b64decode(packed(page))))


class Tags(html.parser.HTMLParser):
  """The tags of a page, and all that it would load."""

  def __init__(self, page: str):
    super().__init__()
    self.opened, self.loaded = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.opened.append(tag)
    self.loaded += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def node() -> str:
  return shutil.which("node") or pytest.skip("needs node")


@hypothesis.given(JSON)
def test_data_come_out_as_they_went_in(data):
  page = pages.render("report", data)
  assert unpacked(page) == data
  assert pages.render("report", data) == page


@pytest.mark.parametrize("template", TEMPLATES)
def test_data_are_never_markup(template):
  empty = Tags(pages.render(template, {}))
  page = pages.render(template, {HOSTILE: [HOSTILE]})
  assert Tags(page).opened == empty.opened
  assert unpacked(page) == {HOSTILE: [HOSTILE]}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_page_needs_nothing_else(template):
  page = pages.render(template, {})
  assert Tags(page).loaded == []
  assert "default-src 'none'" in page
  assert not re.search(r"\{\{|https?:|@import|url\(|innerHTML|eval\(", page)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks(number):
  with pytest.raises(ValueError):
    pages.render("report", [number])


def test_a_browser_unpacks_the_data(node):
  data = {HOSTILE: ["äöü 你好 🙂", 0.1, None, True]}
  page = pages.render("report", data)
  text = packed(page)
  script = (
    (pages.TEMPLATES / "page.js").read_text()
    + f"document = {{getElementById: () => ({{textContent: {text!r}}})}};"
    + "readData().then((data) => console.log(JSON.stringify(data)));"
  )
  # Not strict: a browser has a `document`, which node is given here.
  script = script.replace('"use strict";', "var document;", 1)
  done = subprocess.run(
    [node, "-"], input=script, capture_output=True, text=True, check=True
  )
  assert json.loads(done.stdout) == data


@pytest.mark.parametrize("template", TEMPLATES)
def test_scripts_can_be_read(node, template, tmp_path):
  page = pages.render(template, {})
  script = tmp_path / "script.js"
  script.write_text(re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1])
  subprocess.run([node, "--check", script], check=True)
