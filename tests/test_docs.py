"""What the pages say of the repository is true: its folders, its links."""

import ast
import pathlib
import re
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ("models", "reft_jax")


def packages() -> dict[str, str]:
  """Every source folder, and the first sentence of what it says it holds."""
  found = {}
  for source in SOURCES:
    for init in (ROOT / source).rglob("__init__.py"):
      text = ast.get_docstring(ast.parse(init.read_text("utf-8"))) or ""
      folder = init.parent.relative_to(ROOT).as_posix()
      found[folder] = text.partition(".")[0]
  return found


def mapped() -> dict[str, str]:
  """The folders of README's map, with what it says of each."""
  section = (
    (ROOT / "README.md").read_text("utf-8").split("## The source tree")[1]
  )
  found, parents = {}, []
  for line in section.split("```")[1].strip().splitlines():
    name, text = re.fullmatch(r"\s*(\S+)/\s+(.+)", line).groups()
    parents = parents[: (len(line) - len(line.lstrip())) // 2]
    parents.append(name)
    found["/".join(parents)] = text
  return found


def test_the_map_in_the_readme_is_the_tree():
  folders = mapped()
  assert not [name for name in folders if not (ROOT / name).is_dir()]
  inside = {name for name in folders if name.split("/")[0] in SOURCES}
  assert inside - {"reft_jax/templates"} == packages().keys()


def test_each_folder_says_in_one_sentence_what_lives_there():
  assert not [name for name, text in packages().items() if not text]


def test_links_between_pages_lead_somewhere():
  def anchors(page: pathlib.Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.replace(" ", "-") for head in plain}

  broken = []
  pages = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("launch/*.md"),
  ]
  for page in pages:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
      path, _, anchor = link.partition("#")
      if "://" in link:
        continue
      target = (page.parent / path).resolve() if path else page
      if not target.exists() or (
        anchor and target.suffix == ".md" and anchor not in anchors(target)
      ):
        broken.append(f"{page.relative_to(ROOT)}: {link}")
  assert not broken


def test_the_citation_names_the_version():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
  assert citation["version"] == project["project"]["version"]
