"""Telling the weights of one model folder from those of another."""

import hashlib
import pathlib

_PIECE, _PIECES = 2**20, 64


def of_weights(folder: pathlib.Path) -> str:
  """A fingerprint of a folder's weights, 16 hex digits.

  Of Hugging Face folders config.json and the weights are read, of checkpoints
  all files; of a file of more than 64 MiB only 64 pieces of 1 MiB in equal
  distances, which two models that were trained do not share.
  """
  if (folder / "config.json").is_file():
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    files += folder.glob("pytorch_model*.bin")
  else:
    files = [path for path in folder.rglob("*") if path.is_file()]
  digest = hashlib.sha256()
  for path in sorted(files):
    size = path.stat().st_size
    digest.update(f"{path.relative_to(folder)} {size}".encode())
    with path.open("rb") as file:
      for start in range(0, size, max(_PIECE, size // _PIECES)):
        file.seek(start)
        digest.update(file.read(_PIECE))
  return digest.hexdigest()[:16]
