"""Manifests: what must be alike for two runs, or two files, to be the same.

A manifest is a JSON file of facts beside what it describes: a run's settings
and the fingerprints of its inputs, how stored samples were sampled, what a
cached base model was trained from. Work is resumed only where manifests agree.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reft_jax import errors, files
from reft_jax.config import loading

# Raise it when files of an earlier version can no longer be resumed from.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Facts by name, as JSON knows them.

  Attributes:
    kind: what is described, such as "run".
    facts: what must be alike.
    notes: what is recorded beside them and may differ.
  """

  kind: str
  facts: Mapping[str, Any]
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    # As a file gives them back: tuples are lists.
    for name in ("facts", "notes"):
      plain = json.loads(json.dumps(dict(getattr(self, name))))
      object.__setattr__(self, name, plain)

  @property
  def fingerprint(self) -> str:
    """16 hex digits that differ where any fact does."""
    content = [FORMAT, self.kind, self.facts]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def changes(self, new: "Manifest") -> list[str]:
    """What differs in another manifest: `name: old -> new` for each fact."""
    old, show = self.facts, loading.show
    return [
      f"{name}: {show(old.get(name))} -> {show(new.facts.get(name))}"
      for name in {**old, **new.facts}
      if old.get(name) != new.facts.get(name)
    ]

  def write(self, path: pathlib.Path) -> None:
    """Replaces the file in one move; raises OSError if it cannot."""
    content = {"format": FORMAT, **dataclasses.asdict(self)}
    files.replace(path, json.dumps(content, indent=2) + "\n")


def read(path: pathlib.Path, remedy: str) -> Manifest | None:
  """The manifest of a file; None where there is none that can be read.

  Raises UserError, which ends with the `remedy`, if another version of the
  program wrote it.
  """
  content = files.read_json(path)
  if not content:
    return None
  if content.get("format") != FORMAT:
    raise errors.UserError(
      f"{path} was written by another version of reft_jax (format"
      f" {content.get('format', 0)}, not {FORMAT}); {remedy}"
    )
  try:
    return Manifest(content["kind"], content["facts"], content["notes"])
  except (KeyError, TypeError):
    return None
