"""The rope fields of a config.json, in both of their styles.

transformers 5 writes one object, `rope_parameters`. Older versions wrote
`rope_scaling` and, beside it, `rope_theta`; the rope's kind may be called
`type`. Both styles are read, and both are written.
"""

import math
from collections.abc import Mapping
from typing import Any

from reft_jax.models import config as configs
from reft_jax.models import errors
from reft_jax.models.hf.families import kinds

# The same names may be in a config.json and in its object for the rope.
KINDS = {
  "rope_parameters": kinds.GROUP,
  "rope_scaling": kinds.GROUP,
  "rope_type": kinds.TEXT,
  "type": kinds.TEXT,
  "rope_theta": kinds.POSITIVE,
  "partial_rotary_factor": kinds.POSITIVE,
  "factor": kinds.POSITIVE,
  "original_max_position_embeddings": kinds.SIZE,
  "low_freq_factor": kinds.POSITIVE,
  "high_freq_factor": kinds.POSITIVE,
  "attention_factor": kinds.POSITIVE,
  "mscale": kinds.NUMBER,
  "mscale_all_dim": kinds.NUMBER,
  "beta_fast": kinds.POSITIVE,
  "beta_slow": kinds.POSITIVE,
  "truncate": kinds.FLAG,
  "short_factor": kinds.NUMBERS,
  "long_factor": kinds.NUMBERS,
}


# RopeConfig's fields of each kind, beside those that all kinds have.
_SCALED = ("factor", "original_max_positions")
_OWN = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": (*_SCALED, "low_freq_factor", "high_freq_factor"),
  "yarn": (*_SCALED, "attention_factor", "beta_fast", "beta_slow", "truncate"),
  "longrope": (*_SCALED, "attention_factor", "short_factor", "long_factor"),
}
# Those that may be missing: RopeConfig has a default, or `read` works it out.
_OPTIONAL = ("beta_fast", "beta_slow", "truncate")
_ORIGINAL = "original_max_position_embeddings"


def read(
  fields: Mapping[str, Any],
  max_positions: int,
  head_size: int,
  renamed: Mapping[str, str] | None = None,
) -> configs.RopeConfig:
  """The RopeConfig of a config.json.

  Args:
    fields: the config.json, or those of its fields that describe one rope.
    max_positions: the model's context.
    head_size: H.
    renamed: this family's own names of kinds, and what we call them.

  Raises:
    UnsupportedModelError: the kind is unknown, or a field that it needs is
      missing or has a wrong value.
  """
  fields = kinds.check_fields(fields, KINDS)
  group = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
  rope = kinds.check_fields(fields.get(group, {}), KINDS, group)
  kind = rope.get("rope_type") or rope.get("type") or "default"
  kind = (renamed or {}).get(kind, kind)
  if kind not in configs.ROPE_KINDS:
    raise errors.UnsupportedModelError(
      f"rope type {kind!r} is not one of {', '.join(configs.ROPE_KINDS)}."
    )
  original = fields.get(_ORIGINAL) or rope.get(_ORIGINAL) or max_positions
  given = rope | {"original_max_positions": original}
  if kind in ("yarn", "longrope"):
    given.setdefault("factor", max_positions / original)
    if "attention_factor" not in given:
      given["attention_factor"] = _attention_factor(kind, given)
  own: dict[str, Any] = {}
  for name in _OWN[kind]:
    if name in given:
      value = given[name]
      own[name] = tuple(value) if isinstance(value, list) else value
    elif name not in _OPTIONAL:
      raise errors.UnsupportedModelError(
        f"rope type {kind!r} needs the field {name!r}."
      )
  either = fields | rope
  share = either.get("partial_rotary_factor", 1.0)
  return configs.RopeConfig(
    kind=kind,
    theta=either.get("rope_theta", 10000.0),
    size=None if share == 1.0 else int(head_size * share),
    **own,
  )


def _attention_factor(kind: str, rope: Mapping[str, Any]) -> float:
  """What transformers computes where a config.json does not give it.

  longrope: sqrt(1 + ln(factor) / ln(original context)); yarn:
  0.1 m ln(factor) + 1, or a ratio of two such (DeepSeek).
  """
  factor = rope["factor"]
  if factor <= 1:
    return 1.0
  if kind == "longrope":
    original = rope["original_max_positions"]
    return math.sqrt(1 + math.log(factor) / math.log(original))

  def scale(m: float) -> float:
    return 0.1 * m * math.log(factor) + 1.0

  if rope.get("mscale") and rope.get("mscale_all_dim"):
    return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
  return scale(1.0)


def of(config: configs.ModelConfig) -> configs.RopeConfig:
  """The rope of a family whose models all have one."""
  if config.rope is None:
    raise ValueError(f"{config.family} models need a rope")
  return config.rope


def write(rope: configs.RopeConfig, head_size: int) -> dict[str, Any]:
  """The fields of a config.json that describe its rope, in both styles."""
  parameters = write_parameters(rope, head_size)
  fields = {"rope_parameters": parameters, "rope_theta": rope.theta}
  if "partial_rotary_factor" in parameters:
    fields["partial_rotary_factor"] = parameters["partial_rotary_factor"]
  if rope.kind != "default":
    fields["rope_scaling"] = parameters
  return fields


def write_share(
  fields: dict[str, Any], config: configs.ModelConfig
) -> dict[str, Any]:
  """Adds the share of rotated coordinates, in both styles, even if it is 1."""
  share = config.turning(of(config)) / config.head_size
  fields["partial_rotary_factor"] = share
  fields["rope_parameters"]["partial_rotary_factor"] = share
  return fields


def write_parameters(
  rope: configs.RopeConfig, head_size: int
) -> dict[str, Any]:
  """The `rope_parameters` of a config.json."""
  fields: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
  if rope.size is not None:
    fields["partial_rotary_factor"] = rope.size / head_size
  for name in _OWN[rope.kind]:
    value = getattr(rope, name)
    stored = _ORIGINAL if name == "original_max_positions" else name
    fields[stored] = list(value) if isinstance(value, tuple) else value
  return fields
