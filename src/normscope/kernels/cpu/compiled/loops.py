"""Plain loops that become vector code: elements by their index, arrays that share no memory, sums in blocks.

What the compiler cannot see, a loop is slow for: that an index is not negative, and that what is written is not what is
read. `read` and `write` take an index as it is; `apart` promises the rest.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from normscope.kernels.cpu.compiled.machine import as_bits, as_float, inlined

BLOCK = 1024  # numbers whose sum is kept in float32
NONE = np.float32(0)


@intrinsic
def apart(context: Any) -> Any:
    """Promise that no two array arguments of this function share memory that it writes."""

    def code(target: Any, builder: Any, _: Any, __: Any) -> Any:
        for argument in builder.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return target.get_dummy_value()

    return types.void(), code


@intrinsic
def _get(context: Any, array: Any, i: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = target.make_array(signature.args[0])(target, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]], inbounds=True))

    return array.dtype(array, types.int64), code


@intrinsic
def _put(context: Any, array: Any, i: Any, value: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = target.make_array(signature.args[0])(target, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]], inbounds=True))
        return target.get_dummy_value()

    return types.void(array, types.int64, array.dtype), code


def read(array, i):
    """Element `i`, which must be there; the bits of a bfloat16 as float32."""


def write(array, i, value):
    """Write element `i`, which must be there; as the bits of a bfloat16 rounded to nearest even."""


# Numba compares the signatures of what follows, annotations and all: none of them has any


@overload(read)
def _read(array, i):
    if array.dtype == types.uint16:
        return lambda array, i: as_float(np.uint32(_get(array, i)) << np.uint32(16))
    return lambda array, i: _get(array, i)


@overload(write)
def _write(array, i, value):
    def plain(array, i, value):
        _put(array, i, value)

    def rounded(array, i, value):
        bits = as_bits(np.float32(value))
        near = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        _put(array, i, np.uint16(near if value == value else np.uint32(0x7FC0)))

    return rounded if array.dtype == types.uint16 else plain


@inlined
def mean(xs: Any) -> float:
    """The mean."""
    total = 0.0
    for start in range(0, len(xs), BLOCK):
        part = NONE
        for i in range(start, min(start + BLOCK, len(xs))):
            part += read(xs, i)
        total += part
    return total / len(xs)


@inlined
def spread(xs: Any, high: Any) -> Any:
    """The means of x − high and of its square."""
    linear, square = 0.0, 0.0
    for start in range(0, len(xs), BLOCK):
        a, b = NONE, NONE
        for i in range(start, min(start + BLOCK, len(xs))):
            d = read(xs, i) - high
            a += d
            b += d * d
        linear += a
        square += b
    return linear / len(xs), square / len(xs)
