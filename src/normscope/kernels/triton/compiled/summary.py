"""One reading of a tensor: what the moments, the sketch and the range of it are made of."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cell(v, BINS: tl.constexpr, LOWEST: tl.constexpr):
    """The cell of each float32 in the tally of `normscope.stats.sketch`: sign, exponent, and 4 bits of the mantissa."""
    bits = v.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    half: tl.constexpr = BINS // 2
    first: tl.constexpr = (127 + LOWEST) * 16
    cell = tl.minimum(tl.maximum((magnitude >> 19) - first, 0), half - 1) + tl.where(bits < 0, half, 0)
    cell = tl.where(magnitude == 0, BINS, cell)
    infinite = tl.where(bits < 0, BINS + 3, BINS + 2)
    cell = tl.where(magnitude == 0x7F800000, infinite, cell)
    return tl.where(magnitude > 0x7F800000, BINS + 1, cell)


@triton.jit
def summed(
    x, counts, numbers, size, gap, pitch, share, programs, BINS: tl.constexpr, LOWEST: tl.constexpr, ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of `share` numbers a program: the tally, int32 (rows, programs, ROOM), and float64 (rows, 5, programs).

    The rows lie `pitch` apart, and their numbers `gap`. The five: how many are finite, their mean and M2, the least and
    the greatest.
    """
    k, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x += row * pitch
    counts += row * programs * ROOM
    numbers += row * programs * 5
    i = tl.arange(0, BLOCK)
    begin = k.to(tl.int64) * share
    end = tl.minimum(begin + share, size)
    tally = tl.zeros([ROOM], dtype=tl.int32)
    nothing = tl.sum(tl.zeros([1], dtype=tl.float64), 0)
    seen, mean, m2 = nothing, nothing, nothing
    low, high = float("inf"), float("-inf")
    for step in range(0, share, BLOCK):
        at = begin + step + i
        inside = at < end
        v = tl.load(x + at * gap, mask=inside, other=0.0).to(tl.float32)
        tally += tl.histogram(tl.where(inside, _cell(v, BINS, LOWEST), ROOM - 1), ROOM)
        finite = inside & (tl.abs(v) < float("inf"))
        low = tl.minimum(low, tl.min(tl.where(finite, v, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(finite, v, float("-inf")), 0))
        # float64 throughout: squares of 1e38 must not overflow, and memory is still what this waits for
        many = tl.sum(tl.where(finite, 1.0, 0.0), 0).to(tl.float64)
        some = tl.maximum(many, 1.0)
        wide = tl.where(finite, v, 0.0).to(tl.float64)
        own = tl.sum(wide, 0) / some
        off = tl.where(finite, wide - own, 0.0)
        part = many / tl.maximum(seen + many, 1.0)
        delta = own - mean
        m2 += tl.sum(off * off, 0) + delta * delta * (seen * part)
        mean += delta * part
        seen += many
    tl.store(counts + k.to(tl.int64) * ROOM + tl.arange(0, ROOM), tally)
    tl.store(numbers + k, seen)
    tl.store(numbers + programs + k, mean)
    tl.store(numbers + 2 * programs + k, m2)
    tl.store(numbers + 3 * programs + k, low.to(tl.float64))
    tl.store(numbers + 4 * programs + k, high.to(tl.float64))


@triton.jit
def merged(
    counts, numbers, told, programs, CELLS: tl.constexpr, ROOM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr
):
    """What all programs of a row found, int64: the tally, then count, mean, M2, least, greatest as float64 bits.

    Chan's merge in a fixed order; without a finite number the mean, the least and the greatest are NaN.
    """
    row = tl.program_id(1).to(tl.int64)
    counts += row * programs * ROOM
    numbers += row * programs * 5
    told += row * (CELLS + 5)
    j, k = tl.program_id(0) * BJ + tl.arange(0, BJ), tl.arange(0, BK)
    tally = tl.zeros([BJ], dtype=tl.int64)
    for k0 in range(0, programs, BK):
        at = (k0 + k).to(tl.int64)[:, None] * ROOM + j[None, :]
        there = (k0 + k < programs)[:, None] & (j < CELLS)[None, :]
        tally += tl.sum(tl.load(counts + at, mask=there, other=0).to(tl.int64), 0)
    tl.store(told + j, tally, mask=j < CELLS)
    if tl.program_id(0) == 0:
        nothing = tl.sum(tl.zeros([1], dtype=tl.float64), 0)
        count, total, m2 = nothing, nothing, nothing
        low, high = nothing + float("inf"), nothing - float("inf")
        for k0 in range(0, programs, BK):
            there = k0 + k < programs
            many = tl.load(numbers + k0 + k, mask=there, other=0.0)
            count += tl.sum(many, 0)
            total += tl.sum(many * tl.load(numbers + programs + k0 + k, mask=there, other=0.0), 0)
            least = tl.load(numbers + 3 * programs + k0 + k, mask=there, other=float("inf"))
            greatest = tl.load(numbers + 4 * programs + k0 + k, mask=there, other=float("-inf"))
            low, high = tl.minimum(low, tl.min(least, 0)), tl.maximum(high, tl.max(greatest, 0))
        mean = total / count
        for k0 in range(0, programs, BK):
            there = k0 + k < programs
            many = tl.load(numbers + k0 + k, mask=there, other=0.0)
            off = tl.load(numbers + programs + k0 + k, mask=there, other=0.0) - mean
            m2 += tl.sum(tl.load(numbers + 2 * programs + k0 + k, mask=there, other=0.0), 0)
            m2 += tl.sum(tl.where(many > 0, many * off * off, 0.0), 0)
        empty = count == 0
        tl.store(told + CELLS, count.to(tl.int64, bitcast=True))
        tl.store(told + CELLS + 1, mean.to(tl.int64, bitcast=True))
        tl.store(told + CELLS + 2, m2.to(tl.int64, bitcast=True))
        tl.store(told + CELLS + 3, tl.where(empty, mean, low).to(tl.int64, bitcast=True))
        tl.store(told + CELLS + 4, tl.where(empty, mean, high).to(tl.int64, bitcast=True))
