"""Group and instance norm of rows of channels: channels_last, and (N, *S, C).

A task is a sample: the second look at it does not go to memory where a core's share of the caches holds it.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled import folded
from normscope.kernels.cpu.compiled.machine import finish, jit, kernel, merge, take
from normscope.kernels.cpu.compiled.operands import bench, fill, gather, kind_of, table, unpacked, words
from normscope.kernels.cpu.compiled.panels import coefficients, unscaled

PART = 32768  # numbers that are written one behind the other


@jit
def _settled(o: Any, n: int, found: Any, into: Any) -> None:
    """Merge what was found of the channels of each group of sample n, and set the coefficients by channel."""
    inner = o.channels // o.groups
    for g in range(o.groups):
        total, mean, m2 = 0.0, 0.0, 0.0
        for c in range(g * inner, (g + 1) * inner):
            total, mean, m2 = merge(total, mean, m2, found[0, c], found[1, c], found[2, c])
        o.mean[n * o.groups + g], o.var[n * o.groups + g] = mean, m2 / total
    _aimed(o, n, into, False)


@jit
def _aimed(o: Any, n: int, into: Any, restored: bool) -> None:
    """The coefficients of the forward pass by channel."""
    inner = o.channels // o.groups
    for c in range(o.channels):
        g = n * o.groups + c // inner
        high, _, _, scale, shift = coefficients(o.mean[g], o.var[g], o.eps, o.weight[c], o.bias[c])
        into[0, c], into[1, c], into[2, c] = shift if restored else high, scale, shift


@jit
def _settled_back(o: Any, n: int, found: Any, into: Any, restored: bool) -> None:
    """The gradients of the affine part of sample n, and the coefficients of the backward pass."""
    inner = o.channels // o.groups
    size = o.positions * inner
    for g in range(o.groups):
        s = n * o.groups + g
        _, low, rstd, _, _ = coefficients(o.mean[s], o.var[s], o.eps, 1.0, 0.0)
        of_one, of_x = 0.0, 0.0
        for c in range(g * inner, (g + 1) * inner):
            moved = (found[1, c] * unscaled(into[1, c], restored) - low * found[0, c]) * rstd
            o.of_bias[n * o.channels + c], o.of_weight[n * o.channels + c] = found[0, c], moved
            of_one += o.weight[c] * found[0, c]
            of_x += o.weight[c] * moved
        for c in range(g * inner, (g + 1) * inner):
            into[3, c] = np.float32(-rstd * rstd * of_x / size * unscaled(into[1, c], restored))
            into[4, c] = np.float32((-rstd * of_one + rstd * rstd * low * of_x) / size)


def forward(half: bool, smooth: int) -> Any:
    """A task is measured, and written."""
    dtype: Any = np.uint16 if half else np.float32
    size = 2 if half else 4

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        past, activation, added = word[29] != 0, kind_of(word, smooth), word[34]
        own = bench(word)
        found, into = table(own, 3, o.channels, np.float64), table(own + 24 * o.channels, 5, o.channels, np.float32)
        place = folded.room(own + 48 * o.channels, o.channels, dtype)
        part = max(1, PART // (o.channels * place.fold)) * place.fold
        parts = (o.positions + part - 1) // part
        while True:
            n = take(o.own)
            if n >= o.tasks:
                break
            for r in range(3):
                fill(found[r], 0.0)
            folded.measure(o.x, n * o.positions, o.positions, o.channels, found, place, size)
            _settled(o, n, found, into)
            folded.tile(place, into, o.channels)
            for k in range(parts - 1, -1, -1):  # what was read last is nearest
                first, rows = n * o.positions + k * part, min(part, o.positions - k * part)
                folded.write(o.x, o.y, o.more, first, rows, o.channels, place, activation, added, past)

    return kernel(run)


def backward(half: bool, smooth: int) -> Any:
    """A task is summed, and written."""
    dtype: Any = np.uint16 if half else np.float32
    size = 2 if half else 4

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        past, activation, kept = word[29] != 0, kind_of(word, smooth), word[34]
        own = bench(word)
        found, into = table(own, 3, o.channels, np.float64), table(own + 24 * o.channels, 5, o.channels, np.float32)
        place = folded.room(own + 48 * o.channels, o.channels, dtype)
        part = max(1, PART // (o.channels * place.fold)) * place.fold
        parts = (o.positions + part - 1) // part
        while True:
            n = take(o.own)
            if n >= o.tasks:
                break
            for r in range(3):
                fill(found[r], 0.0)
            _aimed(o, n, into, kept < 0)
            folded.tile(place, into, o.channels)
            folded.add(
                o.x, o.dy, o.more, o.dr, n * o.positions, o.positions, o.channels, found, place, activation, kept, size
            )  # fmt: skip
            _settled_back(o, n, found, into, kept < 0)
            folded.tile(place, into, o.channels)
            dz, kind = o.dr if kept > 0 else o.dy, 0 if kept > 0 else activation
            for k in range(parts - 1, -1, -1):
                first, rows = n * o.positions + k * part, min(part, o.positions - k * part)
                folded.write_back(o.x, dz, o.y, first, rows, o.channels, place, kind, kept < 0, past)
            if finish(o.own) == o.tasks:
                gather(o, o.samples)

    return kernel(run)
