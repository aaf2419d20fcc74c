"""Rows of channels taken as wide rows: a panel's columns are those of several rows, until they fill whole lanes.

The columns that are one channel are merged at the end. The rows that fill no wide row are one more, in a buffer whose
other columns nobody looks at.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from normscope.kernels.cpu.compiled import panels
from normscope.kernels.cpu.compiled.lanes import LANES
from normscope.kernels.cpu.compiled.machine import jit

PIVOT = 32  # wide rows whose mean the others are measured from
NONE = np.float32(0)


class Room(NamedTuple):
    """What a thread works in.

    Attributes:
        fold: rows of channels that are one wide row.
        numbers: float32 by column: two sums, and five coefficients.
        sums: float64 by column.
        ends: rows that fill no wide row: of x, dy, more, and of what is written.
    """

    fold: Any
    numbers: Any
    sums: Any
    ends: Any


@jit
def room(channels: int, dtype: Any) -> Any:
    """A place to work in for rows of so many channels."""
    fold = LANES // math.gcd(channels, LANES)
    wide = fold * channels
    return Room(fold, np.zeros((7, wide), np.float32), np.zeros((2, wide), np.float64), np.zeros((4, wide), dtype))


@jit
def tile(place: Any, values: Any, channels: int) -> None:
    """Set the coefficients by column from `values`, five by channel."""
    for n in range(5):
        for k in range(place.fold):
            place.numbers[2 + n, k * channels : (k + 1) * channels] = values[n]


@jit
def _piece(place: Any, turn: int, first: int, rows: int, channels: int) -> Any:
    """The wide rows, turn 0, or the numbers that are left as one more: where they begin, how many, in how many rows."""
    whole = rows // place.fold
    start = (first + turn * whole * place.fold) * channels
    if turn == 0:
        return start, whole * place.fold * channels, whole
    return start, (rows - whole * place.fold) * channels, 1


@jit
def measure(x: Any, first: int, rows: int, channels: int, out: Any, place: Any, size: int) -> None:
    """Merge (count, mean, M2) of each channel of these rows with those in `out`."""
    for turn in range(2):  # a loop that is called in one place is compiled once
        start, count, wide = _piece(place, turn, first, rows, channels)
        if turn:
            place.ends[0, :count] = x[start : start + count]
        source, at = (place.ends[0], 0) if turn else (x, start)
        if count:
            _measure(source, at, wide, count // (wide * channels), channels, out, place, size)


@jit
def _measure(x: Any, at: int, rows: int, fold: int, channels: int, out: Any, place: Any, size: int) -> None:
    part, square, pivot = place.numbers[0], place.numbers[1], place.numbers[2]
    ones, squares = place.sums[0], place.sums[1]
    few = min(rows, PIVOT)
    pivot[:] = NONE
    ones[:] = 0.0
    panels.moments(x, at, few, pivot, ones, squares, part, square, size)
    for i in range(len(pivot)):
        pivot[i] = np.float32(ones[i] / few)
    ones[:] = 0.0
    squares[:] = 0.0
    panels.moments(x, at, rows, pivot, ones, squares, part, square, size)
    share = 1.0 / rows
    for k in range(fold):
        blend, weight = rows / (out[0, 0] + rows), out[0, 0] * rows / (out[0, 0] + rows)  # Chan et al. 1979, eq. 2.1
        for c in range(channels):
            i = k * channels + c
            rest = ones[i] * share
            delta = pivot[i] + rest - out[1, c]
            out[0, c] += rows
            out[1, c] += delta * blend
            out[2, c] += squares[i] - ones[i] * rest + delta * delta * weight


@jit
def add(
    x: Any, dy: Any, more: Any, dr: Any, first: int, rows: int, channels: int, out: Any, place: Any, activation: int,
    kept: int, size: int,
) -> None:  # fmt: skip
    """Add Σ dz and Σ dz·(x − high) of each channel of these rows to `out`; with `kept` 1 or 2, write dz to `dr`."""
    ends, n, ones, products = place.ends, place.numbers, place.sums[0], place.sums[1]
    for turn in range(2):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if count == 0:
            continue
        end, at = start + count, 0 if turn else start
        if turn:
            ends[0, :count], ends[1, :count] = x[start:end], dy[start:end]
            if kept > 0:
                ends[2, :count] = more[start:end]
        ones[:] = 0.0
        products[:] = 0.0
        panels.sums(
            ends[0] if turn else x, ends[1] if turn else dy, ends[2] if turn else more, ends[3] if turn else dr, at,
            wide, n[2], n[3], n[4], ones, products, n[0], n[1], activation, kept, size,
        )  # fmt: skip
        if turn and kept > 0:
            dr[start:end] = ends[3, :count]
        for k in range(count // (wide * channels)):
            for c in range(channels):
                out[0, c] += ones[k * channels + c]
                out[1, c] += products[k * channels + c]


@jit
def write(
    x: Any, y: Any, more: Any, first: int, rows: int, channels: int, place: Any, activation: int, added: int, past: bool
) -> None:
    """Write the output of these rows."""
    ends, n = place.ends, place.numbers
    for turn in range(2):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if count == 0:
            continue
        end, at = start + count, 0 if turn else start
        if turn:
            ends[0, :count] = x[start:end]
            if added:
                ends[2, :count] = more[start:end]
        panels.write(
            ends[0] if turn else x, ends[3] if turn else y, ends[2] if turn else more, at, wide, n[2], n[3], n[4],
            activation, added, past and turn == 0,
        )  # fmt: skip
        if turn:
            y[start:end] = ends[3, :count]


@jit
def write_back(
    x: Any, dy: Any, dx: Any, first: int, rows: int, channels: int, place: Any, activation: int, restored: bool,
    past: bool,
) -> None:  # fmt: skip
    """Write the gradient of the input of these rows."""
    ends, n = place.ends, place.numbers
    for turn in range(2):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if count == 0:
            continue
        end, at = start + count, 0 if turn else start
        if turn:
            ends[0, :count], ends[1, :count] = x[start:end], dy[start:end]
        panels.write_back(
            ends[0] if turn else x, ends[1] if turn else dy, ends[3] if turn else dx, at, wide, n[2], n[3], n[4], n[5],
            n[6], activation, restored, past and turn == 0,
        )  # fmt: skip
        if turn:
            dx[start:end] = ends[3, :count]
