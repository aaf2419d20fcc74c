"""Numbers as people read them: three digits, percent for shares, powers of ten where digits would blur."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None) -> str:
    r"""`value` with three digits; the spaces of a power of ten do not break.

    >>> number(0.012345), number(-1234.5), number(3.2e-9), number(float("nan")), number(None)
    ('0.0123', '−1,234', '3.2\xa0×\xa010⁻⁹', 'NaN', '–')
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    sign, size = ("−" if value < 0 else ""), abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    if 1000 <= size < 1e6:
        return f"{sign}{size:,.0f}"
    if 1e-3 <= size < 1000:
        return f"{sign}{size:.3g}"
    digits, exponent = f"{size:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    return f"{sign}{digits}\u00a0×\u00a010{str(int(exponent)).translate(_SUPERSCRIPT)}"


def percent(value: float | None) -> str:
    """A share as percent.

    >>> percent(0.9712), percent(0.0), percent(1.0), percent(None)
    ('97.1%', '0%', '100%', '–')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{number(100 * value)}%"


def amount(value: float | None, *, share: bool = False) -> str:
    """`value` as a share or as a plain number."""
    return percent(value) if share else number(value)


def count(value: int) -> str:
    """A whole number with its thousands apart.

    >>> count(12345)
    '12,345'
    """
    return f"{value:,}"
