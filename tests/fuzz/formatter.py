#!/usr/bin/env python3
"""Checks format_order_of_magnitude against exact arithmetic on random numbers, and prints what it gets wrong.

> python tests/fuzz/formatter.py [NUMBER OF INPUTS] [SEED]
"""

import math
import random
import re
import struct
import sys
from decimal import Decimal
from fractions import Fraction
from numbers import Integral

import numpy
from speechbrain.utils.logger import format_order_of_magnitude

PREFIXES = {prefix: 3 * number - 30 for number, prefix in enumerate([*"qryzafpnµm", "", *"kMGTPEZYRQ"])}
WORDS = "thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion".split()
NAMES = {
    "": 0,
    **{f" {word.title()}": 3 * number for number, word in enumerate(WORDS, 1)},
    **{f" {word}ths": -3 * number for number, word in enumerate(WORDS, 1)},
}
FLOAT = Fraction(1, 10**12)  # the relative error of a float, with some tolerance
SHORT = re.compile(r"(-?)(\d{1,3})(\.\d)?([^\d.]?)")
LONG = re.compile(r"(-?)(\d{1,3})(\.\d)?((?: \w+)?)")
SCIENTIFIC = re.compile(r"(-?)(\d\.\d)e([+-]\d+)")


def problem(value, integral, text, abbreviate):
    """What is wrong with the text of a number, according to exact arithmetic; None if nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if text == str(value) else f"is not {value}"
    exact = Fraction(value)
    if integral and abs(value) < 1000:
        return None if text == str(value) else "is not the integer itself"
    found = (SHORT if abbreviate else LONG).fullmatch(text)
    if found:
        orders = PREFIXES if abbreviate else NAMES
        if found[4] not in orders or not found[3]:
            return "has an unknown prefix, or no decimal"
        order, mantissa = orders[found[4]], Fraction(found[2] + found[3])
        if exact and (mantissa < 1 or mantissa >= 1000):
            return "has a prefix that is too large, or too small"
    else:
        found = SCIENTIFIC.fullmatch(text)
        if not found:
            return "is not a number"
        order, mantissa = int(found[3]), Fraction(found[2])
        if not 1 <= mantissa < 10:
            return "has an exponent that is too large, or too small"
        if Fraction(1, 10**30) <= abs(exact) < Fraction(99995, 100) * 10**30 * (1 - FLOAT):
            return "is in scientific notation although a prefix exists"
    written = mantissa * Fraction(10) ** order
    if (found[1] and not exact < 0) or (not found[1] and exact < 0):
        return "has the wrong sign"
    if abs(written - abs(exact)) > Fraction(10) ** order * (Fraction(1, 20) + FLOAT):  # half of the last digit
        return "is another number"
    return None


def number(draw):
    """A number of any size; often near the border between two prefixes."""
    edge = draw.choice((1, 999, 999.95, 1000, 99.95, 0.5)) * 10.0 ** draw.randint(-36, 36)
    kinds = (
        lambda: draw.getrandbits(draw.randint(1, 130)),
        lambda: round(edge) + draw.randint(-2, 2),
        lambda: math.nextafter(edge, draw.choice((0, edge, math.inf))),
        lambda: struct.unpack("d", draw.randbytes(8))[0],
        lambda: draw.uniform(0, 2000),
        lambda: 10 ** draw.randint(30, 700) + draw.randint(-1, 1),
        lambda: draw.choice((0, 0.0, 1, 5e-324, 1.7e308, math.inf, math.nan)),
    )
    return draw.choice((1, -1)) * draw.choice(kinds)()


def wrappings(value):
    """The same number as several types."""
    same = [value, value, value]
    if isinstance(value, int):
        same += [Fraction(value), Decimal(value)]
        if abs(value) < 2**63:
            same.append(numpy.int64(value))
    else:
        same.append(numpy.float64(value))
        if math.isfinite(value):
            same += [Fraction(value), Decimal(value)]
    return same


def main(count=1_000_000, seed=0):
    """Check the numbers; returns the exit status."""
    draw, tried, wrong = random.Random(seed), 0, 0
    while tried < count and wrong < 20:
        tried += 1
        value = number(draw)
        given = draw.choice(wrappings(value))
        abbreviate = tried % 4 > 0
        try:
            text = format_order_of_magnitude(given, abbreviate)
            found = problem(value, isinstance(given, Integral), text, abbreviate)
        except Exception as error:
            text, found = repr(error), "was raised"
        if found:
            wrong += 1
            print(f"{given!r} ({type(given).__name__}, abbreviate={abbreviate}): {text} {found}")
    print(f"{tried} inputs, seed {seed}: {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
