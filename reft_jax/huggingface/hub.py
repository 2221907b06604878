"""Models by name: a folder, or `owner/name[@revision]` on the Hugging Face hub.

If there is a folder `runs`, `runs/mine` is a folder too, and `runs/mine@main`
is on the hub.

A model in the hub's cache is used without network. Newer revisions are not
looked for: a resumed run has the model that it started from.
"""

import functools
import json
import pathlib
import re

from reft_jax import errors, files

SITE = "huggingface.co"

_ID = re.compile(
  r"(?P<repo>[a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*)(?:@(?P<revision>[^@\s]+))?"
)
# The files to download: a repository may also have weights in other formats.
_DESCRIPTION = (
  *("config.json", "generation_config.json"),
  *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
  *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
  *("chat_template.jinja", "chat_template.json"),
)
# Weights in one file, or in shards with an index that lists them.
_SAFETENSORS = (
  *("model.safetensors", "model-*.safetensors"),
  "model.safetensors.index.json",
)
_PICKLED = (
  *("pytorch_model.bin", "pytorch_model-*.bin"),
  "pytorch_model.bin.index.json",
)


def is_id(name: str) -> bool:
  """Whether a name is one of the hub's and not of a local file or folder."""
  match, path = _ID.fullmatch(name), files.expand_user(name)
  if match is None or path.exists():
    return False
  return match["revision"] is not None or not path.parent.exists()


def page(name: str) -> str:
  """Where an id's model is published, for messages."""
  repo, revision = _parts(name)
  return f"{SITE}/{repo}" + (f" at {revision}" if revision else "")


def find(name: str) -> pathlib.Path | None:
  """The folder of a model that is complete on this machine; None without one.

  Uses no network, and does not read weights.
  """
  folder = files.expand_user(name)
  if folder.is_dir():
    return folder if (folder / "config.json").is_file() else None
  return _cached(*_parts(name)) if is_id(name) else None


def folder(name: str, setting: str = "") -> pathlib.Path:
  """The folder of a model, downloaded if it is not on this machine.

  Args:
    name: a folder, or `owner/name[@revision]`; a folder wins.
    setting: the setting that has the name, for errors.

  Raises:
    UserError: there is no such model, or it cannot be downloaded.
  """
  path = files.expand_user(name)
  if path.is_dir():
    return path
  label = f"{setting}={name}" if setting else name
  if not is_id(name):
    raise errors.UserError(
      f"{label}: neither a folder nor a name on the hub (owner/name or "
      "owner/name@revision)."
    )
  repo, revision = _parts(name)
  try:
    found = _cached(repo, revision) or _downloaded(repo, revision)
  except Exception as error:  # The hub's client raises errors of many kinds.
    reason = _reason(error, repo, revision)
    raise errors.UserError(f"{label}: {reason}") from error
  if missing := _missing_file(found):
    raise errors.UserError(
      f"{label}: {SITE}/{repo} holds no {missing}; it must be a model in the "
      "Hugging Face layout."
    )
  return found


def _parts(name: str) -> tuple[str, str | None]:
  """An id's repository and revision."""
  repo, _, revision = name.partition("@")
  return repo, revision or None


def _cached(repo: str, revision: str | None) -> pathlib.Path | None:
  """The complete snapshot in the hub's cache, if there is one."""
  try:
    found = _snapshot(repo, revision, local_files_only=True)
  except (OSError, ValueError):  # Not there, or a name that the hub refuses.
    return None
  return None if _missing_file(found) else found


# Cached: a process has one model of a name, even if the hub's changes.
@functools.cache
def _downloaded(repo: str, revision: str | None) -> pathlib.Path:
  return _snapshot(repo, revision, local_files_only=False)


def _snapshot(
  repo: str, revision: str | None, *, local_files_only: bool
) -> pathlib.Path:
  """The files of a repository; pickled weights only if there are no others."""
  import huggingface_hub

  for weights in (_SAFETENSORS, _PICKLED):
    found = pathlib.Path(
      huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=[*_DESCRIPTION, *weights],
        local_files_only=local_files_only,
      )
    )
    if any(found.glob("model*.safetensors*")):
      break
  return found


def _missing_file(folder: pathlib.Path) -> str | None:
  """The first file that is missing in a model's folder."""
  if not (folder / "config.json").is_file():
    return "config.json"
  for weights in ("model.safetensors", "pytorch_model.bin"):
    if (folder / weights).is_file():
      return None
    index = folder / f"{weights}.index.json"
    if index.is_file():
      try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
      except (ValueError, KeyError, TypeError, AttributeError):
        return None  # Reading the weights reports the broken index.
      missing = (each for each in shards if not (folder / each).is_file())
      return min(missing, default=None)
  return "model.safetensors"


def _reason(error: Exception, repo: str, revision: str | None) -> str:
  """Explains an error of the hub's client."""
  from huggingface_hub import constants
  from huggingface_hub import errors as hub_errors

  match error:
    case hub_errors.GatedRepoError():
      return (
        "access to it is restricted; accept its licence at "
        f"https://{SITE}/{repo} and log in with `hf auth login` "
        "(huggingface-cli login)."
      )
    case hub_errors.RepositoryNotFoundError():
      return (
        f"neither a folder here nor a model on {SITE}; check the name or, if "
        "it is private, log in with `hf auth login` (huggingface-cli login)."
      )
    case hub_errors.RevisionNotFoundError():
      return f"{SITE}/{repo} has no revision {revision or 'main'}."
    case hub_errors.LocalEntryNotFoundError() | ConnectionError():
      offline = constants.HF_HUB_OFFLINE
      cause = "HF_HUB_OFFLINE is set" if offline else "no connection"
      return (
        f"no folder here, and {SITE} cannot be reached ({cause}); download "
        f"it where there is a network (hf download {repo}), or give a folder."
      )
    case hub_errors.HFValidationError():
      return "neither a folder here nor a name that the hub allows."
  text = str(error).strip().partition("\n")[0]
  return f"it cannot be downloaded ({type(error).__name__}: {text})."
