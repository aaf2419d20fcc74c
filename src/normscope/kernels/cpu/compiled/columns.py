"""Batch norm of rows of channels: channels_last, (N, *S, C), and (N, C) without positions.

Few channels make short rows; several of them are taken as one wide row, and the columns that are one channel are merged
at the end.

It takes three kernels: `sums` looks at panels of rows, `settled` merges what they found, channel by channel, and
`mapped` writes.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.machine import jit, kernel, merge, take
from normscope.kernels.cpu.compiled.operands import numbers, unpacked, words
from normscope.kernels.cpu.compiled.panels import coefficients, moments, summed, write, write_back

WIDE = 256  # columns of a wide row


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
def _tiled(values: Any, times: int) -> Any:
    """`values`, `times` times after each other."""
    count = len(values)
    out = np.empty(count * times, np.float32)
    for k in range(times):
        out[k * count : (k + 1) * count] = values
    return out


@jit
def _found(word: Any, channels: int) -> Any:
    """What the panels found: three numbers a panel and channel."""
    return numbers(word, 21, word[27] * 3 * channels, np.float64).reshape((word[27], 3, channels))


@jit
def _coefficients(word: Any, channels: int) -> Any:
    """The rows high, scale, shift, toward and offset of one number a channel."""
    return numbers(word, 22, 5 * channels, np.float32).reshape((5, channels))


def sums(half: bool, activation: int, kept: int, back: bool) -> Any:
    """A task is a panel of rows; it writes its (count, mean, M2), or its Σ dz and Σ dz·(x − high), a channel each."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        channels, rows, panel = o.channels, o.samples * o.positions, word[28]
        found = _found(word, channels)
        times = max(1, WIDE // channels)
        wide = times * channels
        a, b = np.empty(wide, np.float64), np.empty(wide, np.float64)
        part, square, linear = np.empty(wide, np.float32), np.empty(wide, np.float32), np.empty(wide, np.float32)
        with_what = _coefficients(word, channels)
        high, scale, shift = _tiled(with_what[0], times), _tiled(with_what[1], times), _tiled(with_what[2], times)
        while True:
            t = take(o.own)
            if t >= o.tasks:
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
                    summed(
                        o.x, o.dy, o.more, o.dr, start * channels, width, count, high[:width], scale[:width],
                        shift[:width], a[:width], b[:width], part[:width], square[:width], linear[:width], activation,
                        kept,
                    )  # fmt: skip
                    for k in range(fold):
                        for c in range(channels):
                            out[1, c] += a[k * channels + c]
                            out[2, c] += b[k * channels + c]
                else:
                    n = moments(
                        o.x, start * channels, width, count, a[:width], b[:width], part[:width], linear[:width],
                        square[:width],
                    )  # fmt: skip
                    _folded(out, a, b, n, fold, channels)

    return kernel(run)


def settled(back: bool) -> Any:
    """A task is a channel: what the panels found, merged in their order, and the numbers with which to write."""

    def run(p: Any) -> None:
        o, word = unpacked(p, np.float32), words(p)
        channels, panels, rows = o.channels, word[27], o.samples * o.positions
        measured = word[8] == 0
        found = _found(word, channels)
        with_what = _coefficients(word, channels)
        high, scale, shift, toward, offset = with_what[0], with_what[1], with_what[2], with_what[3], with_what[4]
        block = 16
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            for c in range(t * block, min(channels, (t + 1) * block)):
                if not back and measured:
                    n, mean, m2 = 0.0, 0.0, 0.0
                    for k in range(panels):
                        n, mean, m2 = merge(n, mean, m2, found[k, 0, c], found[k, 1, c], found[k, 2, c])
                    o.mean[c], o.var[c] = mean, m2 / n
                high[c], low, rstd, scale[c], shift[c] = coefficients(
                    o.mean[c], o.var[c], o.eps, o.weight[c], o.bias[c]
                )
                if back and panels:
                    plain, moved = 0.0, 0.0
                    for k in range(panels):
                        plain += found[k, 1, c]
                        moved += found[k, 2, c]
                    moved = (moved - low * plain) * rstd
                    o.of_bias[c], o.of_weight[c] = plain, moved
                    g = o.weight[c] if measured else 0.0
                    toward[c] = np.float32(-rstd * rstd * g * moved / rows)
                    offset[c] = np.float32((-rstd * plain + rstd * rstd * low * moved) * g / rows)

    return kernel(run)


def mapped(half: bool, activation: int, kept: int, back: bool) -> Any:
    """A task is a panel of rows, written. Forward, `kept` says whether a residual is added."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        channels, rows, panel = o.channels, o.samples * o.positions, word[28]
        times = max(1, WIDE // channels)
        with_what = _coefficients(word, channels)
        high, scale, shift = _tiled(with_what[0], times), _tiled(with_what[1], times), _tiled(with_what[2], times)
        toward, offset = _tiled(with_what[3], times), _tiled(with_what[4], times)
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            first = (o.tasks - 1 - t) * panel  # the last panels read are nearest
            last = min(rows, first + panel)
            middle = first + (last - first) // times * times
            for turn in range(2):
                start, count = (first, (middle - first) // times) if turn == 0 else (middle, last - middle)
                width = (times if turn == 0 else 1) * channels
                if count and back:
                    write_back(
                        o.x, o.dr if kept else o.dy, o.y, start * channels, width, count, high[:width], scale[:width],
                        shift[:width], toward[:width], offset[:width], 0 if kept else activation,
                    )  # fmt: skip
                elif count:
                    write(
                        o.x, o.y, o.more, start * channels, width, count, high[:width], scale[:width], shift[:width],
                        activation, kept > 0,
                    )  # fmt: skip

    return kernel(run)
