"""The fields of a config.json that limit a layer's attention to a window."""

from collections.abc import Callable, Mapping
from typing import Any

from reft_jax.models import errors
from reft_jax.models.hf.families import kinds

KINDS = {
  "sliding_window": kinds.nullable(kinds.SIZE),
  "layer_types": kinds.TEXTS,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"


def read(
  fields: Mapping[str, Any],
  layers: int,
  window: int | None,
  slides: Callable[[int], bool],
) -> tuple[int, ...]:
  """ModelConfig.windows of a config.json.

  Args:
    fields: the config.json.
    layers: L.
    window: the window's size; None: no layer has one.
    slides: whether layer l, from 0, has a window if `layer_types` is missing,
      as in checkpoints of older versions.

  Raises:
    UnsupportedModelError: a layer has another type of attention.
  """
  listed = fields.get("layer_types")
  if listed is None:
    listed = [_SLIDING if slides(layer) else _FULL for layer in range(layers)]
  others = set(listed) - {_SLIDING, _FULL}
  if others:
    raise errors.UnsupportedModelError(
      f"layer_types has {sorted(others)[0]!r}, which is not implemented; only "
      f"{_FULL!r} and {_SLIDING!r} are."
    )
  if window is None or _SLIDING not in listed:
    return ()
  return tuple(window if each == _SLIDING else 0 for each in listed)


def write(windows: tuple[int, ...], layers: int) -> dict[str, Any]:
  """The fields that `read` reads."""
  return {
    "sliding_window": max(windows, default=0) or None,
    "layer_types": [
      _SLIDING if each else _FULL for each in windows or (0,) * layers
    ],
  }
