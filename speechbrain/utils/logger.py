"""Formatting of counts. The rest of this module is upstream's."""

from bisect import bisect_right
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from math import inf, nan
from numbers import Integral, Real

# Upstream stops at the prefixes of 1991; those of 2022 (SI Brochure, 9th edition, table 7) reach to 1e30 and 1e-30.
ORDERS_ABBREV = dict(zip(range(-30, 31, 3), [*"qryzafpnµm", "", *"kMGTPEZYRQ"]))

_LARGE_WORDS = "Thousand Million Billion Trillion Quadrillion Quintillion Sextillion Septillion Octillion Nonillion".split()

# The short scale: lower case below one, upper case above.
ORDERS_WORDS = dict(zip(range(-30, 31, 3), [*(f"{word.lower()}ths" for word in reversed(_LARGE_WORDS)), "", *_LARGE_WORDS]))

# As upstream computes them, 10**order: ints from one on, floats below.
_POWERS = [10**order for order in ORDERS_ABBREV]

_ABBREVIATIONS = list(ORDERS_ABBREV.values())

_WORDS = [word and f" {word}" for word in ORDERS_WORDS.values()]


def _as_builtin(number):
    """Turn a real number of any type into an int or a float, or into a Decimal where it is out of a float's range."""
    try:
        value = number.item() if hasattr(number, "item") else number  # numpy and torch
    except (ValueError, RuntimeError):  # not one element, or no data (meta device, uninitialised)
        value = None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Decimal) and value.is_nan():
        return nan
    if not isinstance(value, (Real, Decimal)):
        raise TypeError(f"format_order_of_magnitude takes one real number, not a {type(number).__name__}")
    try:
        nearest = float(value)
    except OverflowError:
        nearest = inf
    if nearest not in (0, inf, -inf) or value == nearest:
        return nearest
    if isinstance(value, Decimal):
        return value
    numerator, denominator = value.as_integer_ratio()
    return Context(Emax=MAX_EMAX, Emin=MIN_EMIN).divide(Decimal(numerator), Decimal(denominator))


def format_order_of_magnitude(number, abbreviate=True):
    """Write a number with the prefix of its order of magnitude.

    Upstream's took the logarithm of the number, so 0 died of ``ValueError: math
    domain error`` (the count of a frozen model's trainable parameters), nan and
    inf died too, and 999999 became ``1000.0k``. This one searches the powers of
    1000, and is total on the real numbers.

    Arguments
    ---------
    number : int, float, bool, Fraction, Decimal, numpy scalar, array or tensor
        One real number; an array or a tensor holds exactly one element.
        Integers below 1000 are written exactly, all else with one decimal.
    abbreviate : bool
        Whether to write ``123.5k`` or ``123.5 Thousand``.

    Returns
    -------
    str
        The number with its prefix, quecto to quetta. Beyond these the number in
        scientific notation; nan and inf as ``nan``, ``inf`` and ``-inf``.

    Raises
    ------
    TypeError
        If ``number`` is not one real number.

    Example
    -------
    >>> format_order_of_magnitude(123456)
    '123.5k'
    >>> format_order_of_magnitude(0.00000123, abbreviate=False)
    '1.2 millionths'
    >>> format_order_of_magnitude(0)
    '0'
    >>> format_order_of_magnitude(999_999)
    '1.0M'
    >>> format_order_of_magnitude(10**400)
    '1.0e+400'
    """
    if type(number) is not int and type(number) is not float:
        number = _as_builtin(number)
        if type(number) is Decimal:
            return f"{number:.1e}"
    magnitude = abs(number)
    if magnitude < 1000 and type(number) is int:
        return str(number)
    if not 0 < magnitude < inf:
        return f"{number + 0.0:.1f}"  # the sum makes 0.0 of -0.0
    tokens = _ABBREVIATIONS if abbreviate else _WORDS
    index = bisect_right(_POWERS, magnitude) - 1
    if index >= 0 and magnitude < 1e33:
        mantissa = number / _POWERS[index]
        if -999.95 < mantissa < 999.95:
            return f"{mantissa:.1f}{tokens[index]}"
        if index + 1 < len(_POWERS):  # it would print as 1000.0
            return f"{number / _POWERS[index + 1]:.1f}{tokens[index + 1]}"
    return f"{Decimal(number):.1e}"
