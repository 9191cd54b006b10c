"""Format values for people."""

import math
from decimal import Decimal

from speechbrain.watch.log import number


def shown(text):
    """Format a value for people: ``9.18e-01`` becomes ``0.918``, with the printed digits, but six at most.

    Arguments
    ---------
    text : str or None
        The value as it was printed.

    Returns
    -------
    str
        The formatted number. An empty string for None; the first 12 characters of anything else.

    Example
    -------
    >>> shown("7.50e-02"), shown("1.00e-07"), shown("0.12345678"), shown("nan")
    ('0.0750', '1.00e-07', '0.123457', 'nan')
    """
    value = number(text)
    if value is None:
        return clean(" ".join((text or "").split())[:12])
    if not math.isfinite(value):
        return str(value)
    if value == 0 or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}" if value else "0.0"
    return f"{Decimal(text):f}" if len(Decimal(text).as_tuple().digits) <= 6 else f"{value:.6g}"


def clock(seconds):
    """Format seconds as h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def clean(text):
    """Replace the characters that could control a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
