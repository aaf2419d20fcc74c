"""Panels of rows of channels: measured, summed and written, column by column.

A panel is a part of the rows and of the columns, which lie side by side; its rows are `pitch` numbers apart.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.machine import activated, jit, load, slope, store

ROWS = 32  # rows whose sums are kept in float32
NONE = np.float32(0)


@jit
def moments(x: Any, at: int, pitch: int, rows: int, mean: Any, m2: Any, part: Any, linear: Any, square: Any) -> float:
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
def summed(
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
def write(
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
def write_back(
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
def coefficients(mean: float, var: float, eps: float, g: float, b: float) -> Any:
    """high, low, rstd, scale and shift of one channel: z = (x − high)·scale + shift, with mean = high + low."""
    rstd = 1.0 / math.sqrt(var + eps)
    high = np.float32(mean)
    low = mean - high
    return high, low, rstd, np.float32(g * rstd), np.float32(b - low * g * rstd)
