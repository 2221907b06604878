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


def read(
  fields: Mapping[str, Any],
  *,
  max_positions: int,
  head_size: int,
  theta: float = 10000.0,
  share: float = 1.0,
  renamed: Mapping[str, str] | None = None,
) -> configs.RopeConfig:
  """The RopeConfig of a config.json.

  Args:
    fields: the config.json, or those of its fields that describe one rope.
    max_positions: the model's context.
    head_size: H.
    theta: the family's default base.
    share: the share of a head's coordinates that the family rotates by default.
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

  def need(name: str) -> Any:
    if name not in rope:
      raise errors.UnsupportedModelError(
        f"rope type {kind!r} needs the field {name!r}."
      )
    return rope[name]

  either = fields | rope
  original = (
    fields.get("original_max_position_embeddings")
    or rope.get("original_max_position_embeddings")
    or max_positions
  )
  numbers: dict[str, Any] = {}
  match kind:
    case "linear" | "dynamic":
      numbers = {"factor": need("factor")}
    case "llama3":
      numbers = {
        "factor": need("factor"),
        "original_max_positions": original,
        "low_freq_factor": need("low_freq_factor"),
        "high_freq_factor": need("high_freq_factor"),
      }
    case "yarn":
      factor = rope.get("factor") or max_positions / original
      numbers = {
        "factor": factor,
        "original_max_positions": original,
        "attention_factor": _yarn_attention_factor(rope, factor),
        "beta_fast": rope.get("beta_fast") or 32.0,
        "beta_slow": rope.get("beta_slow") or 1.0,
        "truncate": rope.get("truncate", True),
      }
    case "longrope":
      factor = rope.get("factor") or max_positions / original
      numbers = {
        "factor": factor,
        "original_max_positions": original,
        "attention_factor": _longrope_attention_factor(rope, factor, original),
        "short_factor": tuple(need("short_factor")),
        "long_factor": tuple(need("long_factor")),
      }
  share = either.get("partial_rotary_factor", share)
  theta = either.get("rope_theta", theta)
  size = None if share == 1.0 else int(head_size * share)
  return configs.RopeConfig(kind=kind, theta=theta, size=size, **numbers)


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


def write_parameters(
  rope: configs.RopeConfig, head_size: int
) -> dict[str, Any]:
  """The `rope_parameters` of a config.json."""
  fields: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
  if rope.size is not None:
    fields["partial_rotary_factor"] = rope.size / head_size
  if rope.kind != "default":
    fields["factor"] = rope.factor
  if rope.kind in ("llama3", "yarn", "longrope"):
    fields["original_max_position_embeddings"] = rope.original_max_positions
  if rope.kind == "llama3":
    fields["low_freq_factor"] = rope.low_freq_factor
    fields["high_freq_factor"] = rope.high_freq_factor
  if rope.kind in ("yarn", "longrope"):
    fields["attention_factor"] = rope.attention_factor
  if rope.kind == "yarn":
    fields["beta_fast"] = rope.beta_fast
    fields["beta_slow"] = rope.beta_slow
    fields["truncate"] = rope.truncate
  if rope.kind == "longrope":
    fields["short_factor"] = list(rope.short_factor)
    fields["long_factor"] = list(rope.long_factor)
  return fields


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
  """As given, or 0.1 m ln(factor) + 1, or a ratio of two such (DeepSeek)."""
  if "attention_factor" in rope:
    return rope["attention_factor"]

  def scale(m: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

  if rope.get("mscale") and rope.get("mscale_all_dim"):
    return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
  return scale(1.0)


def _longrope_attention_factor(
  rope: Mapping[str, Any], factor: float, original: int
) -> float:
  """As given; or sqrt(1 + ln(factor) / ln(original context))."""
  if "attention_factor" in rope:
    return rope["attention_factor"]
  if factor <= 1:
    return 1.0
  return math.sqrt(1 + math.log(factor) / math.log(original))
