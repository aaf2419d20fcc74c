"""Panels: rows of columns that lie one behind the other, looked at and written.

Memory is fast only where it is read in order, which is what prefetchers follow; sums over rows are fast only in
registers, which hold few columns. So a panel is summed in tiles of rows that fit the first cache, some columns at a
time, and meanwhile the next tile is fetched in order.

The width of a row is a multiple of `LANES`; `numbers` of x, scale… are float32, one a column.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.activations import activated, inverse, through
from normscope.kernels.cpu.compiled.lanes import LANES, fetch, lanes, once, put, store
from normscope.kernels.cpu.compiled.machine import inlined, jit
from normscope.kernels.cpu.compiled.operands import fill

ROWS = 64  # rows whose sums are kept in float32
TILE = 8192  # bytes of a tile
NONE = np.float32(0)


@jit
def moments(x: Any, at: int, rows: int, pivot: Any, ones: Any, squares: Any, part: Any, square: Any, size: int) -> None:
    """Σd and Σd² of each column, where d = x − pivot, added to the float64 `ones` and `squares`.

    The pivot is near the mean: of other rows of the panel, so that no sum is much larger than the spread.
    """
    once()
    width = len(pivot)
    tile = max(1, TILE // (width * size))
    for first in range(0, rows, ROWS):
        fill(part, NONE)
        fill(square, NONE)
        last = min(first + ROWS, rows)
        for start in range(first, last, tile):
            count = min(tile, last - start)
            here = at + start * width
            for i in range(0, width, LANES):
                there = here + count * width + i * count
                p, a, b = lanes(pivot, i), lanes(part, i), lanes(square, i)
                for r in range(count):
                    fetch(x, there + r * LANES)
                    d = lanes(x, here + r * width + i) - p
                    a += d
                    b += d * d
                put(part, i, a)
                put(square, i, b)
        for i in range(width):
            ones[i] += part[i]
            squares[i] += square[i]


@inlined
def sums(
    x: Any, dy: Any, more: Any, dr: Any, at: int, rows: int, high: Any, scale: Any, shift: Any, ones: Any,
    products: Any, part: Any, product: Any, activation: int, kept: int, size: int,
) -> None:  # fmt: skip
    """Σ dz and Σ dz·(x − high) of each column, added to `ones` and `products`; with `kept` 1 or 2, dz written to `dr`.

    With `kept` −1, `x` holds the output, the input of f is told from it, and Σ dz·(that − high) is added.
    """
    width = len(high)
    tile = max(1, TILE // ((3 if kept > 0 else 2) * width * size))
    for first in range(0, rows, ROWS):
        fill(part, NONE)
        fill(product, NONE)
        last = min(first + ROWS, rows)
        for start in range(first, last, tile):
            count = min(tile, last - start)
            here = at + start * width
            for i in range(0, width, LANES):
                there = here + count * width + i * count
                h, a, b = lanes(high, i), lanes(part, i), lanes(product, i)
                g, s = lanes(scale, i), lanes(shift, i)
                for r in range(count):
                    fetch(x, there + r * LANES)
                    fetch(dy, there + r * LANES)
                    place = here + r * width + i
                    u = lanes(x, place)
                    if kept < 0:
                        u = inverse(activation, u)
                    d = u - h
                    dz = lanes(dy, place)
                    if kept > 0:
                        fetch(more, there + r * LANES)
                        z = lanes(more, place)
                        if kept == 2:
                            z += d * g + s
                        dz = through(activation, z, dz)
                        put(dr, place, dz)
                    elif activation:
                        dz = through(activation, u if kept else d * g + s, dz)
                    a += dz
                    b += dz * d
                put(part, i, a)
                put(product, i, b)
        for i in range(width):
            ones[i] += part[i]
            products[i] += product[i]


@inlined
def write(
    x: Any, y: Any, more: Any, at: int, rows: int, high: Any, scale: Any, shift: Any, activation: int, added: int,
    past: bool,
) -> None:  # fmt: skip
    """Write y = f((x − high)·scale + shift + more); with `past`, past the caches."""
    width = len(high)
    for here in range(at, at + rows * width, width):
        for i in range(0, width, LANES):
            z = (lanes(x, here + i) - lanes(high, i)) * lanes(scale, i) + lanes(shift, i)
            if added:
                z += lanes(more, here + i)
            z = activated(activation, z)
            store(y, here + i, z, past)


@inlined
def write_back(
    x: Any, dy: Any, dx: Any, at: int, rows: int, high: Any, scale: Any, shift: Any, toward: Any, offset: Any,
    activation: int, restored: bool, past: bool,
) -> None:  # fmt: skip
    """Write dx = scale·dz + toward·(x − high) + offset, where dz = f′·dy; `restored` as `kept` −1 in `sums`."""
    width = len(high)
    for here in range(at, at + rows * width, width):
        for i in range(0, width, LANES):
            u = lanes(x, here + i)
            if restored:
                u = inverse(activation, u)
            d = u - lanes(high, i)
            g = lanes(scale, i)
            dz = lanes(dy, here + i)
            if activation:
                dz = through(activation, u if restored else d * g + lanes(shift, i), dz)
            value = g * dz + (lanes(toward, i) * d + lanes(offset, i))
            store(dx, here + i, value, past)


@jit
def coefficients(mean: float, var: float, eps: float, g: float, b: float) -> Any:
    """high, low, rstd, scale and shift of one channel: z = (x − high)·scale + shift, with mean = high + low."""
    rstd = 1.0 / math.sqrt(var + eps)
    high = np.float32(mean)
    low = mean - high
    return high, low, rstd, np.float32(g * rstd), np.float32(b - low * g * rstd)


@jit
def unscaled(scale: float, restored: bool) -> float:
    """What turns Σ dz·(that − high) of the restored input of f into Σ dz·(x − high): 1/scale."""
    return 1.0 / scale if restored else 1.0
