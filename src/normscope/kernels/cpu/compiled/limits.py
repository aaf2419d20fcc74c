"""Limits by bits, of single numbers and of lanes: the bits of floats sort as their sizes do.

Integers are compared by units that wait while those for floats are busy with a polynomial.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic, overload

from normscope.kernels.cpu.compiled.lanes import FLOATS, INTEGERS, NUMBERS, each, spread
from normscope.kernels.cpu.compiled.machine import as_bits, as_float

_SIZE, _SIGN, _ONE = 0x7FFFFFFF, -0x80000000, 0x3F800000


def within(value, limit):
    """The number from −limit to limit that is nearest; NaN becomes a limit."""


def share(value):
    """The number from 0 to 1 that is nearest; NaN becomes either."""


def _least(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.icmp_signed("<", left, right), left, right)


@intrinsic
def _within(context: Any, value: Any, limit: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        bits, most = (builder.bitcast(arg, INTEGERS) for arg in args)
        size = _least(builder, builder.and_(bits, each(_SIZE)), most)
        return builder.bitcast(builder.or_(size, builder.and_(bits, each(_SIGN))), FLOATS)

    return NUMBERS(NUMBERS, NUMBERS), code


@intrinsic
def _share(context: Any, value: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        bits, none = builder.bitcast(args[0], INTEGERS), each(0)
        bits = builder.select(builder.icmp_signed(">", bits, none), bits, none)
        return builder.bitcast(_least(builder, bits, each(_ONE)), FLOATS)

    return NUMBERS(NUMBERS), code


@overload(within)
def _(value, limit):
    if value == NUMBERS:
        return lambda value, limit: _within(value, spread(limit))

    def one(value, limit):
        bits, most = as_bits(value), as_bits(limit)
        size = bits & np.uint32(0x7FFFFFFF)
        return as_float((size if size < most else most) | (bits & np.uint32(0x80000000)))

    return one


@overload(share)
def _(value):
    if value == NUMBERS:
        return lambda value: _share(value)

    def one(value):
        bits = np.int32(as_bits(value))
        bits = bits if bits > np.int32(0) else np.int32(0)
        return as_float(np.uint32(bits if bits < np.int32(0x3F800000) else np.int32(0x3F800000)))

    return one
