"""One time step of an LSTM with layer or RMS norm inside: norms, gates and cell of a row while it lies in the cache."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled.loops import BLOCK, NONE, apart, mean, read, spread, write
from normscope.kernels.cpu.compiled.machine import F1, WORDS, exponential, jit, kernel, pointer, take

_TWO, _NEAR = np.float32(2), np.float32(0.625)
_T0, _T1, _T2 = np.float32(-5.70498872745e-3), np.float32(2.06390887954e-2), np.float32(-5.37397155531e-2)
_T3, _T4 = np.float32(1.33314422036e-1), np.float32(-3.33332819422e-1)


@jit
def sigmoid(z: Any) -> Any:
    """1 / (1 + e^−z)."""
    return F1 / (F1 + exponential(-z))


@jit
def tanh(z: Any) -> Any:
    """The hyperbolic tangent: a polynomial near 0, where 1 − 2 / (e^2z + 1) would cancel (Cephes' tanhf)."""
    s = z * z
    near = ((((_T0 * s + _T1) * s + _T2) * s + _T3) * s + _T4) * s * z + z
    far = F1 - _TWO / (F1 + exponential(_TWO * z))
    return near if s < _NEAR * _NEAR else far


@jit
def _measured(xs: Any, rms: bool, eps: float, told: Any) -> None:
    """Mean and 1/σ of `xs` into `told`."""
    high = NONE if rms else np.float32(mean(xs))
    linear, square = spread(xs, high)
    told[0] = 0.0 if rms else high + linear
    told[1] = 1.0 / math.sqrt((square if rms else square - linear * linear) + eps)


@jit
def _normal(xs: Any, told: Any, out: Any) -> None:
    """x̂, from what was told of `xs`."""
    high = np.float32(told[0])
    rest = np.float32((told[0] - high) * told[1])  # what float32 cannot hold of the mean
    scale = np.float32(told[1])
    for i in range(len(xs)):
        out[i] = (xs[i] - high) * scale - rest


def forward(rms: bool) -> Any:
    """A task is some rows of the batch."""

    def run(p: Any) -> None:
        word, real = carray(p, (WORDS,), np.int64), carray(p, (WORDS,), np.float64)
        own, tasks, rows, hidden, panel, eps = word[1], word[2], word[3], word[4], word[5], real[9]
        product, given = (
            carray(pointer(word[10]), (rows, 4 * hidden), np.float32),
            carray(pointer(word[12]), (rows, 4 * hidden), np.float32),
        )
        weight, bias, cell = (
            carray(pointer(word[13]), (4 * hidden,), np.float32),
            carray(pointer(word[14]), (4 * hidden,), np.float32),
            carray(pointer(word[15]), (hidden,), np.float32),
        )
        before, after, out = (
            carray(pointer(word[16]), (rows, hidden), np.float32),
            carray(pointer(word[17]), (rows, hidden), np.float32),
            carray(pointer(word[11]), (rows, hidden), np.float32),
        )
        gates = carray(pointer(word[18]), (rows, 4 * hidden), np.float32)
        told = carray(pointer(word[19]), (rows, 4), np.float64)
        normal, of_cell = np.empty(4 * hidden, np.float32), np.empty(hidden, np.float32)
        while True:
            t = take(own)
            if t >= tasks:
                break
            for row in range(t * panel, min(rows, (t + 1) * panel)):
                z, x, c, c0, h = gates[row], given[row], after[row], before[row], out[row]
                _measured(product[row], rms, eps, told[row, :2])
                _normal(product[row], told[row, :2], normal)
                for j in range(4 * hidden):
                    normal[j] = normal[j] * weight[j] + (x[j] + bias[j])
                for j in range(4 * hidden):
                    z[j] = sigmoid(normal[j])
                candidate = normal[2 * hidden : 3 * hidden]
                i, f, g, o = z[:hidden], z[hidden : 2 * hidden], z[2 * hidden : 3 * hidden], z[3 * hidden :]
                for j in range(hidden):
                    g[j] = tanh(candidate[j])
                for j in range(hidden):
                    c[j] = f[j] * c0[j] + i[j] * g[j]
                _measured(c, rms, eps, told[row, 2:])
                _normal(c, told[row, 2:], of_cell)
                for j in range(hidden):
                    h[j] = o[j] * tanh(of_cell[j] * cell[j])

    return kernel(run)


@jit
def _back(normal: Any, dz: Any, weight: Any, of_weight: Any, rms: bool, scale: Any, out: Any) -> None:
    """Through a norm: its share of the weight's gradient, and the gradient of what it was given added to `out`."""
    apart()
    plain, along = 0.0, 0.0
    for start in range(0, len(dz), BLOCK):
        a, b = NONE, NONE
        for j in range(start, min(start + BLOCK, len(dz))):
            n, d = read(normal, j), read(dz, j)
            write(of_weight, j, read(of_weight, j) + np.float64(d * n))
            d *= read(weight, j)
            write(dz, j, d)
            a += d
            b += d * n
        plain += a
        along += b
    plain, along = plain / len(dz), along / len(dz)
    a, b, s = np.float32(0.0 if rms else plain), np.float32(along), np.float32(scale)
    for j in range(len(dz)):
        write(out, j, read(out, j) + s * (read(dz, j) - a - read(normal, j) * b))


def backward(rms: bool) -> Any:
    """A task is some rows of the batch, always the same ones, so that it can gather the gradients of the weights."""

    def run(p: Any) -> None:
        word = carray(p, (WORDS,), np.int64)
        own, tasks, rows, hidden, panel = word[1], word[2], word[3], word[4], word[5]
        product, of_product, of_given = (
            carray(pointer(word[10]), (rows, 4 * hidden), np.float32),
            carray(pointer(word[11]), (rows, 4 * hidden), np.float32),
            carray(pointer(word[12]), (rows, 4 * hidden), np.float32),
        )
        weight, cell = (
            carray(pointer(word[13]), (4 * hidden,), np.float32),
            carray(pointer(word[15]), (hidden,), np.float32),
        )
        before, after, dh, dc = (
            carray(pointer(word[16]), (rows, hidden), np.float32),
            carray(pointer(word[17]), (rows, hidden), np.float32),
            carray(pointer(word[20]), (rows, hidden), np.float32),
            carray(pointer(word[21]), (rows, hidden), np.float32),
        )
        gates = carray(pointer(word[18]), (rows, 4 * hidden), np.float32)
        told = carray(pointer(word[19]), (rows, 4), np.float64)
        dw = carray(pointer(word[22]), (tasks, 4 * hidden), np.float64)
        dcell = carray(pointer(word[23]), (tasks, hidden), np.float64)
        normal, of_cell = np.empty(4 * hidden, np.float32), np.empty(hidden, np.float32)
        dz, wide = np.empty(hidden, np.float32), np.empty(4 * hidden, np.float32)
        squashed = np.empty(hidden, np.float32)
        while True:
            t = take(own)
            if t >= tasks:
                break
            for row in range(t * panel, min(rows, (t + 1) * panel)):
                z, da, c0, up, along = gates[row], of_given[row], before[row], dh[row], dc[row]
                i, f, g, o = z[:hidden], z[hidden : 2 * hidden], z[2 * hidden : 3 * hidden], z[3 * hidden :]
                _normal(after[row], told[row, 2:], of_cell)
                for j in range(hidden):
                    squashed[j] = tanh(of_cell[j] * cell[j])
                for j in range(hidden):
                    dz[j] = up[j] * o[j] * (F1 - squashed[j] * squashed[j])
                _back(of_cell, dz, cell, dcell[t], rms, told[row, 3], along)
                di, df = da[:hidden], da[hidden : 2 * hidden]
                dg, do = da[2 * hidden : 3 * hidden], da[3 * hidden :]
                for j in range(hidden):
                    di[j] = along[j] * g[j] * i[j] * (F1 - i[j])
                for j in range(hidden):
                    df[j] = along[j] * c0[j] * f[j] * (F1 - f[j])
                for j in range(hidden):
                    dg[j] = along[j] * i[j] * (F1 - g[j] * g[j])
                for j in range(hidden):
                    do[j] = up[j] * squashed[j] * o[j] * (F1 - o[j])
                for j in range(hidden):
                    along[j] *= f[j]
                _normal(product[row], told[row, :2], normal)
                wide[:] = da
                of_product[row, :] = NONE
                _back(normal, wide, weight, dw[t], rms, told[row, 1], of_product[row])

    return kernel(run)
