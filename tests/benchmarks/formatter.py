#!/usr/bin/env python3
"""Compares the formatters of the fork, the stock release and four other libraries: how fast and how often right they are.

> OMP_NUM_THREADS=1 python tests/benchmarks/formatter.py [--wrong]

Each formatter is called without options. The benchmark reads its text back. The text is right if
 - it is the number, to within half a unit of the last printed digit, and not zero unless the number is zero;
 - its mantissa is below 1000, unless the library has no larger prefix;
 - an integer of another type, including True, gives the same text as the int;
 - nan and the infinities are printed as nan and inf, in any of the usual spellings;
 - an input that is not a number raises a TypeError or a ValueError.
Any other exception is wrong. The inputs come from the fork's own tests, so that the fork gets them all right.
"""

import argparse
import math
import re
import reprlib
import statistics
from decimal import Decimal
from fractions import Fraction

import numpy
import torch
from interleaved import optional, ratio, seconds, stock_and_fork

MIX = [1, 999, 12345, 999_999, 1234567, 123456789, 7_000_000_000]

# The input, and its value as an int, a Fraction or a float that is not finite; None if it is not a number.
ADVERSARIAL = [
    *((n, n) for n in (0, 1, -7, 999, 123_456, 999_949, 999_950, 999_999, -999_999, 999_999_999)),
    *((n, n) for n in (10**24, 10**27, -(10**30), 10**33, 10**400)),
    *((x, Fraction(x)) for x in (0.0, 0.5, 999.96, 0.99999, 0.00000123, 1e-27, 5e-324)),
    *((x, x) for x in (math.nan, math.inf, -math.inf)),
    (True, 1),
    (numpy.int64(5), 5),
    (numpy.float32(2.5), Fraction(5, 2)),
    (torch.tensor(5), 5),
    (torch.tensor(math.nan), math.nan),
    (Fraction(999_999), Fraction(999_999)),
    (Fraction(1, 3), Fraction(1, 3)),
    (Decimal("12345.6"), Fraction("12345.6")),
    ("five", None),
    (None, None),
    (1 + 2j, None),
]

# The SI prefixes, and lightning's K, M, B and T, which do not contradict them.
ORDERS = {**dict(zip([*"qryzafpnum", "", *"kMGTPEZYRQ"], range(-30, 31, 3))), "K": 3, "B": 9}

# Minus signs, superscripts and both letters mu of Unicode; commas are left out.
PLAIN = str.maketrans("\u2212⁰¹²³⁴⁵⁶⁷⁸⁹⁻\u00b5\u03bc", "-0123456789-uu", ",")


def is_right(text, value, largest):
    """Whether a text is a right way to print a value; ``largest`` is the order of the library's largest prefix."""
    text = text.translate(PLAIN).strip().replace(" x 10", "e")
    if isinstance(value, float):
        return text.lower().lstrip("+") == str(value)
    parts = re.fullmatch(r"([+-]?\d+(?:\.(\d+))?)(?:e([+-]?\d+))? ?(\D?)", text)
    if not parts or parts[4] not in ORDERS:
        return False
    mantissa, order = Fraction(parts[1]), int(parts[3] or 0) + ORDERS[parts[4]]
    printed = mantissa * Fraction(10) ** order
    half = Fraction(10) ** (order - len(parts[2] or "")) / 2
    near = abs(printed - value) <= half + abs(Fraction(value)) / 2**50  # the rounding error of a division of two floats
    return near and bool(printed) == bool(value) and (abs(mantissa) < 1000 or order == largest)


def verdict(function, largest, number, value):
    """The text that a formatter returns for an input, and whether it is right."""
    try:
        text = function(number)
        if value is None:
            return repr(text), False
        same = type(value) is not int or text == function(value)
    except Exception as error:
        return type(error).__name__, value is None and isinstance(error, (TypeError, ValueError))
    return repr(text), same and is_right(text, value, largest)


def formatters():
    """The name and function of each formatter, and the order of its largest prefix."""
    stock, fork = (module.format_order_of_magnitude for module in stock_and_fork("speechbrain.utils.logger"))
    yield "fork", fork, 30
    yield "stock", stock, 24
    if metric := optional("humanize", "metric"):
        yield "humanize, `metric`", metric, 30
    if count := optional("pytorch_lightning.utilities.model_summary", "get_human_readable_count"):
        yield "lightning, `get_human_readable_count`", count, 12
    if formatter := optional("matplotlib.ticker", "EngFormatter"):
        yield "matplotlib, `EngFormatter`", formatter(), 30
    if quantity := optional("quantiphy", "Quantity"):
        yield "quantiphy, `Quantity`", lambda number: quantity(number).render(), 12


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrong", action="store_true", help="also print what each formatter gets wrong")
    options = parser.parse_args()
    functions = {name: (function, largest) for name, function, largest in formatters()}
    calls = {name: lambda f=function: [f(number) for number in MIX] for name, (function, _) in functions.items()}
    times = seconds(calls, rounds=9)
    print(f"\n| formatting a count | µs | times the fork's: median (quartiles) | right, of {len(ADVERSARIAL)} inputs |")
    print("| --- | --- | --- | --- |")
    wrong = []
    for name, (function, largest) in functions.items():
        verdicts = [(number, *verdict(function, largest, number, value)) for number, value in ADVERSARIAL]
        wrong += [f"{name}, {reprlib.repr(number)}: {text}" for number, text, right in verdicts if not right]
        each = statistics.median(times[name]) / len(MIX) * 1e6
        print(f"| {name} | {each:.2f} | {ratio(times, name, over='fork')} | {sum(right for *_, right in verdicts)} |")
    if options.wrong:
        print("", *wrong, sep="\n")


if __name__ == "__main__":
    main()
