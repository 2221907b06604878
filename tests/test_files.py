import pytest

from reft_jax import files


def test_replaces_a_file_and_leaves_no_other(tmp_path):
  path = tmp_path / "summary.json"
  files.replace(path, "old: é\n")
  files.replace(str(path), "new\n")
  assert path.read_bytes() == b"new\n"
  assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_with_its_line_ends(tmp_path):
  files.replace(tmp_path / "a", "é\r\n")
  assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\r\n"


def test_pieces_can_come_from_the_file_itself(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b"1\n2\n3\n")
  with path.open("rb") as old:
    files.replace(path, (line for line in old if line != b"2\n"))
  assert path.read_bytes() == b"1\n3\n"


def test_a_failure_half_way_keeps_the_old_content(tmp_path):
  path = tmp_path / "summary.json"
  path.write_text("old")

  def pieces():
    yield b"ne"
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    files.replace(path, pieces())
  assert path.read_text() == "old"


def test_a_torn_file_beside_it_is_in_nobodys_way(tmp_path):
  path = tmp_path / "summary.json"
  (tmp_path / "summary.json.new").write_text("much longer, and torn")
  files.replace(path, "new")
  assert path.read_text() == "new"
  assert list(tmp_path.iterdir()) == [path]


def test_without_its_folder_nothing_is_written(tmp_path):
  with pytest.raises(OSError):
    files.replace(tmp_path / "none" / "a", "text")


def test_packaged_folders_lie_in_launch_or_once_installed_in_the_package(
  root, tmp_path, monkeypatch
):
  assert files.packaged("suites") == root / "launch" / "suites"
  (tmp_path / "suites").mkdir()
  monkeypatch.setattr(files, "_PACKAGE", tmp_path)
  assert files.packaged("suites") == tmp_path / "suites"
