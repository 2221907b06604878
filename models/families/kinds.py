"""What a field of a config.json may hold."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from reft_jax.models import errors


class Kind(NamedTuple):
  """The values a field may have, in words and as a test."""

  text: str
  holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
  # Not by isinstance: to Python true is an int.
  return type(value) in (int, float) and abs(value) < math.inf


SIZE = Kind("a whole number above 0", lambda x: type(x) is int and x > 0)
NUMBER = Kind("a number, 0 or more", lambda x: _is_number(x) and x >= 0)
POSITIVE = Kind("a number above 0", lambda x: _is_number(x) and x > 0)
NUMBERS = Kind(
  "a list of numbers above 0",
  lambda x: isinstance(x, list) and all(map(POSITIVE.holds, x)),
)
FLAG = Kind("true or false", lambda x: isinstance(x, bool))
TEXT = Kind("text", lambda x: isinstance(x, str))
GROUP = Kind("an object with fields", lambda x: isinstance(x, dict))


def checked(
  fields: Mapping[str, Any], kinds: Mapping[str, Kind], group: str = ""
) -> dict[str, Any]:
  """The fields that are not null, which says as much as leaving them out.

  Args:
    fields: a config.json, or an object within it.
    kinds: what the fields that matter may hold; others are not looked at.
    group: the field that holds the object, for the error.

  Raises:
    UnsupportedModelError: names a field that holds something else.
  """
  present = {name: x for name, x in fields.items() if x is not None}
  for name, kind in kinds.items():
    if name in present and not kind.holds(present[name]):
      full_name = f"{group}.{name}" if group else name
      raise errors.UnsupportedModelError(
        f"the field {full_name!r} is {present[name]!r:.40} but must be "
        f"{kind.text}."
      )
  return present
