"""What is left out is left out evenly, and never what must stay."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from normscope.report.numbers import number
from normscope.report.thin import thin


@given(st.integers(0, 300), st.integers(2, 50), st.data())
def test_thinning_keeps_order_ends_and_what_is_named(n, limit, data):
    items = range(n)
    keep = data.draw(st.lists(st.sampled_from(items), max_size=limit - 2, unique=True)) if n else []
    shown = thin(items, limit, keep.__contains__)
    assert len(shown) == min(n, limit)
    assert list(shown) == sorted(set(shown))
    assert set(keep) <= set(shown)
    if n:
        assert {0, n - 1} <= set(shown)


@given(st.integers(100, 5000), st.integers(10, 60))
def test_thinning_is_even(n, limit):
    shown = thin(range(n), limit)
    gaps = [after - before for before, after in pairwise(shown)]
    assert max(gaps) - min(gaps) <= 1


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_a_number_says_its_value_to_three_digits(value):
    told = number(value).replace(",", "").replace("\u00a0", "").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    digits, _, exponent = told.partition("×10")
    assert abs(float(f"{digits}e{exponent or 0}") - value) <= 0.005 * value
