"""What the kernels say to the machine: pointers, bits, prefetches, bfloat16 as its bits, and activations.

A kernel is one C function of one argument, an array of 64-bit words: addresses, sizes and runtime choices. It takes
tasks by counting the first word up until none is left, so that any number of threads can run it at once.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

# sums may be reordered, products fused into sums, the sign of zero is free; NaN and infinity keep their meaning
MATH = {"reassoc", "contract", "nsz"}
WORDS = 40  # in the argument of a kernel
LINE = 64  # bytes that memory moves at once
SHARED = (
    "machine",
    "operands",
    "loops",
    "steps",
    "gates",
    "lanes",
    "activations",
    "panels",
    "folded",
)  # files whose functions kernels of other files call
_STAMP = zlib.crc32(b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in SHARED))
_BYTE, _WORD = ir.IntType(8).as_pointer(), ir.IntType(64)

jit: Any = numba.njit(fastmath=MATH, error_model="numpy")
# a call inside a loop keeps it from becoming vector code
inlined: Any = numba.njit(fastmath=MATH, error_model="numpy", forceinline=True)


def kernel(function: Any) -> Any:
    """`function` of the address of its words, compiled; kept on disk where some folder can be written."""
    # Numba forgets what it kept when the function's own file changes, and looks at no other
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
def as_float(context: Any, bits: Any) -> Any:
    """The float32 of these bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def as_bits(context: Any, value: Any) -> Any:
    """The bits of this float32."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def fetch(context: Any, address: Any) -> Any:
    """Ask for the line at `address`, which will be read soon."""

    def code(target: Any, builder: Any, _: Any, args: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
        builder.call(function, [builder.inttoptr(args[0], _BYTE), number(0), number(3), number(1)])
        return target.get_dummy_value()

    return types.void(types.int64), code


def load(array, i):
    """Element `i` as float32."""


def store(array, i, value):
    """Write a float32 as element `i`, rounded to nearest even."""


# Numba compares the signatures of what follows, annotations and all: none of them has any


@overload(load)
def _load(array, i):
    if array.dtype == types.uint16:
        return lambda array, i: as_float(np.uint32(array[i]) << np.uint32(16))
    return lambda array, i: array[i]


@overload(store)
def _store(array, i, value):
    def plain(array, i, value):
        array[i] = value

    def rounded(array, i, value):
        bits = as_bits(np.float32(value))
        near = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        array[i] = np.uint16(near if value == value else np.uint32(0x7FC0))

    return rounded if array.dtype == types.uint16 else plain


# activations -----------------------------------------------------------------------------------------------

ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2, "silu": 3, "gelu": 4}
F0, F1, HALF, LEAK = np.float32(0), np.float32(1), np.float32(0.5), np.float32(0.01)
_LOG2E, _LN2, _LN2_REST = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_SQRT_HALF, _PDF = np.float32(0.70710678), np.float32(0.39894228)
_LOW, _HIGH, _FOUR = np.float32(-87.0), np.float32(88.0), np.float32(4.0)
_E0, _E1, _E2 = np.float32(1.9875691e-4), np.float32(1.3981999e-3), np.float32(8.3334519e-3)
_E3, _E4, _E5 = np.float32(4.1665796e-2), np.float32(1.6666666e-1), np.float32(5.0e-1)


@inlined
def exponential(z: Any) -> Any:
    """e^z to 2 units in the last place, without a call, so that loops over it become vector code (Cephes' expf)."""
    z = z if z < _HIGH else _HIGH
    z = z if z > _LOW else _LOW
    n = np.floor(z * _LOG2E + HALF)
    r = z - n * _LN2 - n * _LN2_REST
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    return (p * r * r + r + F1) * as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


_A = tuple(
    np.float32(a)
    for a in (
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    )
)  # fmt: skip
_B = tuple(
    np.float32(b)
    for b in (
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)  # fmt: skip
_A0, _A1, _A2, _A3, _A4, _A5, _A6 = _A
_B0, _B1, _B2, _B3, _B4 = _B


@inlined
def normal_cdf(z: Any) -> Any:
    """Φ(z), from erf as a rational function of odd degree 13 over degree 8 (the coefficients of Eigen's float erf)."""
    u = z * _SQRT_HALF
    u = u if u < _FOUR else _FOUR
    u = u if u > -_FOUR else -_FOUR
    s = u * u
    p = (((((_A0 * s + _A1) * s + _A2) * s + _A3) * s + _A4) * s + _A5) * s + _A6
    q = (((_B0 * s + _B1) * s + _B2) * s + _B3) * s + _B4
    return HALF + HALF * (u * p / q)


@inlined
def activated(kind: int, z: Any) -> Any:
    """f(z)."""
    if kind == 1:
        return F0 if z < F0 else z  # NaN stays
    if kind == 2:
        return z * LEAK if z < F0 else z
    if kind == 3:
        return z / (F1 + exponential(-z))
    if kind == 4:
        return z * normal_cdf(z)
    return z


@inlined
def slope(kind: int, z: Any) -> Any:
    """f′(z); at the corner of the ReLU family that of the left side, as torch has it."""
    if kind == 1:
        return F0 if z <= F0 else F1
    if kind == 2:
        return F1 if z > F0 else LEAK
    if kind == 3:
        s = F1 / (F1 + exponential(-z))
        return s * (F1 + z * (F1 - s))
    if kind == 4:
        return normal_cdf(z) + z * _PDF * exponential(-HALF * z * z)
    return F1


@jit
def merge(n: float, mean: float, m2: float, n2: float, mean2: float, m22: float) -> Any:
    """Two (count, mean, sum of squared deviations) as one (Chan et al. 1979, equation 2.1)."""
    total = n + n2
    delta = mean2 - mean
    return total, mean + delta * (n2 / total), m2 + m22 + delta * delta * (n * n2 / total)
