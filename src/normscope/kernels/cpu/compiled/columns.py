"""Batch norm of rows of channels: channels_last, (N, *S, C), and (N, C) without positions.

It takes three kernels: `sums` looks at panels of rows, `settled` merges what they found, channel by channel, and
`mapped` writes.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled import folded
from normscope.kernels.cpu.compiled.machine import jit, kernel, merge, pointer, take
from normscope.kernels.cpu.compiled.operands import bench, fill, kind_of, table, unpacked, words
from normscope.kernels.cpu.compiled.panels import coefficients, unscaled

BLOCK = 16  # channels of a task of `settled`


@jit
def _found(word: Any, channels: int) -> Any:
    """What the panels found: three numbers a panel and channel."""
    return carray(pointer(word[21]), (word[27], 3, channels), np.float64)


@jit
def _coefficients(word: Any, channels: int) -> Any:
    """The rows high, scale, shift, toward and offset of one number a channel."""
    return table(word[22], 5, channels, np.float32)


def sums(half: bool, smooth: int, back: bool) -> Any:
    """A task is a panel of rows; it writes its (count, mean, M2), or its Σ dz and Σ dz·(x − high), a channel each.

    What `kept` says is told in `panels.sums`.
    """
    dtype: Any = np.uint16 if half else np.float32
    size = 2 if half else 4

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        channels, rows, panel = o.channels, o.samples * o.positions, word[28]
        activation, kept = kind_of(word, smooth), word[34]
        found = _found(word, channels)
        place = folded.room(bench(word), channels, dtype)
        folded.tile(place, _coefficients(word, channels), channels)
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            first = t * panel
            count = min(panel, rows - first)
            for n in range(3):
                fill(found[t, n], 0.0)
            if back:
                folded.add(
                    o.x, o.dy, o.more, o.dr, first, count, channels, found[t], place, activation, kept, size
                )  # fmt: skip
            else:
                folded.measure(o.x, first, count, channels, found[t], place, size)

    return kernel(run)


def settled(back: bool) -> Any:
    """A task is some channels: what the panels found, merged in their order, and the numbers with which to write."""

    def run(p: Any) -> None:
        o, word = unpacked(p, np.float32), words(p)
        channels, panels, rows = o.channels, word[27], o.samples * o.positions
        measured, restored = word[8] == 0, word[34] < 0
        found = _found(word, channels)
        into = _coefficients(word, channels)
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            first, last = t * BLOCK, min(channels, (t + 1) * BLOCK)
            if not back and measured:
                for c in range(first, last):
                    o.mean[c], o.var[c] = 0.0, 0.0
                n = 0.0
                for k in range(panels):
                    more = found[k, 0, first]
                    for c in range(first, last):
                        _, o.mean[c], o.var[c] = merge(n, o.mean[c], o.var[c], more, found[k, 1, c], found[k, 2, c])
                    n += more
                for c in range(first, last):
                    o.var[c] /= n
            for c in range(first, last):
                high, low, rstd, scale, shift = coefficients(o.mean[c], o.var[c], o.eps, o.weight[c], o.bias[c])
                into[0, c], into[1, c], into[2, c] = shift if restored else high, scale, shift
                if back and panels:
                    back_to_x = unscaled(scale, restored)
                    plain, moved = 0.0, 0.0
                    for k in range(panels):
                        plain += found[k, 0, c]
                        moved += found[k, 1, c]
                    moved = (moved * back_to_x - low * plain) * rstd
                    o.db[c], o.dw[c] = plain, moved
                    g = o.weight[c] if measured else 0.0
                    into[3, c] = np.float32(-rstd * rstd * g * moved / rows * back_to_x)
                    into[4, c] = np.float32((-rstd * plain + rstd * rstd * low * moved) * g / rows)

    return kernel(run)


def mapped(half: bool, smooth: int, back: bool) -> Any:
    """A task is a panel of rows, written. Forward, `kept` says whether a residual is added."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        channels, rows, panel, past = o.channels, o.samples * o.positions, word[28], word[29] != 0
        activation, kept = kind_of(word, smooth), word[34]
        place = folded.room(bench(word), channels, dtype)
        folded.tile(place, _coefficients(word, channels), channels)
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            first = (o.tasks - 1 - t) * panel  # the last panels read are nearest
            count = min(panel, rows - first)
            if back:
                dz, kind = o.dr if kept > 0 else o.dy, 0 if kept > 0 else activation
                folded.write_back(o.x, dz, o.y, first, count, channels, place, kind, kept < 0, past)
            else:
                folded.write(o.x, o.y, o.more, first, count, channels, place, activation, kept, past)

    return kernel(run)
