"""Formatting a count of 0 no longer crashes (see PR_2537.md)."""

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from numbers import Integral, Rational, Real

ORDERS_ABBREV = {
    -30: "q",
    -27: "r",
    -24: "y",
    -21: "z",
    -18: "a",
    -15: "f",
    -12: "p",
    -9: "n",
    -6: "µ",
    -3: "m",
    0: "",
    3: "k",
    6: "M",
    9: "G",
    12: "T",
    15: "P",
    18: "E",
    21: "Z",
    24: "Y",
    27: "R",
    30: "Q",
}

ORDERS_WORDS = {
    -30: "nonillionths",
    -27: "octillionths",
    -24: "septillionths",
    -21: "sextillionths",
    -18: "quintillionths",
    -15: "quadrillionths",
    -12: "trillionths",
    -9: "billionths",
    -6: "millionths",
    -3: "thousandths",
    0: "",
    3: "Thousand",
    6: "Million",
    9: "Billion",
    12: "Trillion",
    15: "Quadrillion",
    18: "Quintillion",
    21: "Sextillion",
    24: "Septillion",
    27: "Octillion",
    30: "Nonillion",
}


def _as_builtin(number):
    """Converts a real number of any type to an int or a float, or to a Decimal
    if it is too large or too small for a float."""
    try:
        value = number.item() if hasattr(number, "item") else number
    except (ValueError, RuntimeError):
        # A numpy array or a tensor with several elements, or without data
        value = None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Rational):
        context = Context(Emin=MIN_EMIN, Emax=MAX_EMAX)
        value = context.divide(
            Decimal(value.numerator), Decimal(value.denominator)
        )
    if not isinstance(value, (Real, Decimal)):
        raise TypeError(
            f"Expected one real number, not a {type(number).__name__}"
        )
    if isinstance(value, Decimal) and value.is_nan():
        return math.nan  # float() refuses a signaling nan
    rounded = float(value)
    out_of_range = rounded in (0, math.inf, -math.inf) and value != rounded
    return value if out_of_range else rounded


def format_order_of_magnitude(number, abbreviate=True):
    if type(number) is not int and type(number) is not float:
        number = _as_builtin(number)
        if type(number) is Decimal:
            return f"{number:.1e}"
    magnitude = abs(number)
    if magnitude < 1000 and type(number) is int:
        return str(number)
    if not 0 < magnitude < math.inf:
        # Adding 0.0 turns -0.0 into 0.0
        return f"{number + 0.0:.1f}"

    style = ORDERS_ABBREV if abbreviate else ORDERS_WORDS
    order = 3 * math.floor(math.log10(magnitude) / 3)
    if order in style and magnitude / 10**order >= 999.95:
        order += 3  # It would print as 1000.0
    if order not in style:
        return f"{Decimal(number):.1e}"
    formatted_number = f"{number / 10**order:.1f}"
    if abbreviate or order == 0:
        return formatted_number + style[order]
    return f"{formatted_number} {style[order]}"
