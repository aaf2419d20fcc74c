"""Batch, group and instance norm of rows of channels: channels_last, (N, *S, C), and (N, C) without positions.

A panel is a part of the rows and of the columns. Few channels make short rows; where a panel spans all columns, several
rows are taken as one wide row, and the columns that are one channel are merged at the end.

Batch norm takes three kernels: `sums` looks at panels, `settled` merges what they found, channel by channel, and
`mapped` writes. A sample's group or instance norm is one task of `forward` or `backward`.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled.machine import (
    WORDS,
    activated,
    jit,
    kernel,
    load,
    merge,
    pointer,
    slope,
    store,
    take,
)

WIDE = 256  # columns of a wide row
ROWS = 32  # rows whose sums are kept in float32
NONE = np.float32(0)


@jit
def _moments(x: Any, at: int, pitch: int, rows: int, mean: Any, m2: Any, part: Any, linear: Any, square: Any) -> float:
    """Mean and M2 of each column of a panel; the last three are float32 of the same width. The count."""
    width = len(mean)
    mean[:] = 0.0
    m2[:] = 0.0
    n = 0.0
    for first in range(0, rows, ROWS):
        count = min(ROWS, rows - first)
        start = at + first * pitch
        part[:] = NONE
        linear[:] = NONE
        square[:] = NONE
        for r in range(count):
            row = x[start + r * pitch : start + r * pitch + width]
            for i in range(width):
                part[i] += load(row, i)
        share = 1.0 / count
        for i in range(width):
            part[i] *= np.float32(share)
        for r in range(count):
            row = x[start + r * pitch : start + r * pitch + width]
            for i in range(width):
                d = load(row, i) - part[i]
                linear[i] += d
                square[i] += d * d
        total = n + count
        blend, weight = count / total, n * count / total
        for i in range(width):
            rest = linear[i] * share
            delta = part[i] + rest - mean[i]
            mean[i] += delta * blend
            m2[i] += square[i] - linear[i] * rest + delta * delta * weight
        n = total
    return n


@jit
def _sums(
    x: Any, dy: Any, more: Any, dr: Any, at: int, pitch: int, rows: int, high: Any, scale: Any, shift: Any,
    ones: Any, products: Any, part: Any, product: Any, row: Any, activation: int, kept: int,
) -> None:  # fmt: skip
    """Σ dz and Σ dz·(x − high) of each column, added to `ones` and `products`; with `kept`, dz written to `dr`.

    One loop reads and writes few arrays, so that the compiler can prove them apart and make vector code of it.
    """
    width = len(high)
    for first in range(0, rows, ROWS):
        part[:] = NONE
        product[:] = NONE
        for r in range(first, min(first + ROWS, rows)):
            start = at + r * pitch
            xs, dys = x[start : start + width], dy[start : start + width]
            if kept:
                ms, drs = more[start : start + width], dr[start : start + width]
                for i in range(width):
                    z = load(ms, i)
                    if kept == 2:
                        z += (load(xs, i) - high[i]) * scale[i] + shift[i]
                    row[i] = load(dys, i) * slope(activation, z)
                for i in range(width):
                    store(drs, i, row[i])
            elif activation:
                for i in range(width):
                    row[i] = load(dys, i) * slope(activation, (load(xs, i) - high[i]) * scale[i] + shift[i])
            else:
                for i in range(width):
                    row[i] = load(dys, i)
            for i in range(width):
                part[i] += row[i]
                product[i] += row[i] * (load(xs, i) - high[i])
        for i in range(width):
            ones[i] += part[i]
            products[i] += product[i]


@jit
def _write(
    x: Any, y: Any, more: Any, at: int, pitch: int, rows: int, high: Any, scale: Any, shift: Any, activation: int,
    added: bool,
) -> None:  # fmt: skip
    width = len(high)
    for r in range(rows):
        start = at + r * pitch
        xs, ys = x[start : start + width], y[start : start + width]
        if added:
            rs = more[start : start + width]
            for i in range(width):
                store(ys, i, activated(activation, (load(xs, i) - high[i]) * scale[i] + shift[i] + load(rs, i)))
        else:
            for i in range(width):
                store(ys, i, activated(activation, (load(xs, i) - high[i]) * scale[i] + shift[i]))


@jit
def _write_back(
    x: Any, dz: Any, dx: Any, at: int, pitch: int, rows: int, high: Any, scale: Any, shift: Any, toward: Any,
    offset: Any, activation: int,
) -> None:  # fmt: skip
    width = len(high)
    row = np.empty(width, np.float32)
    for r in range(rows):
        start = at + r * pitch
        xs, dzs, dxs = x[start : start + width], dz[start : start + width], dx[start : start + width]
        if activation:
            for i in range(width):
                row[i] = load(dzs, i) * slope(activation, (load(xs, i) - high[i]) * scale[i] + shift[i])
        else:
            for i in range(width):
                row[i] = load(dzs, i)
        for i in range(width):
            store(dxs, i, scale[i] * row[i] + toward[i] * (load(xs, i) - high[i]) + offset[i])


@jit
def _folded(out: Any, mean: Any, m2: Any, n: float, fold: int, channels: int) -> None:
    """Merge the columns that are one channel, of `n` numbers each, and then with what `out` holds."""
    for c in range(channels):
        together, squares = 0.0, 0.0
        for k in range(fold):
            together += mean[k * channels + c]
            squares += m2[k * channels + c]
        together /= fold
        for k in range(fold):
            delta = mean[k * channels + c] - together
            squares += n * delta * delta
        out[0, c], out[1, c], out[2, c] = merge(out[0, c], out[1, c], out[2, c], n * fold, together, squares)


@jit
def _tiled(values: Any, first: int, count: int, times: int) -> Any:
    """`count` values from `first` on, `times` times after each other."""
    out = np.empty(count * times, np.float32)
    for k in range(times):
        out[k * count : (k + 1) * count] = values[first : first + count]
    return out


@jit
def _coefficients(mean: float, var: float, eps: float, g: float, b: float) -> Any:
    """high, low, rstd, scale and shift of one channel: z = (x − high)·scale + shift, with mean = high + low."""
    rstd = 1.0 / math.sqrt(var + eps)
    high = np.float32(mean)
    low = mean - high
    return high, low, rstd, np.float32(g * rstd), np.float32(b - low * g * rstd)


# batch norm -------------------------------------------------------------------------------------------------


def sums(half: bool, activation: int, kept: int, back: bool) -> Any:
    """A task is a panel of rows; it writes its (count, mean, M2), or its Σ dz and Σ dz·(x − high), a channel each."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word = carray(p, (WORDS,), np.int64)
        own, tasks, rows, channels, panel = word[1], word[2], word[3], word[4], word[6]
        every = rows * channels
        x = carray(pointer(word[10]), (every,), dtype)
        found = carray(pointer(word[21]), (tasks, 3, channels), np.float64)
        high, scale, shift = (
            carray(pointer(word[22]), (channels,), np.float32),
            carray(pointer(word[23]), (channels,), np.float32),
            carray(pointer(word[24]), (channels,), np.float32),
        )
        more = carray(pointer(word[16]), (every if kept else 1,), dtype)
        dy = carray(pointer(word[17]), (every if back else 1,), dtype)
        dr = carray(pointer(word[20]), (every if kept else 1,), dtype)
        times = max(1, WIDE // channels)
        wide = times * channels
        a, b = np.empty(wide, np.float64), np.empty(wide, np.float64)
        part, square, linear = np.empty(wide, np.float32), np.empty(wide, np.float32), np.empty(wide, np.float32)
        if back:
            highs, scales, shifts = (
                _tiled(high, 0, channels, times),
                _tiled(scale, 0, channels, times),
                _tiled(shift, 0, channels, times),
            )
        while True:
            t = take(own)
            if t >= tasks:
                break
            first = t * panel
            last = min(rows, first + panel)
            middle = first + (last - first) // times * times
            out = found[t]
            out[:] = 0.0
            for turn in range(2):  # the wide rows, and the rows that are left
                start, count = (first, (middle - first) // times) if turn == 0 else (middle, last - middle)
                fold = times if turn == 0 else 1
                width = fold * channels
                if count == 0:
                    continue
                if back:
                    a[:width] = 0.0
                    b[:width] = 0.0
                    _sums(
                        x, dy, more, dr, start * channels, width, count, highs[:width], scales[:width], shifts[:width],
                        a[:width], b[:width], part[:width], square[:width], linear[:width], activation, kept,
                    )  # fmt: skip
                    for k in range(fold):
                        for c in range(channels):
                            out[1, c] += a[k * channels + c]
                            out[2, c] += b[k * channels + c]
                else:
                    n = _moments(
                        x, start * channels, width, count, a[:width], b[:width], part[:width], linear[:width],
                        square[:width],
                    )  # fmt: skip
                    _folded(out, a, b, n, fold, channels)

    return kernel(run)


def settled(back: bool) -> Any:
    """A task is a channel: what the panels found, merged in their order, and the numbers with which to write."""

    def run(p: Any) -> None:
        word, real = carray(p, (WORDS,), np.int64), carray(p, (WORDS,), np.float64)
        own, tasks, rows, channels, panels, eps = word[1], word[2], word[3], word[4], word[5], real[9]
        measured = word[8] == 0
        weight, bias = (
            carray(pointer(word[12]), (channels,), np.float32),
            carray(pointer(word[13]), (channels,), np.float32),
        )
        means, variances = (
            carray(pointer(word[14]), (channels,), np.float64),
            carray(pointer(word[15]), (channels,), np.float64),
        )
        dw, db = carray(pointer(word[18]), (channels,), np.float64), carray(pointer(word[19]), (channels,), np.float64)
        found = carray(pointer(word[21]), (panels, 3, channels), np.float64)
        high, scale, shift, toward, offset = (
            carray(pointer(word[22]), (channels,), np.float32),
            carray(pointer(word[23]), (channels,), np.float32),
            carray(pointer(word[24]), (channels,), np.float32),
            carray(pointer(word[25]), (channels,), np.float32),
            carray(pointer(word[26]), (channels,), np.float32),
        )
        block = 16
        while True:
            t = take(own)
            if t >= tasks:
                break
            for c in range(t * block, min(channels, (t + 1) * block)):
                if not back and measured:
                    n, mean, m2 = 0.0, 0.0, 0.0
                    for k in range(panels):
                        n, mean, m2 = merge(n, mean, m2, found[k, 0, c], found[k, 1, c], found[k, 2, c])
                    means[c], variances[c] = mean, m2 / n
                high[c], low, rstd, scale[c], shift[c] = _coefficients(means[c], variances[c], eps, weight[c], bias[c])
                if back and panels:
                    plain, moved = 0.0, 0.0
                    for k in range(panels):
                        plain += found[k, 1, c]
                        moved += found[k, 2, c]
                    moved = (moved - low * plain) * rstd
                    db[c], dw[c] = plain, moved
                    g = weight[c] if measured else 0.0
                    toward[c] = np.float32(-rstd * rstd * g * moved / rows)
                    offset[c] = np.float32((-rstd * plain + rstd * rstd * low * moved) * g / rows)

    return kernel(run)


def mapped(half: bool, activation: int, kept: int, back: bool) -> Any:
    """A task is a panel of rows, written. Forward, `kept` says whether a residual is added."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word = carray(p, (WORDS,), np.int64)
        own, tasks, rows, channels, panel = word[1], word[2], word[3], word[4], word[6]
        every = rows * channels
        x, y = carray(pointer(word[10]), (every,), dtype), carray(pointer(word[11]), (every,), dtype)
        more = carray(pointer(word[16]), (every if kept else 1,), dtype)
        dz = carray(pointer(word[20] if kept else word[17]), (every if back else 1,), dtype)
        times = max(1, WIDE // channels)
        high, scale, shift = (
            _tiled(carray(pointer(word[22]), (channels,), np.float32), 0, channels, times),
            _tiled(carray(pointer(word[23]), (channels,), np.float32), 0, channels, times),
            _tiled(carray(pointer(word[24]), (channels,), np.float32), 0, channels, times),
        )
        if back:
            toward, offset = (
                _tiled(carray(pointer(word[25]), (channels,), np.float32), 0, channels, times),
                _tiled(carray(pointer(word[26]), (channels,), np.float32), 0, channels, times),
            )
        while True:
            t = take(own)
            if t >= tasks:
                break
            first = (tasks - 1 - t) * panel  # the last panels read are nearest
            last = min(rows, first + panel)
            middle = first + (last - first) // times * times
            for turn in range(2):
                start, count = (first, (middle - first) // times) if turn == 0 else (middle, last - middle)
                width = (times if turn == 0 else 1) * channels
                if count and back:
                    _write_back(
                        x, dz, y, start * channels, width, count, high[:width], scale[:width], shift[:width],
                        toward[:width], offset[:width], 0 if kept else activation,
                    )  # fmt: skip
                elif count:
                    _write(
                        x, y, more, start * channels, width, count, high[:width], scale[:width], shift[:width],
                        activation, kept > 0,
                    )  # fmt: skip

    return kernel(run)


# group and instance norm ------------------------------------------------------------------------------------


def forward(half: bool, activation: int, added: bool) -> Any:
    """A task is some groups of one sample: measured, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word, real = carray(p, (WORDS,), np.int64), carray(p, (WORDS,), np.float64)
        own, samples, channels, rows, groups = word[1], word[3], word[4], word[5], word[6]
        together, eps = word[7], real[9]  # groups of a task
        every = samples * channels * rows
        x, y = carray(pointer(word[10]), (every,), dtype), carray(pointer(word[11]), (every,), dtype)
        weight, bias = (
            carray(pointer(word[12]), (channels,), np.float32),
            carray(pointer(word[13]), (channels,), np.float32),
        )
        means, variances = (
            carray(pointer(word[14]), (samples * groups,), np.float64),
            carray(pointer(word[15]), (samples * groups,), np.float64),
        )
        more = carray(pointer(word[16]), (every if added else 1,), dtype)
        inner = channels // groups
        parts = (groups + together - 1) // together
        widest = together * inner
        a, b = np.empty(widest, np.float64), np.empty(widest, np.float64)
        high, scale, shift = (
            np.empty(widest, np.float32),
            np.empty(widest, np.float32),
            np.empty(widest, np.float32),
        )
        while True:
            t = take(own)
            if t >= samples * parts:
                break
            n, first = t // parts, t % parts * together
            width = min(together, groups - first) * inner
            at = n * rows * channels + first * inner
            count = _moments(x, at, channels, rows, a[:width], b[:width], high[:width], scale[:width], shift[:width])
            for k in range(width // inner):
                total, mean, m2 = 0.0, 0.0, 0.0
                for i in range(k * inner, (k + 1) * inner):
                    total, mean, m2 = merge(total, mean, m2, count, a[i], b[i])
                var = m2 / total
                means[n * groups + first + k], variances[n * groups + first + k] = mean, var
                for i in range(k * inner, (k + 1) * inner):
                    c = first * inner + i
                    high[i], _, _, scale[i], shift[i] = _coefficients(mean, var, eps, weight[c], bias[c])
            _write(x, y, more, at, channels, rows, high[:width], scale[:width], shift[:width], activation, added)

    return kernel(run)


def backward(half: bool, activation: int, kept: int) -> Any:
    """A task is some groups of one sample: summed, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word, real = carray(p, (WORDS,), np.int64), carray(p, (WORDS,), np.float64)
        own, samples, channels, rows, groups = word[1], word[3], word[4], word[5], word[6]
        together, eps = word[7], real[9]
        every = samples * channels * rows
        x, dx = carray(pointer(word[10]), (every,), dtype), carray(pointer(word[11]), (every,), dtype)
        weight, bias = (
            carray(pointer(word[12]), (channels,), np.float32),
            carray(pointer(word[13]), (channels,), np.float32),
        )
        means, variances = (
            carray(pointer(word[14]), (samples * groups,), np.float64),
            carray(pointer(word[15]), (samples * groups,), np.float64),
        )
        more = carray(pointer(word[16]), (every if kept else 1,), dtype)
        dy = carray(pointer(word[17]), (every,), dtype)
        dw, db = (
            carray(pointer(word[18]), (samples * channels,), np.float64),
            carray(pointer(word[19]), (samples * channels,), np.float64),
        )
        dr = carray(pointer(word[20]), (every if kept else 1,), dtype)
        inner = channels // groups
        parts = (groups + together - 1) // together
        widest = together * inner
        ones, products = np.empty(widest, np.float64), np.empty(widest, np.float64)
        high, scale, shift = np.empty(widest, np.float32), np.empty(widest, np.float32), np.empty(widest, np.float32)
        toward, offset, row = (
            np.empty(widest, np.float32),
            np.empty(widest, np.float32),
            np.empty(widest, np.float32),
        )
        while True:
            t = take(own)
            if t >= samples * parts:
                break
            n, first = t // parts, t % parts * together
            width = min(together, groups - first) * inner
            at = n * rows * channels + first * inner
            for i in range(width):
                c = first * inner + i
                g = n * groups + c // inner
                high[i], _, _, scale[i], shift[i] = _coefficients(means[g], variances[g], eps, weight[c], bias[c])
            ones[:width] = 0.0
            products[:width] = 0.0
            _sums(
                x, dy, more, dr, at, channels, rows, high[:width], scale[:width], shift[:width], ones[:width],
                products[:width], toward[:width], offset[:width], row[:width], activation, kept,
            )  # fmt: skip
            for k in range(width // inner):
                g = n * groups + first + k
                _, low, rstd, _, _ = _coefficients(means[g], variances[g], eps, 1.0, 0.0)
                of_one, of_x = 0.0, 0.0
                for i in range(k * inner, (k + 1) * inner):
                    c = first * inner + i
                    moved = (products[i] - low * ones[i]) * rstd
                    db[n * channels + c], dw[n * channels + c] = ones[i], moved
                    of_one += weight[c] * ones[i]
                    of_x += weight[c] * moved
                size = rows * inner
                for i in range(k * inner, (k + 1) * inner):
                    toward[i] = np.float32(-rstd * rstd * of_x / size)
                    offset[i] = np.float32((-rstd * of_one + rstd * rstd * low * of_x) / size)
            _write_back(
                x, dr if kept else dy, dx, at, channels, rows, high[:width], scale[:width], shift[:width],
                toward[:width], offset[:width], 0 if kept else activation,
            )  # fmt: skip

    return kernel(run)
