"""Format values for people."""

import math
import re
from decimal import Decimal
from functools import lru_cache

from speechbrain.watch.log import number

INTEGER = re.compile(r"[+-]?\d{1,20}")


@lru_cache(maxsize=4096)
def shown(text):
    """Format a value for people: ``9.18e-01`` becomes ``0.918``, with the printed digits, but six at most; integers stay.

    Arguments
    ---------
    text : str or None
        The value as it was printed.

    Returns
    -------
    str
        The formatted number. An empty string for None; anything else on one line, at most 12 characters of it.

    Example
    -------
    >>> shown("7.50e-02"), shown("1.00e-07"), shown("0.12345678"), shown("1335909"), shown("nan")
    ('0.0750', '1.00e-07', '0.123457', '1335909', 'nan')
    """
    value = number(text)
    if value is None:
        return whole(text or "", 12)
    if INTEGER.fullmatch(text):
        return text
    if not math.isfinite(value):
        return str(value)
    if value == 0 or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}" if value else "0.0"
    if len(Decimal(text).as_tuple().digits) <= 6:
        return f"{Decimal(text):f}"
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"


def whole(text, longest=80):
    """Put a value on one line. An array that is too long is not cut, but described; other text is cut."""
    line = clean(" ".join(text.split()))
    if len(line) <= longest:
        return line
    count = text.count("\n") + 1
    return f"({count} lines)" if count > 1 else "(a list)" if line.endswith((")", "]", "}")) else f"{line[: longest - 3]}..."


def clock(seconds):
    """Format seconds as h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def clean(text):
    """Replace the characters that could control a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
