"""Reading numbers in answers, in options and in reasoning.

No text makes these functions raise.
"""

import re

# Above this, float64 cannot tell neighbouring hundredths apart.
LARGEST = 1e13
_TOLERANCE = 1e-2
_RELATIVE_TOLERANCE = 0.05
# Rounding error around 0: 0.3 - 0.1 * 3 is -5.6e-17.
_LEAST_TOLERANCE = 1e-6

# 1,000 or 1000, either with decimals, or .5
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"

_PLAIN = re.compile(
  rf"""(?P<bold>\*\*)?
      (?P<money>[$£€]\s?)?(?P<sign>[+-]?)\s?(?(money)|(?:[$£€]\s?)?)
      (?P<number>{_DECIMAL})
      (?P<exponent>(?:[eE][+-]?[0-9]+)?)
      (?:\s?[%$£€])?                     # A percentage is read as its number
      [.,]?(?(bold)\*\*[.,]?)""",
  re.VERBOSE,
)

_CURRENCY = r"(?:(?:rs|re|s|\$|£|€)\s?\.?\s*)?"
_AMOUNT = rf"""
  (?:(?P<whole>[0-9]+)\s(?:\+\s)?        # 6 2 / 3 or 6 + ( 2 / 3 )
     (?=\(?\s?[0-9.,]+\s?/\s?[0-9]))?
  (?:\(\s?)?(?P<above>{_DECIMAL})
  (?:\s?/\s?(?P<below>{_DECIMAL}))?(?:\s?\))?"""
# Any longer word is taken for a unit (`apples`), except these. Short words must
# be known units: others are unknowns (`3 ab`) or times of the day (`7 pm`).
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

# What may follow a result. Not a result are the numbers in `38 * 2`, `38 x`,
# `2 ^ 5`, `5 !`, `30 , 10`, `3 : 4`, `20 % of 50` or `5 dollars - 2 dollars`.
_ALONE = r"""
  (?:[ ]?[%°$£€])?(?:[ ]?\))?
  (?!(?:[ ][a-z]+){1,3}[ ]?[-+*/×÷][ ]?[$£€(]?[ ]?[0-9])
  (?![ ]percent[ ]of\b)
  (?=[ ]?(?:$|[=≈;])
    |\.(?=\s|$)|[ ]\.(?![ ]?[0-9])|[ ]?[,:](?![ ]?[0-9(+-])
    |[ ](?!times[ ](?:[0-9($]|[a-z]\b))
        (?!(?:plus|minus|over|less|divided|multiplied|squared|cubed|hundred
             |thousand|million|billion|lakhs?|crores?|dozens?|noon|midnight)\b)
        (?:[a-z]{3,}|[ckm]?m|[km]?g|m?l|s|h|hr|yr|ft|lb|cc|rs|sq|cu
           |is|so|in|at|on|as|we|he|it|if)\b)"""
_SIGNED = rf"(?P<sign>[+-]?)[ ]?{_CURRENCY}{_AMOUNT}"
_FLAGS = re.VERBOSE | re.MULTILINE
# Places of a result in reasoning, the clearest first.
_RESULTS = (
  # After an equals sign: `19 * 2 = 38`
  re.compile(rf"(?:(?<![<>!])=|≈)[ ]?{_SIGNED}{_ALONE}", _FLAGS),
  # Before one, if nothing else does: `so 38 = 19 * 2`
  re.compile(
    rf"""(?:^|[.,;:][ ]|\b(?:so|then|thus|hence|therefore|get|have|is)[ ])
        {_SIGNED}[ ]?[=≈]""",
    _FLAGS,
  ),
  # In words: `let x = 2 y , which makes it 38`
  re.compile(
    rf"\b(?:is|are|be|it|get|have|makes?|gives?)[ ]{_SIGNED}{_ALONE}", _FLAGS
  ),
)
_ANY = re.compile(rf"(?P<sign>(?:(?<![^\s(])[+-])?){_AMOUNT}", re.VERBOSE)
_SPACED = re.compile("(?<![0-9.,])[0-9]{1,3}(?:(?: , |,)[0-9]{3})+(?![0-9])")
_MINUS = str.maketrans("−–", "--")


def close(value: float, truth: float) -> bool:
  """Whether a value is within 0.01 and within 5 % (or 1e-6) of the truth.

  Deviation: the released code has no relative bound, so it accepts 0 for 0.005.
  """
  relative = max(_RELATIVE_TOLERANCE * abs(truth), _LEAST_TOLERANCE)
  return abs(value - truth) <= min(_TOLERANCE, relative)


def plain(text: str) -> float | None:
  """A text that is one finite decimal number: `-1,000.5`, `$5.`."""
  match = _PLAIN.fullmatch(text.translate(_MINUS))
  if not match:
    return None
  digits = match["sign"] + match["number"] + match["exponent"]
  return sane(float(digits.replace(",", "")))


def measured(text: str) -> float | None:
  """The single number of an option: `rs . 1,250`, `6 2 / 3 days`, `11 / 30`.

  None for all else: no number, two of them (`4 , 3`, `1 : 2`), unknowns
  (`3 ab / 11`), roots, and times of the day (`7 pm`).
  """
  match = _MEASURED.fullmatch(text.lower().translate(_MINUS).strip())
  return _amount(match) if match else None


def computed(text: str) -> float | None:
  """The result of a chain of thought in words.

  The last number alone after an `=`, or else before one, or else after `is`,
  `makes` and the like. In a text without an `=`, the last number of all.
  """
  text = _tidy(text)
  equations = "=" in text or "≈" in text
  for pattern in _RESULTS if equations else (_ANY,):
    if found := list(pattern.finditer(text)):
      return _amount(found[-1])
  return None


def _tidy(text: str) -> str:
  r"""The text in lower case with single spaces, none within a number.

  MathQA's rationales hold `\n` for a new line, `1 , 000` and `0 . 5`.
  """
  text = text.lower().translate(_MINUS).replace("\\n", "\n")
  text = re.sub(r"[^\S\n]+", " ", text)
  text = re.sub(r"(?<![0-9.,])0 \. (?=[0-9])", "0.", text)
  return _SPACED.sub(lambda match: match[0].replace(" ", ""), text)


def _amount(match: re.Match[str]) -> float | None:
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
