import math

import hypothesis
import pytest
from hypothesis import strategies as st

from reft_jax.tasks.answers import quantities

NOT_MEASURED = [
  # No single number
  *("none of these", "data inadequate", "can not be determined", "", "a"),
  *("30 , 10", "20,17", "1 , 000,000", "1 : 2", "3 : 4 : 5", "5 - 6"),
  *("5 or 6", "5 and 6", "12 to 1", "40 minutes 20 seconds"),
  *("5 feet 3 inches", "( 2 , 3 )"),
  # Unknowns, powers and roots
  *("3 ab / 11", "11 / 3 ab", "44 / ab", "2 x", "3 n + 1", "4 π", "6 √ 3"),
  *("√ 2", "2 ^ 5", "5 squared", "10 c 3", "5 !", "5 / 0"),
  # Times of the day, and words that scale
  *("7 pm", "10.30 am", "10 : 30", "12 noon", "2.5 million", "3 dozen"),
  "less than 5",
  # Numbers only as strict answers have them
  *("１８", "٣", "²", "1_000", "nan", "inf", "9" * 400, "1" + "0" * 14),
]


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("38", 38),
    ("27.675", 27.675),
    (".5", 0.5),
    ("10 .", 10),
    ("- 6", -6),
    ("-6", -6),
    ("− 120", -120),
    ("1,354", 1354),
    ("1,234,567.5", 1234567.5),
    # Money
    ("$ 0.40", 0.4),
    ("$ 3,375", 3375),
    ("- $ 5", -5),
    ("65500 $", 65500),
    ("rs . 937.5", 937.5),
    ("rs 2160", 2160),
    ("Rs. 440", 440),
    ("s . 280", 280),
    ("s 255", 255),
    ("re . 1", 1),
    ("£ 12", 12),
    # Shares
    ("17.4 %", 17.4),
    ("27.2 % .", 27.2),
    ("35 % increase", 35),
    ("75 percent", 75),
    # Fractions
    ("4 / 12", 1 / 3),
    ("15/8", 1.875),
    ("- 1 / 2", -0.5),
    ("7 1 / 2", 7.5),
    ("- 7 1 / 2", -7.5),
    ("6 2 / 3 days", 6 + 2 / 3),
    ("2 6 / 7 %", 2 + 6 / 7),
    ("78 + ( 4 / 7 ) %", 78 + 4 / 7),
    ("( 4 / 7 )", 4 / 7),
    ("15 / 2 minutes", 7.5),
    # Units
    ("6.7 kg .", 6.7),
    ("36 km / hr", 36),
    ("36 km/hr", 36),
    ("5 m / s", 5),
    ("$ 5 / hour", 5),
    ("40.2 degrees c", 40.2),
    ("165 °", 165),
    ("90 sq . cm", 90),
    ("324 sq m", 324),
    ("32 square inches", 32),
    ("288 cm 2", 288),
    ("868 cm ^ 2", 868),
    ("868 cm²", 868),
    ("27 m 3", 27),
    ("4 th", 4),
    ("100 coins", 100),
    ("12 years old", 12),
    # What stands before a number in MathQA
    ("b ) 120 %", 120),
    ("b . 1.2", 1.2),
    ("t = 32", 32),
    ("w . 100", 100),
    *((text, None) for text in NOT_MEASURED),
  ],
)
def test_the_value_of_an_option(text, value):
  assert quantities.measured(text) == (value and pytest.approx(value, 1e-12))


NOT_COMPUTED = [
  *("x = 38 * 2", "x = 100 - 70", "x = 2 ^ 5", "x = ( 5 + 1 ) / 2"),
  *("x = ( 5 ) ( 3 )", "x = 5x", "x = 5 x", "x = 5 !", "x = 1e3", "x = 38²"),
  *("x = 38 times 2", "x = 38 times x", "x = 38 apples * 2", "x = 20 % of 50"),
  *("x = 2.5 million", "x = 30 , 10", "x = 30, 10", "x = 3 : 4", "x = 12 . 5"),
  *("x = 1,00", "x >= 38", "2 + 38 = 20 * 2", "Let x = 2 * y. It is 30 * 2."),
  *("(3 + 4 = 7) * 2", "= ?", "no number", "", "= 5 / 0", "= " + "9" * 400),
]


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("We get 12 + 5 = 17, then 17 * 2 = 34.", 34),
    ("3 + 4 = 7", 7),
    ("3 + 4 = 7 and 7 - 3 is 4", 7),
    ("3 + 4 = 7\n7 - 3 is 4", 7),
    ("100 × 108 / 360 = 30 answer a", 30),
    ("x = - 5", -5),
    ("x = −5 .", -5),
    ("so it = rs . 1,250 .", 1250),
    ("= $ 5 each", 5),
    ("≈ 3.14", 3.14),
    ("= 1 / 4", 0.25),
    ("= 6 2 / 3 days", 6 + 2 / 3),
    ("= 7 = x", 7),
    ("X == 8", 8),
    ("30 is what 5 times 6 makes", 6),
    ("it takes 3 / 4 hours", 0.75),
    ("5 - 3", 3),
    ("down to -3", -3),
    # Only what stands alone is a result.
    ("3 + 4 = 7 , x = 38 * 2", 7),
    ("5 * 11 = 55 times.", 55),
    ("24 / 8 = 3 times the apples", 3),
    ("x = 38 * 2 = 76", 76),
    ("38 = 19 * 2", 38),
    ("so 38 = 19 * 2", 38),
    ("x = 7 so 38 = 19 * 2", 7),
    ("x = 7 , 38 = 19 * 2", 38),
    ("Let x = 2 * y. That makes 30.", 30),
    ("= 34 apples", 34),
    ("= 34 so it is (a)", 34),
    ("(3 + 4 = 7) .", 7),
    ("= 30.\n2 more", 30),
    ("= 30. 2 more", 30),
    ("= 30 \\n answer c", 30),
    ("= 36 km / hr", 36),
    ("= 288 cm ^ 2", 288),
    ("= 17.4 %", 17.4),
    ("= 65500 $", 65500),
    ("= ( 4 / 7 )", 4 / 7),
    ("= 3,000 / 100", 30),
    ("= 1 , 000", 1000),
    ("= rs . 12 , 500 .", 12500),
    ("= 0 . 5", 0.5),
    ("= 7   ,   so", 7),
    ("(-3)", -3),
    ("1,000.", 1000),
    *((text, None) for text in NOT_COMPUTED),
  ],
)
def test_the_number_a_reasoning_ends_with(text, value):
  assert quantities.computed(text) == (value and pytest.approx(value, 1e-12))


@hypothesis.given(
  st.one_of(
    st.text(), st.text(alphabet="0123456789+-−.,/ =$()%acmprs²"), st.floats()
  )
)
def test_nothing_makes_reading_raise(text):
  for read in (quantities.plain, quantities.measured, quantities.computed):
    value = read(str(text))
    assert value is None or abs(value) <= quantities.LARGEST


@hypothesis.given(st.integers(-(10**12), 10**12))
def test_plain_numbers_are_read_alike(value):
  for text in (str(value), f"{value:,}", f"{value}.00"):
    assert quantities.plain(text) == value
    assert quantities.measured(text) == value
    assert quantities.computed(f"x = {text}") == value
    assert quantities.computed(f"the {text}") == value


@pytest.mark.parametrize(
  "text",
  [
    "9" * 20_000,
    "= " + "9" * 20_000 + "x",
    "1," * 20_000,
    "= 1 " * 20_000,
    "= " + "1 , 000" * 20_000,
    "= 1 a" + " a" * 20_000,
    "= 1 " + "a" * 20_000,
    "( " * 20_000,
    "= " + " " * 20_000,
  ],
)
@pytest.mark.parametrize(
  "read", [quantities.plain, quantities.measured, quantities.computed]
)
def test_long_texts_take_no_time(text, read):
  """Far below a second; backtracking would not come to an end."""
  assert read(text) in (None, 1.0)


@hypothesis.given(value=st.floats(allow_nan=True), truth=st.floats(-1e13, 1e13))
def test_closeness(value, truth):
  same = quantities.close(value, truth)
  assert quantities.close(truth, truth)
  assert not same or math.isclose(value, truth, rel_tol=0.051, abs_tol=2e-6)
  assert not same or abs(value - truth) <= 0.01
