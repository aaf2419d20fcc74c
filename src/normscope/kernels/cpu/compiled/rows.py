"""Layer and RMS norm: every row of channels has statistics of its own, and is read while it lies in the first cache."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled.activations import activated, through
from normscope.kernels.cpu.compiled.loops import BLOCK, NONE, apart, mean, read, spread, write
from normscope.kernels.cpu.compiled.machine import WORDS, inlined, kernel, take
from normscope.kernels.cpu.compiled.operands import numbers, words

ROWS = 32  # rows whose sums for the affine part are kept in float32


@inlined
def _normal(xs: Any, i: int, high: Any, rstd: Any, offset: Any, rms: bool) -> Any:
    return read(xs, i) * rstd if rms else (read(xs, i) - high) * rstd - offset


@inlined
def _write(
    xs: Any, ys: Any, more: Any, weight: Any, bias: Any, high: Any, rstd: Any, offset: Any, activation: int,
    added: bool, rms: bool,
) -> None:  # fmt: skip
    apart()
    for i in range(len(xs)):
        z = _normal(xs, i, high, rstd, offset, rms) * read(weight, i) + read(bias, i)
        if added:
            z += read(more, i)
        write(ys, i, activated(activation, z))


def forward(half: bool, activation: int, added: bool, rms: bool) -> Any:
    """A task is a panel of rows: measured, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word, real = words(p), carray(p, (WORDS,), np.float64)
        own, tasks, rows, channels, panel, eps = word[1], word[2], word[3], word[4], word[5], real[9]
        every = rows * channels
        x, y = numbers(word, 10, every, dtype), numbers(word, 11, every, dtype)
        weight, bias = numbers(word, 12, channels, np.float32), numbers(word, 13, channels, np.float32)
        means, variances = numbers(word, 14, rows, np.float64), numbers(word, 15, rows, np.float64)
        more = numbers(word, 16, every if added else 1, dtype)
        while True:
            t = take(own)
            if t >= tasks:
                break
            for row in range(t * panel, min(rows, (t + 1) * panel)):
                first, last = row * channels, (row + 1) * channels
                xs = x[first:last]
                high = NONE if rms else np.float32(mean(xs))
                linear, square = spread(xs, high)
                means[row] = high + linear
                variances[row] = square if rms else square - linear * linear
                rstd = 1.0 / math.sqrt(variances[row] + eps)
                _write(
                    xs, y[first:last], more[first:last] if added else more, weight, bias, high, np.float32(rstd),
                    np.float32(linear * rstd), activation, added, rms,
                )  # fmt: skip

    return kernel(run)


@inlined
def _gathered(
    xs: Any, dys: Any, ms: Any, drs: Any, dz: Any, weight: Any, bias: Any, of_weight: Any, of_bias: Any, high: Any,
    rstd: Any, offset: Any, activation: int, kept: int, rms: bool,
) -> Any:  # fmt: skip
    """Add a row's share in the gradients of weight and bias; the means of g·dz, and of it times x̂.

    dz is the gradient of what the activation was given: it goes to `drs` with `kept`, and g·dz to `dz`.
    """
    apart()
    plain, along = 0.0, 0.0
    for start in range(0, len(xs), BLOCK):
        a, b = NONE, NONE
        for i in range(start, min(start + BLOCK, len(xs))):
            normal, d = _normal(xs, i, high, rstd, offset, rms), read(dys, i)
            if activation:
                z = read(ms, i) if kept == 1 else normal * read(weight, i) + read(bias, i)
                if kept == 2:
                    z += read(ms, i)
                d = through(activation, z, d)
            if kept:
                write(drs, i, d)
            write(of_bias, i, read(of_bias, i) + d)
            write(of_weight, i, read(of_weight, i) + d * normal)
            d *= read(weight, i)
            if activation:
                write(dz, i, d)
            a += d
            b += d * normal
        plain += a
        along += b
    return plain / len(xs), along / len(xs)


@inlined
def _write_back(
    xs: Any, dys: Any, dz: Any, dxs: Any, weight: Any, high: Any, rstd: Any, offset: Any, plain: Any, along: Any,
    activation: int, rms: bool,
) -> None:  # fmt: skip
    apart()
    for i in range(len(xs)):
        d = read(dz, i) if activation else read(dys, i) * read(weight, i)
        if not rms:
            d -= plain
        write(dxs, i, rstd * (d - _normal(xs, i, high, rstd, offset, rms) * along))


@inlined
def _add(total: Any, part: Any) -> None:
    """Add the float32 `part` to the float64 `total`, and begin it anew."""
    for i in range(len(total)):
        total[i] += np.float64(part[i])
        part[i] = NONE


def backward(half: bool, activation: int, kept: int, rms: bool) -> Any:
    """A task is a panel of rows; it writes their gradient, and its share of those of weight and bias."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        word, real = words(p), carray(p, (WORDS,), np.float64)
        own, tasks, rows, channels, panel, eps = word[1], word[2], word[3], word[4], word[5], real[9]
        every = rows * channels
        x, dx, dy = (
            numbers(word, 10, every, dtype),
            numbers(word, 11, every, dtype),
            numbers(word, 17, every, dtype),
        )
        weight, bias = numbers(word, 12, channels, np.float32), numbers(word, 13, channels, np.float32)
        means, variances = numbers(word, 14, rows, np.float64), numbers(word, 15, rows, np.float64)
        dw, db = numbers(word, 18, tasks * channels, np.float64), numbers(word, 19, tasks * channels, np.float64)
        more, dr = numbers(word, 16, every if kept else 1, dtype), numbers(word, 20, every if kept else 1, dtype)
        dz, of_weight, of_bias = np.zeros((3, channels), np.float32)
        while True:
            t = take(own)
            if t >= tasks:
                break
            dws, dbs = dw[t * channels : (t + 1) * channels], db[t * channels : (t + 1) * channels]
            dws[:] = 0.0
            dbs[:] = 0.0
            for begin in range(t * panel, min(rows, (t + 1) * panel), ROWS):
                for row in range(begin, min(rows, (t + 1) * panel, begin + ROWS)):
                    first, last = row * channels, (row + 1) * channels
                    high = NONE if rms else np.float32(means[row])
                    rstd = 1.0 / math.sqrt(variances[row] + eps)
                    offset = np.float32((means[row] - high) * rstd)  # what float32 cannot hold of μ
                    inverse = np.float32(rstd)
                    xs, dys = x[first:last], dy[first:last]
                    plain, along = _gathered(
                        xs, dys, more[first:last] if kept else more, dr[first:last] if kept else dr, dz, weight, bias,
                        of_weight, of_bias, high, inverse, offset, activation, kept, rms,
                    )  # fmt: skip
                    _write_back(
                        xs, dys, dz, dx[first:last], weight, high, inverse, offset, np.float32(plain),
                        np.float32(along), activation, rms,
                    )  # fmt: skip
                _add(dws, of_weight)
                _add(dbs, of_bias)

    return kernel(run)
