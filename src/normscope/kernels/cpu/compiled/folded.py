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
from normscope.kernels.cpu.compiled.machine import inlined, jit
from normscope.kernels.cpu.compiled.operands import fill, move, table

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
def room(address: int, channels: int, dtype: Any) -> Any:
    """A place to work in for rows of so many channels, 60 bytes for each of the columns of a wide row."""
    fold = LANES // math.gcd(channels, LANES)
    wide = fold * channels
    numbers, ends = table(address, 7, wide, np.float32), table(address + 44 * wide, 4, wide, dtype)
    for n in range(7):
        fill(numbers[n], NONE)
    for n in range(4):
        fill(ends[n], 0)
    return Room(fold, numbers, table(address + 28 * wide, 2, wide, np.float64), ends)


@jit
def tile(place: Any, values: Any, channels: int) -> None:
    """Set the coefficients by column from `values`, five by channel."""
    for n in range(5):
        for k in range(place.fold):
            move(values[n], 0, place.numbers[2 + n], k * channels, channels)


@inlined
def _turns(place: Any, rows: int) -> int:
    """2 where rows are left: not known before, so that what is done in each turn is compiled once."""
    return 1 + min(rows % place.fold, 1)


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
    for turn in range(_turns(place, rows)):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if turn:
            move(x, start, place.ends[0], 0, count)
        source, at = (place.ends[0], 0) if turn else (x, start)
        if count:
            _measure(source, at, wide, count // (wide * channels), channels, out, place, size)


@jit
def _measure(x: Any, at: int, rows: int, fold: int, channels: int, out: Any, place: Any, size: int) -> None:
    part, square, pivot = place.numbers[0], place.numbers[1], place.numbers[2]
    ones, squares = place.sums[0], place.sums[1]
    few = min(rows, PIVOT)
    fill(pivot, NONE)
    fill(ones, 0.0)
    panels.moments(x, at, few, pivot, ones, squares, part, square, size)
    for i in range(len(pivot)):
        pivot[i] = np.float32(ones[i] / few)
    fill(ones, 0.0)
    fill(squares, 0.0)
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


@inlined
def add(
    x: Any, dy: Any, more: Any, dr: Any, first: int, rows: int, channels: int, out: Any, place: Any, activation: int,
    kept: int, size: int,
) -> None:  # fmt: skip
    """Add Σ dz and Σ dz·(x − high) of each channel of these rows to `out`; with `kept` 1 or 2, write dz to `dr`."""
    ends, n, ones, products = place.ends, place.numbers, place.sums[0], place.sums[1]
    for turn in range(_turns(place, rows)):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if count == 0:
            continue
        at = 0 if turn else start
        if turn:
            move(x, start, ends[0], 0, count)
            move(dy, start, ends[1], 0, count)
            if kept > 0:
                move(more, start, ends[2], 0, count)
        fill(ones, 0.0)
        fill(products, 0.0)
        panels.sums(
            ends[0] if turn else x, ends[1] if turn else dy, ends[2] if turn else more, ends[3] if turn else dr, at,
            wide, n[2], n[3], n[4], ones, products, n[0], n[1], activation, kept, size,
        )  # fmt: skip
        if turn and kept > 0:
            move(ends[3], 0, dr, start, count)
        for k in range(count // (wide * channels)):
            for c in range(channels):
                out[0, c] += ones[k * channels + c]
                out[1, c] += products[k * channels + c]


@inlined
def write(
    x: Any, y: Any, more: Any, first: int, rows: int, channels: int, place: Any, activation: int, added: int, past: bool
) -> None:
    """Write the output of these rows."""
    ends, n = place.ends, place.numbers
    for turn in range(_turns(place, rows)):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if count == 0:
            continue
        at = 0 if turn else start
        if turn:
            move(x, start, ends[0], 0, count)
            if added:
                move(more, start, ends[2], 0, count)
        panels.write(
            ends[0] if turn else x, ends[3] if turn else y, ends[2] if turn else more, at, wide, n[2], n[3], n[4],
            activation, added, past and turn == 0,
        )  # fmt: skip
        if turn:
            move(ends[3], 0, y, start, count)


@inlined
def write_back(
    x: Any, dy: Any, dx: Any, first: int, rows: int, channels: int, place: Any, activation: int, restored: bool,
    past: bool,
) -> None:  # fmt: skip
    """Write the gradient of the input of these rows."""
    ends, n = place.ends, place.numbers
    for turn in range(_turns(place, rows)):
        start, count, wide = _piece(place, turn, first, rows, channels)
        if count == 0:
            continue
        at = 0 if turn else start
        if turn:
            move(x, start, ends[0], 0, count)
            move(dy, start, ends[1], 0, count)
        panels.write_back(
            ends[0] if turn else x, ends[1] if turn else dy, ends[3] if turn else dx, at, wide, n[2], n[3], n[4], n[5],
            n[6], activation, restored, past and turn == 0,
        )  # fmt: skip
        if turn:
            move(ends[3], 0, dx, start, count)
