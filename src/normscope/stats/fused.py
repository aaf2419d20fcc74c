"""One read of a tensor gives everything that a `Digest` holds: compiled loops over the memory of CPU tensors.

The only file of this part that imports Numba. What is computed is specified by `sample.strided` (which elements),
`sketch.cells` (which bin), `moments.two_pass` and `code.encode`; the tests hold every number to those.
Memory is told by its address: making a NumPy array of a tensor costs as much as a tenth of the whole summary.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

BINS, CELLS = 2048, 2052  # as in `sketch`: bins, then exact zeros, NaN, +∞, −∞
MOST = 2**18 - 4  # elements: a quarter of them still fits 16 bits

_IN_ORDER = {"nsz", "contract"}
_ANY_ORDER = {"reassoc", "nsz", "contract", "nnan", "ninf"}  # where every value is known to be finite
_HALF_SCALES = np.ldexp(np.float32(1), np.maximum(np.arange(32), 1) - 25)  # by the exponent of a float16


def _cast(kind: Any) -> Any:
    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_float32, _float64, _uint16, _int64, _uint8 = map(_cast, (nb.float32, nb.float64, nb.uint16, nb.int64, nb.uint8))


@nb.njit
def _gather(x: Any, step: int, places: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = x[places[i] if places.size else i * step]


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
def _tally(cells: Any) -> Any:
    """How many elements each cell has, uint32 (CELLS,). Four at a time, so that none waits for the one before."""
    parts = np.zeros((4, CELLS), np.uint16)
    for i in range(0, cells.size // 4 * 4, 4):
        parts[0, cells[i]] += np.uint16(1)
        parts[1, cells[i + 1]] += np.uint16(1)
        parts[2, cells[i + 2]] += np.uint16(1)
        parts[3, cells[i + 3]] += np.uint16(1)
    for i in range(cells.size // 4 * 4, cells.size):
        parts[0, cells[i]] += np.uint16(1)
    counts = np.empty(CELLS, np.uint32)
    for i in range(CELLS):
        counts[i] = np.uint32(parts[0, i]) + np.uint32(parts[1, i]) + np.uint32(parts[2, i]) + np.uint32(parts[3, i])
    return counts


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
    """Mean, M2, low and high of finite values: two passes, in float64."""
    total, low, high = 0.0, x[0], x[0]
    for i in range(x.size):
        total += np.float64(x[i])
    for i in range(x.size):
        low, high = min(low, x[i]), max(high, x[i])
    mean, m2 = total / x.size, 0.0
    for i in range(x.size):
        deviation = np.float64(x[i]) - mean
        m2 += deviation * deviation
    numbers[1], numbers[2], numbers[3], numbers[4] = mean, m2, low, high


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


@nb.njit
def _tell(x: Any, cells: Any, numbers: Any, code: Any) -> int:
    counts = _tally(cells)
    count = x.size - (counts[BINS + 1] + counts[BINS + 2] + counts[BINS + 3])
    numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] = count, np.nan, 0.0, np.nan, np.nan
    if count == x.size and count:
        _moments(x, numbers)
    elif count:
        _moments(_finite(x, count), numbers)
    for i in range(4):
        numbers[5 + i] = counts[BINS + i]
    return _encode(counts, code)


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


_WORDS = nb.int64
_PLACES = nb.int64[::1]
_TOLD = (nb.float64[::1], nb.uint8[::1])


def _compiled(*arguments: Any) -> Any:
    return nb.njit(nb.int64(*arguments, *_TOLD), cache=True, boundscheck=False)


@_compiled(nb.int64, nb.int64, nb.int64, _PLACES, nb.boolean, nb.float32[::1])
def told32(address: int, kind: int, step: int, places: Any, less: bool, sample: Any, numbers: Any, code: Any) -> int:
    """The digest of the elements at 0, `step`, 2·`step` … (or at `places`) of what lies at `address`.

    kind: the number of bytes of a float32 or bfloat16 element, 3 for float16. sample: float32, as long as elements
    are to be read; it is filled with them. less: whether the digest is of the elements less what `sample` holds.
    numbers: filled with count, mean, M2, low, high, zeros, NaN, +∞, −∞. Returns the bytes written to `code`.
    """
    read = np.empty(sample.size, np.float32) if less else sample
    span = max(1, sample.size) * step
    if kind == 4:
        _gather(nb.carray(_float32(address), (span,)), step, places, read)
    elif kind == 3:
        _gather_float16(nb.carray(_uint16(address), (span,)), step, places, read)
    else:
        _gather_bfloat16(nb.carray(_uint16(address), (span,)), step, places, read)
    if less:
        for i in range(read.size):
            read[i] -= sample[i]
    cells = np.empty(read.size, np.uint16)
    _cells32(read, cells)
    return _tell(read, cells, numbers, code)


@_compiled(nb.int64, nb.int64, _PLACES, nb.boolean, nb.float64[::1])
def told64(address: int, step: int, places: Any, less: bool, sample: Any, numbers: Any, code: Any) -> int:
    """The same of float64 elements."""
    read = np.empty(sample.size, np.float64) if less else sample
    _gather(nb.carray(_float64(address), (max(1, sample.size) * step,)), step, places, read)
    if less:
        for i in range(read.size):
            read[i] -= sample[i]
    cells = np.empty(read.size, np.uint16)
    _cells64(read, cells)
    return _tell(read, cells, numbers, code)


@nb.njit([nb.void(nb.float32[:, ::1], nb.float64[:, ::1]), nb.void(nb.float64[:, ::1], nb.float64[:, ::1])], cache=True)
def channels(sample: Any, moments: Any) -> None:
    """Count, mean and M2 of the finite values of each column of `sample` (R, C), into `moments` (3, C)."""
    _channels(sample, moments)
