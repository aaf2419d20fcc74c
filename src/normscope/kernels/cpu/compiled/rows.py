"""Layer and RMS norm: every row of channels has statistics of its own, and is read while it lies in the first cache."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled.machine import (
    WORDS,
    activated,
    exponential,
    jit,
    kernel,
    load,
    normal_cdf,
    pointer,
    slope,
    store,
    take,
)

BLOCK = 1024  # columns whose sum is kept in float32
ROWS = 32  # rows whose sums for the affine part are kept in float32
NONE, MINUS_HALF, PEAK = np.float32(0), np.float32(-0.5), np.float32(1 / math.sqrt(2 * math.pi))


@jit
def _mean(xs: Any) -> float:
    total = 0.0
    for start in range(0, len(xs), BLOCK):
        part, block = NONE, xs[start : start + BLOCK]  # counted from 0, or the compiler minds negative places
        for i in range(len(block)):
            part += load(block, i)
        total += part
    return total / len(xs)


@jit
def _spread(xs: Any, high: Any) -> Any:
    """The means of x − high and of its square."""
    linear, square = 0.0, 0.0
    for start in range(0, len(xs), BLOCK):
        a, b, block = NONE, NONE, xs[start : start + BLOCK]
        for i in range(len(block)):
            d = load(block, i) - high
            a += d
            b += d * d
        linear += a
        square += b
    return linear / len(xs), square / len(xs)


@jit
def _write(
    xs: Any, ys: Any, more: Any, weight: Any, bias: Any, high: Any, rstd: Any, offset: Any, activation: int, added: bool
) -> None:
    if added:
        for i in range(len(xs)):
            z = ((load(xs, i) - high) * rstd - offset) * weight[i] + bias[i] + load(more, i)
            store(ys, i, activated(activation, z))
    else:
        for i in range(len(xs)):
            z = ((load(xs, i) - high) * rstd - offset) * weight[i] + bias[i]
            store(ys, i, activated(activation, z))


def forward(half: bool, activation: int, added: bool, rms: bool) -> Any:
    """A task is a panel of rows: measured, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word, real = carray(p, (WORDS,), np.int64), carray(p, (WORDS,), np.float64)
        own, tasks, rows, channels, panel, eps = word[1], word[2], word[3], word[4], word[5], real[9]
        every = rows * channels
        x, y = carray(pointer(word[10]), (every,), dtype), carray(pointer(word[11]), (every,), dtype)
        weight = carray(pointer(word[12]), (channels,), np.float32)
        bias = carray(pointer(word[13]), (channels,), np.float32)
        means, variances = (
            carray(pointer(word[14]), (rows,), np.float64),
            carray(pointer(word[15]), (rows,), np.float64),
        )
        more = carray(pointer(word[16]), (every if added else 1,), dtype)
        while True:
            t = take(own)
            if t >= tasks:
                break
            for row in range(t * panel, min(rows, (t + 1) * panel)):
                first, last = row * channels, (row + 1) * channels
                xs = x[first:last]
                mean = _mean(xs)
                high = NONE if rms else np.float32(mean)
                linear, square = _spread(xs, high)
                means[row] = mean if rms else high + linear
                variances[row] = square if rms else square - linear * linear
                rstd = 1.0 / math.sqrt(variances[row] + eps)
                offset = NONE if rms else np.float32(linear * rstd)
                _write(
                    xs, y[first:last], more[first:last] if added else more, weight, bias, high, np.float32(rstd),
                    offset, activation, added,
                )  # fmt: skip

    return kernel(run)


@jit
def _through(
    xs: Any, dys: Any, ms: Any, drs: Any, normal: Any, dz: Any, weight: Any, bias: Any, high: Any, rstd: Any,
    offset: Any, activation: int, kept: int,
) -> None:  # fmt: skip
    """x̂ into `normal`, and the gradient of what the activation was given into `dz`; with `kept`, also into `drs`."""
    for i in range(len(xs)):
        normal[i] = (load(xs, i) - high) * rstd - offset
    if activation == 0:
        for i in range(len(xs)):
            dz[i] = load(dys, i)
        return
    if kept == 1:
        for i in range(len(xs)):
            dz[i] = load(ms, i)
    else:
        for i in range(len(xs)):
            dz[i] = normal[i] * weight[i] + bias[i]
        if kept:
            for i in range(len(xs)):
                dz[i] += load(ms, i)
    _slopes(activation, dz)
    for i in range(len(xs)):
        dz[i] *= load(dys, i)
    if kept:
        for i in range(len(xs)):
            store(drs, i, dz[i])


@jit
def _slopes(activation: int, z: Any) -> None:
    """f′ in place of z: one loop for each f, since a loop that chooses within does not become vector code."""
    if activation == 1:
        for i in range(len(z)):
            z[i] = slope(1, z[i])
    elif activation == 2:
        for i in range(len(z)):
            z[i] = slope(2, z[i])
    elif activation == 3:
        for i in range(len(z)):
            z[i] = slope(3, z[i])
    else:  # Φ(z) + z·φ(z), in two
        density = np.empty(len(z), np.float32)
        for i in range(len(z)):
            density[i] = exponential(MINUS_HALF * z[i] * z[i])
        for i in range(len(z)):
            z[i] = normal_cdf(z[i]) + z[i] * PEAK * density[i]


@jit
def _means(normal: Any, dz: Any, weight: Any) -> Any:
    """Multiply dz by g; the mean of that, and of that times x̂."""
    plain, along = 0.0, 0.0
    for i in range(len(dz)):
        dz[i] *= weight[i]
    for start in range(0, len(dz), BLOCK):
        a, b, one, other = NONE, NONE, dz[start : start + BLOCK], normal[start : start + BLOCK]
        for i in range(len(one)):
            a += one[i]
            b += one[i] * other[i]
        plain += a
        along += b
    return plain / len(dz), along / len(dz)


@jit
def _add(total: Any, x: Any) -> None:
    for i in range(len(total)):
        total[i] += x[i]


@jit
def _add_product(total: Any, x: Any, y: Any) -> None:
    for i in range(len(total)):
        total[i] += x[i] * y[i]


@jit
def _write_back(dxs: Any, g: Any, normal: Any, plain: Any, along: Any, rstd: Any) -> None:
    for i in range(len(g)):
        store(dxs, i, rstd * (g[i] - plain - normal[i] * along))


def backward(half: bool, activation: int, kept: int, rms: bool) -> Any:
    """A task is a panel of rows; it writes their gradient, and its share of those of weight and bias."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word, real = carray(p, (WORDS,), np.int64), carray(p, (WORDS,), np.float64)
        own, tasks, rows, channels, panel, eps = word[1], word[2], word[3], word[4], word[5], real[9]
        every = rows * channels
        x, dx = carray(pointer(word[10]), (every,), dtype), carray(pointer(word[11]), (every,), dtype)
        weight = carray(pointer(word[12]), (channels,), np.float32)
        bias = carray(pointer(word[13]), (channels,), np.float32)
        means, variances = (
            carray(pointer(word[14]), (rows,), np.float64),
            carray(pointer(word[15]), (rows,), np.float64),
        )
        more = carray(pointer(word[16]), (every if kept else 1,), dtype)
        dy = carray(pointer(word[17]), (every,), dtype)
        dw, db = (
            carray(pointer(word[18]), (tasks, channels), np.float64),
            carray(pointer(word[19]), (tasks, channels), np.float64),
        )
        dr = carray(pointer(word[20]), (every if kept else 1,), dtype)
        normal, dz = np.empty(channels, np.float32), np.empty(channels, np.float32)
        of_weight, of_bias = np.empty(channels, np.float32), np.empty(channels, np.float32)
        while True:
            t = take(own)
            if t >= tasks:
                break
            dw[t], db[t] = 0.0, 0.0
            for begin in range(t * panel, min(rows, (t + 1) * panel), ROWS):
                of_weight[:] = NONE
                of_bias[:] = NONE
                for row in range(begin, min(rows, (t + 1) * panel, begin + ROWS)):
                    first, last = row * channels, (row + 1) * channels
                    high = NONE if rms else np.float32(means[row])
                    rstd = 1.0 / math.sqrt(variances[row] + eps)
                    offset = NONE if rms else np.float32((means[row] - high) * rstd)  # what float32 cannot hold of μ
                    inverse = np.float32(rstd)
                    _through(
                        x[first:last], dy[first:last], more[first:last] if kept else more,
                        dr[first:last] if kept else dr, normal, dz, weight, bias, high, inverse, offset, activation,
                        kept,
                    )  # fmt: skip
                    _add(of_bias, dz)
                    _add_product(of_weight, dz, normal)
                    plain, along = _means(normal, dz, weight)
                    a, b = np.float32(0.0 if rms else plain), np.float32(along)
                    dxs = dx[first:last]
                    _write_back(dxs, dz, normal, a, b, inverse)
                for i in range(channels):
                    dw[t, i] += of_weight[i]
                    db[t, i] += of_bias[i]

    return kernel(run)
