"""Compiled loops: one copies a sample out of the memory of a CPU tensor, one tells all that a `Digest` holds of many.

The only file of this part that imports Numba. What is computed is specified by `sample.strided` (which elements),
`sketch.cells` (which bin), `moments.two_pass` and `code.encode`; the tests hold every number to those.
Memory is told by its address: making a NumPy array of a tensor costs as much as a tenth of the whole summary.
"""

# pyright: reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

BINS, CELLS = 2048, 2052  # as in `sketch`: bins, then exact zeros, NaN, +∞, −∞
MOST = 2**18 - 4  # elements: a quarter of them still fits 16 bits
WORDS = 7  # in the argument of `tell`
NUMBERS = 9  # of a digest: count, mean, M2, low, high, zeros, NaN, +∞, −∞

_IN_ORDER = {"nsz", "contract"}
_ANY_ORDER = {"reassoc", "nsz", "contract", "nnan", "ninf"}  # where every value is known to be finite
_HALF_SCALES = np.ldexp(np.float32(1), np.maximum(np.arange(32), 1) - 25)  # by the exponent of a float16
_LEAST32, _MOST32 = np.int32(-(2**31)), np.int32(2**31 - 1)
_LEAST64, _MOST64 = -(2**63), 2**63 - 1


def _cast(kind: Any) -> Any:
    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_float32, _float64, _uint16, _int64, _uint8 = map(_cast, (nb.float32, nb.float64, nb.uint16, nb.int64, nb.uint8))


@intrinsic
def _next(typing: Any, address: Any) -> Any:
    """Count the word at `address` up by one, for all threads at once; what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], word.as_pointer()), word(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def _address(typing: Any, pointer: Any) -> Any:
    """Where a pointer points, as a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(types.voidptr), generate


@nb.njit
def _gather(x: Any, step: int, places: Any, out: Any) -> None:
    if places.size:
        for i in range(out.size):
            out[i] = x[places[i]]
    else:
        for i in range(out.size):
            out[i] = x[i * step]


@nb.njit
def _gather_bfloat16(x: Any, step: int, places: Any, out: Any) -> None:
    bits = out.view(np.uint32)
    for i in range(out.size):
        bits[i] = np.uint32(np.uint32(x[places[i] if places.size else i * step]) << np.uint32(16))


@nb.njit
def _gather_float16(x: Any, step: int, places: Any, out: Any) -> None:
    for i in range(out.size):
        bits = x[places[i] if places.size else i * step]
        exponent, mantissa = (bits >> 10) & 31, bits & 1023
        value = np.float32(mantissa + (1024 if exponent else 0)) * _HALF_SCALES[exponent]
        if exponent == 31:
            value = np.float32(np.nan) if mantissa else np.float32(np.inf)
        out[i] = -value if bits >> 15 else value


@nb.njit
def _cells32(x: Any, cells: Any) -> None:
    bits = x.view(np.int32)
    for i in range(x.size):
        magnitude = np.int32(bits[i] & np.int32(0x7FFFFFFF))
        cell = np.int32(max(np.int32(1520), min(np.int32(2543), np.int32(magnitude >> np.int32(19)))) - np.int32(1520))
        cell = np.int32(cell + (np.int32(bits[i] >> np.int32(31)) & np.int32(1024)))
        cell = np.int32(2048) if magnitude == 0 else cell
        if magnitude >= np.int32(0x7F800000):
            infinite = np.int32(2050) if bits[i] > 0 else np.int32(2051)
            cell = np.int32(2049) if magnitude > np.int32(0x7F800000) else infinite
        cells[i] = np.uint16(cell)


@nb.njit
def _cells64(x: Any, cells: Any) -> None:
    bits = x.view(np.int64)
    for i in range(x.size):
        magnitude = bits[i] & 0x7FFFFFFFFFFFFFFF
        cell = max(15856, min(16879, magnitude >> 48)) - 15856 + (bits[i] >> 63 & 1024)
        cell = 2048 if magnitude == 0 else cell
        if magnitude >= 0x7FF0000000000000:
            infinite = 2050 if bits[i] > 0 else 2051
            cell = 2049 if magnitude > 0x7FF0000000000000 else infinite
        cells[i] = np.uint16(cell)


@nb.njit
def _tally(cells: Any, parts: Any, counts: Any) -> None:
    """How many elements each cell has, into `counts`. Four at a time, so that none waits for the one before."""
    parts[:] = 0
    for i in range(0, cells.size // 4 * 4, 4):
        parts[0, cells[i]] += np.uint16(1)
        parts[1, cells[i + 1]] += np.uint16(1)
        parts[2, cells[i + 2]] += np.uint16(1)
        parts[3, cells[i + 3]] += np.uint16(1)
    for i in range(cells.size // 4 * 4, cells.size):
        parts[0, cells[i]] += np.uint16(1)
    for i in range(CELLS):
        counts[i] = np.uint32(parts[0, i]) + np.uint32(parts[1, i]) + np.uint32(parts[2, i]) + np.uint32(parts[3, i])


@nb.njit
def _finite(x: Any, count: int) -> Any:
    """The `count` finite elements, in order."""
    kept, at = np.empty(count, x.dtype), 0
    for i in range(x.size):
        if x[i] - x[i] == 0:
            kept[at] = x[i]
            at += 1
    return kept


@nb.njit(fastmath=_ANY_ORDER)
def _moments(x: Any, numbers: Any) -> None:
    """Mean and M2 of finite values: two passes, in float64."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i])
    mean, m2 = total / x.size, 0.0
    for i in range(x.size):
        deviation = np.float64(x[i]) - mean
        m2 += deviation * deviation
    numbers[1], numbers[2] = mean, m2


# The bits of a float, those of a negative one turned around, are integers in the order of the values; and the least of
# integers is found by vector code, which the least of floats is not.


@nb.njit
def _bounds32(x: Any, numbers: Any) -> None:
    bits, low, high = x.view(np.int32), _MOST32, _LEAST32
    for i in range(bits.size):
        key = np.int32(bits[i] ^ np.int32(np.int32(bits[i] >> np.int32(31)) & _MOST32))
        low, high = min(low, key), max(high, key)
    bounds = np.empty(2, np.int32)
    bounds[0] = low ^ np.int32(np.int32(low >> np.int32(31)) & _MOST32)
    bounds[1] = high ^ np.int32(np.int32(high >> np.int32(31)) & _MOST32)
    ends = bounds.view(np.float32)
    numbers[3], numbers[4] = ends[0], ends[1]


@nb.njit
def _bounds64(x: Any, numbers: Any) -> None:
    bits, low, high = x.view(np.int64), np.int64(_MOST64), np.int64(_LEAST64)
    for i in range(bits.size):
        key = bits[i] ^ (bits[i] >> 63 & _MOST64)
        low, high = min(low, key), max(high, key)
    bounds = np.empty(2, np.int64)
    bounds[0], bounds[1] = low ^ (low >> 63 & _MOST64), high ^ (high >> 63 & _MOST64)
    ends = bounds.view(np.float64)
    numbers[3], numbers[4] = ends[0], ends[1]


@nb.njit
def _varint(code: Any, at: int, value: Any) -> int:
    while value >= 128:
        code[at] = np.uint8(value & 127 | 128)
        value >>= 7
        at += 1
    code[at] = np.uint8(value)
    return at + 1


@nb.njit
def _encode(counts: Any, code: Any) -> int:
    at = first = end = 0
    while True:
        while first < BINS and counts[first] == 0:
            first += 1
        if first == BINS:
            return at
        at = _varint(code, at, first - end)
        end = first
        while end < BINS and counts[end] != 0:
            end += 1
        at = _varint(code, at, end - first)
        for i in range(first, end):
            at = _varint(code, at, np.int64(counts[i]))
        first = end


def _teller(cells_of: Any, bounds_of: Any) -> Any:
    """One for each width of an element: the code of the other is not compiled with it."""

    @nb.njit
    def told(x: Any, cells: Any, parts: Any, counts: Any, numbers: Any, code: Any) -> int:
        """The digest of `x`; the bytes written to `code`. What is in `cells`, `parts` and `counts` does not matter."""
        cells_of(x, cells)
        _tally(cells, parts, counts)
        count = x.size - (counts[BINS + 1] + counts[BINS + 2] + counts[BINS + 3])
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] = count, np.nan, 0.0, np.nan, np.nan
        if count:
            kept = x if count == x.size else _finite(x, count)
            _moments(kept, numbers)
            bounds_of(kept, numbers)
        for i in range(4):
            numbers[5 + i] = counts[BINS + i]
        return _encode(counts, code)

    return told


_told32, _told64 = _teller(_cells32, _bounds32), _teller(_cells64, _bounds64)


@nb.njit
def _less(x: Any, before: Any) -> Any:
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = x[i] - before[i]
    return out


@nb.njit(fastmath=_IN_ORDER)
def _channels(x: Any, moments: Any) -> None:
    """Count, mean and M2 of each column of finite values of `x` (R, C), into (3, C)."""
    rows, columns = x.shape
    moments[:] = 0.0
    for i in range(rows):
        for j in range(columns):
            kept = x[i, j] - x[i, j] == 0
            moments[0, j] += 1.0 if kept else 0.0
            moments[1, j] += np.float64(x[i, j]) if kept else 0.0
    for j in range(columns):
        moments[1, j] = moments[1, j] / moments[0, j] if moments[0, j] else np.nan
    for i in range(rows):
        for j in range(columns):
            deviation = np.float64(x[i, j]) - moments[1, j]
            moments[2, j] += deviation * deviation if x[i, j] - x[i, j] == 0 else 0.0


@nb.njit
def _gathered(address: int, kind: int, step: int, places: Any, count: int, out: int) -> None:
    """Copy the elements at 0, `step`, 2·`step` … (or at `places`) of what lies at `address` to `out`.

    kind: the number of bytes of a float64, float32 or bfloat16 element, 3 for float16. To `out` go float64 for the
    first of them, else float32.
    """
    span = max(1, count) * step
    if kind == 8:
        _gather(nb.carray(_float64(address), (span,)), step, places, nb.carray(_float64(out), (count,)))
    elif kind == 4:
        _gather(nb.carray(_float32(address), (span,)), step, places, nb.carray(_float32(out), (count,)))
    elif kind == 3:
        _gather_float16(nb.carray(_uint16(address), (span,)), step, places, nb.carray(_float32(out), (count,)))
    else:
        _gather_bfloat16(nb.carray(_uint16(address), (span,)), step, places, nb.carray(_float32(out), (count,)))


@nb.njit(nb.void(*[nb.int64] * 7), cache=True, boundscheck=False, error_model="numpy")
def gather(address: int, kind: int, step: int, places: int, listed: int, count: int, out: int) -> None:
    """As `_gathered`, with the address of `listed` places, of which there may be none."""
    _gathered(address, kind, step, nb.carray(_int64(places), (listed,)), count, out)


@nb.cfunc(nb.void(types.voidptr), cache=True, error_model="numpy")
def gather_all(argument: Any) -> None:
    """The same of many tensors, by any number of threads at once; each takes the next tensor until none is left.

    The argument is an array of `WORDS` words: the number of tensors taken; its own address; the number of tensors; the
    address of the arguments of `gather`, 7 words a tensor.
    """
    address = _address(argument)
    words = nb.carray(_int64(address), (WORDS,))
    rows = nb.carray(_int64(words[3]), (words[2], 7))
    while True:
        at = _next(address)
        if at >= words[2]:
            break
        row = rows[at]
        _gathered(row[0], row[1], row[2], nb.carray(_int64(row[3]), (row[4],)), row[5], row[6])


def _telling(pointer: Any, told: Any) -> Any:
    @nb.njit
    def tell_all(argument: Any) -> None:
        address = _address(argument)
        words = nb.carray(_int64(address), (WORDS,))
        count = words[2]
        samples = nb.carray(_int64(words[3]), (count, 5))
        numbers = nb.carray(_float64(words[4]), (count, NUMBERS))
        codes = nb.carray(_uint8(words[5]), (count, words[6]))
        parts, counts = np.empty((4, CELLS), np.uint16), np.empty(CELLS, np.uint32)
        cells = np.empty(8192, np.uint16)
        while True:
            at = _next(address)
            if at >= count:
                break
            size, start, before = samples[at, 1], samples[at, 2], samples[at, 3]
            if cells.size < size:
                cells = np.empty(size, np.uint16)
            x = nb.carray(pointer(start), (size,))
            x = _less(x, nb.carray(pointer(before), (size,))) if before else x
            samples[at, 4] = told(x, cells[:size], parts, counts, numbers[at], codes[at])

    return tell_all


_tell32, _tell64 = _telling(_float32, _told32), _telling(_float64, _told64)


@nb.cfunc(nb.void(types.voidptr), cache=True, error_model="numpy")
def tell(argument: Any) -> None:
    """The digests of many samples of float32, by any number of threads at once; each takes the next until none is left.

    The argument is an array of `WORDS` words: the number of samples taken; its own address; the number of samples;
    then addresses of arrays with one entry a sample: (bytes of an element, elements, address, address of what is to be
    subtracted or 0, bytes written to its code), 5 words each; numbers (`NUMBERS` float64 each); codes, and the bytes
    that each has room for.
    """
    _tell32(argument)


@cache
def tell_wide() -> Any:
    """The same of float64, which few trainings have: compiled when it is first asked for."""

    @nb.cfunc(nb.void(types.voidptr), cache=True, error_model="numpy")
    def tell(argument: Any) -> None:
        _tell64(argument)

    return tell


@nb.njit(cache=True)
def channels(sample: Any, moments: Any) -> None:
    """Count, mean and M2 of the finite values of each column of `sample` (R, C), into `moments` (3, C)."""
    _channels(sample, moments)
