"""What the kernels say to the machine: pointers and bits.

A kernel is one C function of one argument, an array of 64-bit words: addresses, sizes and runtime choices. It takes
tasks by counting the first word up until none is left, so that any number of threads can run it at once.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# sums may be reordered, products fused into sums, the sign of zero is free; NaN and infinity keep their meaning
MATH = {"reassoc", "contract", "nsz"}
WORDS = 40  # in the argument of a kernel
LINE = 64  # bytes that memory moves at once
# a kernel holds what it calls in any file here, and Numba looks at none but the kernel's own
_STAMP = zlib.crc32(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))
_BYTE, _WORD = ir.IntType(8).as_pointer(), ir.IntType(64)

jit: Any = numba.njit(fastmath=MATH, error_model="numpy")
# a call inside a loop keeps it from becoming vector code
inlined: Any = numba.njit(fastmath=MATH, error_model="numpy", forceinline=True)


def kernel(function: Any) -> Any:
    """`function` of the address of its words, compiled; kept on disk where some folder can be written."""
    function.__qualname__ += f".{_STAMP:08x}"
    signature = types.void(types.voidptr)
    options = {"fastmath": MATH, "error_model": "numpy"}
    try:
        return numba.cfunc(signature, cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return numba.cfunc(signature, **options)(function)


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """A 64-bit word as a pointer."""
    return types.voidptr(types.int64), lambda _, builder, __, args: builder.inttoptr(args[0], _BYTE)


@intrinsic
def take(context: Any, address: Any) -> Any:
    """Count the word at `address` up by one, at once for all threads; what it was."""

    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", counter, _WORD(1), "monotonic")

    return types.int64(types.int64), code


@intrinsic
def finish(context: Any, address: Any) -> Any:
    """Count a task as done in the last of the words at `address`; how many are. The last sees what all wrote."""

    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        counter = builder.inttoptr(builder.add(args[0], _WORD(8 * (WORDS - 1))), _WORD.as_pointer())
        return builder.add(builder.atomic_rmw("add", counter, _WORD(1), "acq_rel"), _WORD(1))

    return types.int64(types.int64), code


@intrinsic
def as_float(context: Any, bits: Any) -> Any:
    """The float32 of these bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def as_bits(context: Any, value: Any) -> Any:
    """The bits of this float32."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@jit
def merge(n: float, mean: float, m2: float, n2: float, mean2: float, m22: float) -> Any:
    """Two (count, mean, sum of squared deviations) as one (Chan et al. 1979, equation 2.1)."""
    total = n + n2
    delta = mean2 - mean
    return total, mean + delta * (n2 / total), m2 + m22 + delta * delta * (n * n2 / total)
