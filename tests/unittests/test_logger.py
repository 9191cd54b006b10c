"""The texts of format_order_of_magnitude."""

import importlib.util
import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speechbrain.utils.logger import ORDERS_ABBREV, ORDERS_WORDS, format_order_of_magnitude


def fixed(*row):
    """A case that fails on the stock release."""
    return pytest.param(*row, marks=pytest.mark.regression, id=f"{type(row[0]).__name__}-{row[1]}-fixed")


@pytest.mark.parametrize(
    "number, text",
    [
        (1, "1"),
        (-7, "-7"),
        (999, "999"),
        (1000, "1.0k"),
        (999_949, "999.9k"),
        (123_456, "123.5k"),
        (7_000_000_000, "7.0G"),
        (10**9, "1.0G"),
        (10**24, "1.0Y"),
        (0.5, "500.0m"),
        (5.0, "5.0"),
        (0.00000123, "1.2µ"),
        (1e-24, "1.0y"),
        (numpy.float32(2.5), "2.5"),
        (torch.tensor(2.5), "2.5"),
        # zero: the crash
        fixed(0, "0"),
        fixed(0.0, "0.0"),
        fixed(-0.0, "0.0"),
        fixed(False, "0"),
        fixed(numpy.int64(0), "0"),
        fixed(torch.tensor(0), "0"),
        fixed(Decimal(0), "0.0"),
        # not finite
        fixed(math.nan, "nan"),
        fixed(math.inf, "inf"),
        fixed(-math.inf, "-inf"),
        fixed(torch.tensor(math.nan), "nan"),
        fixed(Decimal("nan"), "nan"),
        fixed(Decimal("sNaN"), "nan"),
        fixed(Decimal("-Infinity"), "-inf"),
        # a mantissa that rounds to the next prefix
        fixed(999_950, "1.0M"),
        fixed(999_999, "1.0M"),
        fixed(-999_999, "-1.0M"),
        fixed(999_999_999, "1.0G"),
        fixed(999.96, "1.0k"),
        fixed(0.99999, "1.0"),
        # integers of any type are exact below 1000
        fixed(True, "1"),
        fixed(numpy.int64(5), "5"),
        fixed(numpy.uint8(200), "200"),
        fixed(numpy.bool_(True), "1"),
        fixed(numpy.array([[7]]), "7"),
        fixed(torch.tensor(5), "5"),
        fixed(torch.tensor([999]), "999"),
        fixed(torch.tensor(True), "1"),
        # real numbers of other types print as floats do
        fixed(Fraction(0), "0.0"),
        fixed(Fraction(999_999), "1.0M"),
        (Fraction(1, 3), "333.3m"),
        (Decimal("12345.6"), "12.3k"),
        # the prefixes of 2022, and beyond them
        fixed(10**27, "1.0R"),
        fixed(-(10**30), "-1.0Q"),
        fixed(1e-27, "1.0r"),
        fixed(1e-30, "1.0q"),
        fixed(9.6e-25, "960.0r"),
        fixed(10**33, "1.0e+33"),
        fixed(10**400, "1.0e+400"),
        fixed(2**20000, "4.0e+6020"),
        fixed(-(2**20000), "-4.0e+6020"),
        fixed(Decimal("1e400"), "1.0e+400"),
        fixed(Decimal("-1e-999999999"), "-1.0e-999999999"),
        fixed(Fraction(1, 10**400), "1.0e-400"),
        fixed(5e-324, "4.9e-324"),
    ],
)
def test_format_order_of_magnitude(number, text):
    assert format_order_of_magnitude(number) == text


@pytest.mark.parametrize(
    "number, text",
    [
        (5, "5"),
        (123_456, "123.5 Thousand"),
        (-1_500_000, "-1.5 Million"),
        (0.00000123, "1.2 millionths"),
        fixed(0, "0"),
        fixed(999_999_999, "1.0 Billion"),
        fixed(10**30, "1.0 Nonillion"),
        fixed(1e-27, "1.0 octillionths"),
        fixed(10**400, "1.0e+400"),
    ],
)
def test_format_order_of_magnitude_in_words(number, text):
    assert format_order_of_magnitude(number, abbreviate=False) == text


@pytest.mark.parametrize(
    "value, name",
    [
        ("5", "str"),
        (b"5", "bytes"),
        (None, "NoneType"),
        (1 + 2j, "complex"),
        ([5], "list"),
        fixed(torch.tensor([1, 2]), "Tensor"),
        fixed(torch.tensor([]), "Tensor"),
        fixed(torch.tensor(1j), "Tensor"),
        fixed(torch.empty((), device="meta"), "Tensor"),
        fixed(numpy.array([1, 2]), "ndarray"),
        fixed(numpy.timedelta64(5, "s"), "timedelta64"),
    ],
)
def test_anything_but_one_real_number_raises(value, name):
    with pytest.raises(TypeError, match=name):
        format_order_of_magnitude(value)


REAL = st.one_of(
    st.integers(),
    st.integers(min_value=-(10**40), max_value=10**40),
    st.floats(),
    st.floats(min_value=1e-31, max_value=1e34),
    st.sampled_from([sign * (10**k + d) for sign in (1, -1) for k in range(35) for d in (-1, 0, 1)]),
)


@given(REAL, st.booleans())
def test_the_text_is_that_of_stock_where_stock_is_right(stock_function, number, abbreviate):
    try:
        text = stock_function(number, abbreviate)
    except (ValueError, OverflowError):
        return
    # Below yocto, its smallest prefix, stock rounds: 9.6e-25 is 960.0r, but stock prints 1.0y
    if 1 <= abs(float(re.match(r"-?[\d.]+", text).group())) < 1000 and abs(number) >= 1e-24:
        assert format_order_of_magnitude(number, abbreviate) == text


@pytest.mark.regression
@given(st.one_of(REAL, st.fractions(), st.decimals(), st.booleans()))
def test_every_real_number_gets_a_right_text(number):
    text = format_order_of_magnitude(number)
    if str(number).lower().lstrip("-s") in ("nan", "inf", "infinity"):
        assert text in ("nan", "inf", "-inf")
        return
    mantissa, prefix = re.fullmatch(r"(-?\d+(?:\.\d(?:e[+-]\d+)?)?)(\D?)", text).groups()
    order = next(order for order, token in ORDERS_ABBREV.items() if token == prefix)
    number = Fraction(number)
    # Half a unit of the one printed decimal, plus the rounding error of a division of two floats.
    unit = Fraction(10) ** order if "e" not in mantissa else Fraction(10) ** int(mantissa.partition("e")[2])
    assert abs(Fraction(mantissa) * Fraction(10) ** order - number) <= unit / 20 + abs(number) / 2**50
    assert abs(Fraction(mantissa)) < 1000 or "e" in mantissa
    if number > 0:
        assert format_order_of_magnitude(-number) == f"-{format_order_of_magnitude(number)}"


@pytest.mark.regression
def test_prefixes_reach_from_quecto_to_quetta():
    assert "".join(ORDERS_ABBREV.values()) == "qryzafpnµmkMGTPEZYRQ"
    assert list(ORDERS_ABBREV) == list(ORDERS_WORDS) == list(range(-30, 31, 3))


@pytest.fixture(scope="module")
def stock_function(stock):
    spec = importlib.util.spec_from_file_location("stock_logger", stock / "speechbrain" / "utils" / "logger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.format_order_of_magnitude
