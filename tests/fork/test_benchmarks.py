"""Which texts the benchmark of the formatters counts as right."""

import math
import sys
from fractions import Fraction

import pytest
import torch
from speechbrain.utils.logger import format_order_of_magnitude

from composer.record import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    for name in ("formatter", "interleaved"):  # the names are common ones
        monkeypatch.delitem(sys.modules, name, raising=False)
    import formatter

    yield formatter
    for name in ("formatter", "interleaved"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "text, value, right",
    [
        ("999.9k", 999_949, True),
        ("999.95k", 999_949, True),
        ("999 K", 999_949, False),
        ("1 M", 999_999, True),
        ("1000.0k", 999_999, False),
        ("1000.0", Fraction(999.96), False),
        ("7.0 B", 7 * 10**9, True),
        ("1,000 T", 10**15, True),
        ("1e15", 10**15, True),
        ("\u22127", -7, True),
        ("7", -7, False),
        ("1.23 \u03bc", Fraction(0.00000123), True),
        ("1.00 x 10³³", 10**33, True),
        ("0.0y", Fraction(5e-324), False),
        ("-0.00", 0, True),
        ("True", 1, False),
        ("NaN", math.nan, True),
        ("+Inf", math.inf, True),
        ("inf", -math.inf, False),
        ("0", math.nan, False),
    ],
)
def test_right_is_the_number_to_the_digits_that_are_printed(benchmark, text, value, right):
    assert benchmark.is_right(text, value, largest=12) is right


@pytest.mark.parametrize(
    "function, number, value, right",
    [
        (str, 5, 5, True),
        (str, True, 1, False),
        (lambda number: f"{number:.1f}" if torch.is_tensor(number) else str(number), torch.tensor(5), 5, False),
        (float, "five", None, True),  # a ValueError
        (len, None, None, True),  # a TypeError
        (str, None, None, False),
        (lambda number: 1 / number, 0, 0, False),
    ],
)
def test_a_refusal_is_right_where_there_is_no_number(benchmark, function, number, value, right):
    assert benchmark.verdict(function, 12, number, value)[1] is right


def test_the_fork_has_all_right(benchmark):
    for number, value in benchmark.ADVERSARIAL:
        assert benchmark.verdict(format_order_of_magnitude, 30, number, value)[1], number
