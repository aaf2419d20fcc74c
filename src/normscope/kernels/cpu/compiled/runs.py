"""Batch, group and instance norm of contiguous (N, C, S): a statistic is a task.

A statistic covers runs of S numbers side by side: those of one channel in all samples (batch), or of the channels of
one group in one sample (group, instance). A run of the tensor has the number n·C + c. The cells of a statistic are read
twice, and fit a core's cache for all usual shapes, so that the second read does not go to memory.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.machine import LINE, activated, fetch, jit, kernel, load, merge, slope, store, take
from normscope.kernels.cpu.compiled.operands import unpacked, words

BLOCK = 4096  # numbers that stay in the first cache between two looks
PART = 256  # numbers between two rounds of prefetches
NONE = np.float32(0)


@jit
def _moments(x: Any, at: int, size: int, base: int, stride: int, runs: int, length: int) -> Any:
    """(count, mean, M2) of `runs` runs of `length` from `base` on; the address and the size of a number to prefetch."""
    n, mean, m2 = 0.0, 0.0, 0.0
    step = min(length, BLOCK)
    together = max(1, BLOCK // max(step, 1))
    pieces = (length + step - 1) // step if step else 0
    for first in range(0, runs, together):
        count = min(together, runs - first)
        for piece in range(pieces):
            here = base + first * stride + piece * step
            width = min(step, length - piece * step)
            there = here + step if piece + 1 < pieces else base + (first + count) * stride
            ahead = count if piece + 1 < pieces else min(count, runs - first - count)
            n2, mean2, m22 = _block(x, here, stride, count, width, at + there * size, ahead, size)
            n, mean, m2 = merge(n, mean, m2, n2, mean2, m22)
    return n, mean, m2


@jit
def _block(x: Any, base: int, stride: int, runs: int, width: int, there: int, ahead: int, size: int) -> Any:
    """(count, mean, M2) of a block in two looks; during the second, `ahead` runs at the address `there` are fetched."""
    total = 0.0
    for r in range(runs):
        row = x[base + r * stride : base + r * stride + width]
        part = NONE
        for i in range(width):
            part += load(row, i)
        total += part
    n = float(runs * width)
    about = np.float32(total / n)
    first, second = 0.0, 0.0
    for r in range(runs):
        for start in range(0, width, PART):
            end = min(start + PART, width)
            row = x[base + r * stride + start : base + r * stride + end]
            if r < ahead:
                line = there + (r * stride + start) * size
                for offset in range(0, (end - start) * size, LINE):
                    fetch(line + offset)
            linear, square = NONE, NONE
            for i in range(end - start):
                d = load(row, i) - about
                linear += d
                square += d * d
            first += linear
            second += square
    return n, about + first / n, second - first * first / n


def forward(half: bool, activation: int, added: bool) -> Any:
    """The forward kernel: float32, or bfloat16 as `half`; `added` adds a residual."""
    dtype: Any = np.uint16 if half else np.float32
    size = 2 if half else 4

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        samples, channels, length, groups, batch, given = o.samples, o.channels, o.positions, o.groups, word[7], word[8]
        x, y, weight, bias, means, variances, more = o.x, o.y, o.weight, o.bias, o.mean, o.var, o.more
        inner = channels // groups
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            runs = samples if batch else inner
            base = t * length if batch else t * inner * length
            stride = channels * length if batch else length
            channel = t if batch else (t % groups) * inner
            if not given:
                n, mean, m2 = _moments(x, word[10], size, base, stride, runs, length)
                means[t], variances[t] = mean, m2 / n
            rstd = 1.0 / math.sqrt(variances[t] + o.eps)
            high = np.float32(means[t])
            low = means[t] - high
            for back in range(runs):
                r = back
                g = weight[channel + (0 if batch else r)] * rstd
                scale = np.float32(g)
                shift = np.float32(bias[channel + (0 if batch else r)] - low * g)
                at = base + r * stride
                xs, ys = x[at : at + length], y[at : at + length]
                if added:
                    rs = more[at : at + length]
                    for i in range(length):
                        store(ys, i, activated(activation, (load(xs, i) - high) * scale + shift + load(rs, i)))
                else:
                    for i in range(length):
                        store(ys, i, activated(activation, (load(xs, i) - high) * scale + shift))

    return kernel(run)


def backward(half: bool, activation: int, kept: int) -> Any:
    """The backward kernel; `kept` is what tells the slope: 0 the input alone, 1 the output, 2 the residual.

    With 1 and 2 the gradient of the residual is written in the first look, and read in its place in the second.
    """
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        samples, channels, length, groups, batch, given = o.samples, o.channels, o.positions, o.groups, word[7], word[8]
        x, dx, weight, bias, means, variances = o.x, o.y, o.weight, o.bias, o.mean, o.var
        more, dy, dw, db, dr = o.more, o.dy, o.of_weight, o.of_bias, o.dr
        inner = channels // groups
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            runs = samples if batch else inner
            base = t * length if batch else t * inner * length
            stride = channels * length if batch else length
            channel = t if batch else (t % groups) * inner
            rstd = 1.0 / math.sqrt(variances[t] + o.eps)
            high = np.float32(means[t])
            low = means[t] - high
            of_one, of_x = 0.0, 0.0
            for r in range(runs):
                g = weight[channel + (0 if batch else r)]
                scale = np.float32(g * rstd)
                shift = np.float32(bias[channel + (0 if batch else r)] - low * g * rstd)
                plain, moved = 0.0, 0.0
                for start in range(0, length, BLOCK):
                    at = base + r * stride + start
                    width = min(BLOCK, length - start)
                    xs, dys = x[at : at + width], dy[at : at + width]
                    ones, products = NONE, NONE
                    if kept:
                        ms, drs = more[at : at + width], dr[at : at + width]
                        for i in range(width):
                            d = load(xs, i) - high
                            z = load(ms, i)
                            if kept == 2:
                                z += d * scale + shift
                            dz = load(dys, i) * slope(activation, z)
                            store(drs, i, dz)
                            ones += dz
                            products += dz * d
                    else:
                        for i in range(width):
                            d = load(xs, i) - high
                            dz = load(dys, i)
                            if activation:
                                dz *= slope(activation, d * scale + shift)
                            ones += dz
                            products += dz * d
                    plain += ones
                    moved += products
                moved = (moved - low * plain) * rstd
                db[base // length + r * (channels if batch else 1)] = plain
                dw[base // length + r * (channels if batch else 1)] = moved
                of_one += g * plain
                of_x += g * moved
            n = float(runs * length)
            if given:
                of_one, of_x = 0.0, 0.0
            toward = np.float32(-rstd * rstd * of_x / n)
            offset = np.float32(-rstd * of_one / n + rstd * rstd * low * of_x / n)
            for back in range(runs):
                r = back
                g = weight[channel + (0 if batch else r)]
                scale = np.float32(g * rstd)
                shift = np.float32(bias[channel + (0 if batch else r)] - low * g * rstd)
                at = base + r * stride
                xs, dxs = x[at : at + length], dx[at : at + length]
                dys = dr[at : at + length] if kept else dy[at : at + length]
                for i in range(length):
                    d = load(xs, i) - high
                    dz = load(dys, i)
                    if activation and not kept:
                        dz *= slope(activation, d * scale + shift)
                    store(dxs, i, scale * dz + toward * d + offset)

    return kernel(run)
