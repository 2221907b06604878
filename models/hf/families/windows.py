"""The fields of a config.json that limit a layer's attention to a window."""

from collections.abc import Callable, Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models import errors
from reft_jax.models.hf.families import kinds

FIELDS = {
  "sliding_window": kinds.SIZE.field(4096, nullable=True),
  "layer_types": kinds.TEXTS,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def read(
  fields: Mapping[str, Any], slides: Callable[[int], bool], *, used: bool = True
) -> tuple[int, ...]:
  """ModelConfig.windows of a config.json.

  Args:
    fields: the config.json, with a family's defaults.
    slides: whether layer l, from 0, has a window if `layer_types` is missing,
      as in checkpoints of older versions.
    used: False: no layer has a window. Most files of some families give its
      size and switch it off.

  Raises:
    UnsupportedModelError: a layer has another type of attention.
  """
  listed = fields.get("layer_types")
  if listed is None:
    layers = range(fields["num_hidden_layers"])
    listed = [SLIDING if slides(layer) else FULL for layer in layers]
  others = set(listed) - {SLIDING, FULL}
  if others:
    raise errors.UnsupportedModelError(
      f"layer_types has {sorted(others)[0]!r}, which is not implemented; only "
      f"{FULL!r} and {SLIDING!r} are."
    )
  window = fields["sliding_window"]
  if window is None or not used or SLIDING not in listed:
    return ()
  return tuple(window if each == SLIDING else 0 for each in listed)


def write(config: configs.ModelConfig) -> dict[str, Any]:
  """The fields that `read` reads."""
  windows = config.windows or (0,) * config.layers
  return {
    "sliding_window": max(windows) or None,
    "layer_types": [SLIDING if each else FULL for each in windows],
  }
