"""Numbers as people write them: as answers, in options and in reasoning.

Nothing here raises, whatever the text.
"""

import re

# Past this, doubles no longer tell neighbouring hundredths apart.
LARGEST = 1e13
_TOLERANCE = 1e-2
_RELATIVE_TOLERANCE = 0.05

# 1,000 or 1000, either with decimals, or .5
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"

_PLAIN = re.compile(
  rf"""(?P<sign>[+-]?)
      (?:\$\s?)?                         # A leading dollar
      (?P<number>{_DECIMAL})
      (?P<exponent>(?:[eE][+-]?[0-9]+)?)
      (?:\s?%)?                          # A percentage is read as its number
      \.?                                # A full stop""",
  re.VERBOSE,
)

_CURRENCY = r"(?:(?:rs|re|s|\$|£|€)\s?\.?\s*)?"
_AMOUNT = rf"""
  (?:(?P<whole>[0-9]+)\s(?:\+\s)?        # 6 2 / 3 or 6 + ( 2 / 3 )
     (?=\(?\s?[0-9.,]+\s?/\s?[0-9]))?
  (?:\(\s?)?(?P<above>{_DECIMAL})
  (?:\s?/\s?(?P<below>{_DECIMAL}))?(?:\s?\))?"""
# A longer word counts as a unit (`apples`) unless it says otherwise; a shorter
# one must be known, or it would be an unknown (`3 ab`) or a clock's (`7 pm`).
_UNIT = r"""(?:
  [%°$.]|/(?=\s?[a-z])
  |(?!(?:and|than|hundred|thousand|million|billion|lakhs?|crores?|dozens?
         |squared|cubed|sqrt|roots?|pie|noon|midnight)\b)
   (?:[a-z]{3,}|degrees?\s[cf]|[ckm]?m|[km]?g|m?l|s|h|hr|yr|ft|in|lb|cc|rs
      |sq|cu|st|nd|rd|th)\b)"""
_LENGTH = r"(?:[ckm]?m|ft|feet|inch(?:es)?|met(?:er|re)s?|units?)"
_MEASURED = re.compile(
  rf"""(?:[a-z]\s?[).=]\s)?              # `b ) 5`, `q = 5`, but also `s . 5`
      (?P<sign>[+-]?)\s?{_CURRENCY}{_AMOUNT}
      (?:\s?{_UNIT})*                    # `km / hr`
      (?:\s?{_LENGTH}\s?(?:\^?\s?[23]|[²³]))?  # `cm 2`
      (?:\s?\.)?""",
  re.VERBOSE,
)
_RESULT = re.compile(
  rf"[=≈]\s*(?P<sign>[+-]?)\s?{_CURRENCY}{_AMOUNT}", re.VERBOSE
)
_ANY = re.compile(rf"(?P<sign>(?:(?<![^\s(])[+-])?){_AMOUNT}", re.VERBOSE)
_MINUS = str.maketrans("−–", "--")


def close(value: float, truth: float) -> bool:
  """Whether they are within 0.01, and within 5 % of the truth.

  Deviation: the released code has no second bound, so 0 passes for 0.005.
  """
  tolerance = min(_TOLERANCE, _RELATIVE_TOLERANCE * abs(truth))
  return abs(value - truth) <= tolerance


def plain(text: str) -> float | None:
  """A finite decimal number of sane size, all by itself: `-1,000.5`, `$5.`."""
  match = _PLAIN.fullmatch(text)
  if not match:
    return None
  digits = match["sign"] + match["number"] + match["exponent"]
  return sane(float(digits.replace(",", "")))


def measured(text: str) -> float | None:
  """The single number of an option: `rs . 1,250`, `6 2 / 3 days`, `11 / 30`.

  None for anything else: no number, two of them (`4 , 3`, `1 : 2`), unknowns
  (`3 ab / 11`), roots, and times of the day (`7 pm`).
  """
  match = _MEASURED.fullmatch(text.lower().translate(_MINUS).strip())
  return _amount(match) if match else None


def computed(text: str) -> float | None:
  """The number a reasoning ends with: the last right after an `=`.

  Without any, the last number of all.
  """
  text = text.lower().translate(_MINUS)
  found = list(_RESULT.finditer(text)) or list(_ANY.finditer(text))
  return _amount(found[-1]) if found else None


def _amount(match: re.Match) -> float | None:
  whole, above, below = (
    float((match[name] or default).replace(",", ""))
    for name, default in (("whole", "0"), ("above", "0"), ("below", "1"))
  )
  if below == 0:
    return None
  value = whole + above / below
  return sane(-value if match["sign"] == "-" else value)


def sane(value: float) -> float | None:
  """The value, or None if it is nan, infinite or absurdly large."""
  return value if abs(value) <= LARGEST else None
