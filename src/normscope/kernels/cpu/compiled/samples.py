"""Group and instance norm of rows of channels: channels_last, and (N, *S, C).

A task is some groups of one sample, as many as a core's cache holds, so that the second look does not go to memory.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.machine import kernel, merge, take
from normscope.kernels.cpu.compiled.operands import unpacked, words
from normscope.kernels.cpu.compiled.panels import coefficients, moments, summed, write, write_back


def forward(half: bool, activation: int, added: bool) -> Any:
    """A task is measured, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, together = unpacked(p, dtype), words(p)[7]
        channels, rows, groups = o.channels, o.positions, o.groups
        inner = channels // groups
        parts = (groups + together - 1) // together
        widest = together * inner
        a, b = np.empty(widest, np.float64), np.empty(widest, np.float64)
        high, scale, shift = np.empty(widest, np.float32), np.empty(widest, np.float32), np.empty(widest, np.float32)
        while True:
            t = take(o.own)
            if t >= o.samples * parts:
                break
            n, first = t // parts, t % parts * together
            width = min(together, groups - first) * inner
            at = n * rows * channels + first * inner
            count = moments(o.x, at, channels, rows, a[:width], b[:width], high[:width], scale[:width], shift[:width])
            for k in range(width // inner):
                total, mean, m2 = 0.0, 0.0, 0.0
                for i in range(k * inner, (k + 1) * inner):
                    total, mean, m2 = merge(total, mean, m2, count, a[i], b[i])
                var = m2 / total
                o.mean[n * groups + first + k], o.var[n * groups + first + k] = mean, var
                for i in range(k * inner, (k + 1) * inner):
                    c = first * inner + i
                    high[i], _, _, scale[i], shift[i] = coefficients(mean, var, o.eps, o.weight[c], o.bias[c])
            write(o.x, o.y, o.more, at, channels, rows, high[:width], scale[:width], shift[:width], activation, added)

    return kernel(run)


def backward(half: bool, activation: int, kept: int) -> Any:
    """A task is summed, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, together = unpacked(p, dtype), words(p)[7]
        channels, rows, groups = o.channels, o.positions, o.groups
        inner = channels // groups
        parts = (groups + together - 1) // together
        widest = together * inner
        ones, products = np.empty(widest, np.float64), np.empty(widest, np.float64)
        high, scale, shift = np.empty(widest, np.float32), np.empty(widest, np.float32), np.empty(widest, np.float32)
        toward, offset, row = np.empty(widest, np.float32), np.empty(widest, np.float32), np.empty(widest, np.float32)
        while True:
            t = take(o.own)
            if t >= o.samples * parts:
                break
            n, first = t // parts, t % parts * together
            width = min(together, groups - first) * inner
            at = n * rows * channels + first * inner
            for i in range(width):
                c = first * inner + i
                g = n * groups + c // inner
                high[i], _, _, scale[i], shift[i] = coefficients(o.mean[g], o.var[g], o.eps, o.weight[c], o.bias[c])
            ones[:width] = 0.0
            products[:width] = 0.0
            summed(
                o.x, o.dy, o.more, o.dr, at, channels, rows, high[:width], scale[:width], shift[:width], ones[:width],
                products[:width], toward[:width], offset[:width], row[:width], activation, kept,
            )  # fmt: skip
            for k in range(width // inner):
                g = n * groups + first + k
                _, low, rstd, _, _ = coefficients(o.mean[g], o.var[g], o.eps, 1.0, 0.0)
                of_one, of_x = 0.0, 0.0
                for i in range(k * inner, (k + 1) * inner):
                    c = first * inner + i
                    moved = (products[i] - low * ones[i]) * rstd
                    o.of_bias[n * channels + c], o.of_weight[n * channels + c] = ones[i], moved
                    of_one += o.weight[c] * ones[i]
                    of_x += o.weight[c] * moved
                size = rows * inner
                for i in range(k * inner, (k + 1) * inner):
                    toward[i] = np.float32(-rstd * rstd * of_x / size)
                    offset[i] = np.float32((-rstd * of_one + rstd * rstd * low * of_x) / size)
            write_back(
                o.x, o.dr if kept else o.dy, o.y, at, channels, rows, high[:width], scale[:width], shift[:width],
                toward[:width], offset[:width], 0 if kept else activation,
            )  # fmt: skip

    return kernel(run)
