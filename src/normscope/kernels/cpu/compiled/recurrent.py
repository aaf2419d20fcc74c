"""One time step of an LSTM or GRU with layer or RMS norm inside: all of a row while it lies in the cache.

A row tells the mean and 1/σ of two norms: of the product and of the cell, or of the two blocks of a GRU's product. A
task is always the same rows of the batch, so that it can gather the gradients of the weights.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.gates import before_tanh, gru, gru_back, kept, lstm_back, opened, squashed, times
from normscope.kernels.cpu.compiled.loops import BLOCK, NONE, apart, mean, read, spread, write
from normscope.kernels.cpu.compiled.machine import inlined, jit, kernel, take
from normscope.kernels.cpu.compiled.steps import unpacked


@jit
def _measured(xs: Any, rms: bool, eps: float, told: Any) -> None:
    """Mean and 1/σ of `xs` into `told`."""
    high = NONE if rms else np.float32(mean(xs))
    linear, square = spread(xs, high)
    told[0] = 0.0 if rms else high + linear
    told[1] = 1.0 / math.sqrt((square if rms else square - linear * linear) + eps)


@inlined
def _normal(xs: Any, told: Any, out: Any) -> None:
    """x̂, from what was told of `xs`."""
    apart()
    high = np.float32(told[0])
    rest = np.float32((told[0] - high) * told[1])  # what float32 cannot hold of the mean
    scale = np.float32(told[1])
    for i in range(len(xs)):
        write(out, i, (read(xs, i) - high) * scale - rest)


@inlined
def _shifted(normal: Any, weight: Any, bias: Any, given: Any) -> None:
    apart()
    for j in range(len(normal)):
        write(normal, j, read(normal, j) * read(weight, j) + (read(given, j) + read(bias, j)))


@inlined
def _scaled(normal: Any, weight: Any, bias: Any, out: Any) -> None:
    apart()
    for j in range(len(normal)):
        write(out, j, read(normal, j) * read(weight, j) + read(bias, j))


@inlined
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
    one, other, s = np.float32(0.0 if rms else plain), np.float32(along), np.float32(scale)
    for j in range(len(dz)):
        write(out, j, read(out, j) + s * (read(dz, j) - one - read(normal, j) * other))


@inlined
def _added(total: Any, part: Any) -> None:
    apart()
    for j in range(len(part)):
        write(total, j, read(total, j) + np.float64(read(part, j)))


def lstm_forward(rms: bool) -> Any:
    """Forward."""

    def run(p: Any) -> None:
        s = unpacked(p, 4)
        h = s.hidden
        normal, reached = np.empty(4 * h, np.float32), np.empty(h, np.float32)
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            for row in range(t * s.panel, min(s.rows, (t + 1) * s.panel)):
                z, c, told = s.gates[row], s.after[row], s.told[4 * row : 4 * row + 4]
                _measured(s.product[row], rms, s.eps, told[:2])
                _normal(s.product[row], told[:2], normal)
                _shifted(normal, s.weight, s.bias, s.given[row])
                opened(normal, z)
                squashed(normal[2 * h : 3 * h], z[2 * h : 3 * h])
                kept(z[:h], z[h : 2 * h], z[2 * h : 3 * h], s.before[row], c)
                _measured(c, rms, s.eps, told[2:])
                _normal(c, told[2:], normal[:h])
                _scaled(normal[:h], s.cell, s.cell_bias, reached)
                squashed(reached, normal[:h])
                times(z[3 * h :], normal[:h], s.out[row])

    return kernel(run)


def lstm_backward(rms: bool) -> Any:
    """Backward."""

    def run(p: Any) -> None:
        s = unpacked(p, 4)
        h = s.hidden
        normal, wide = np.empty(4 * h, np.float32), np.empty(4 * h, np.float32)
        of_cell, reached, dz = np.empty(h, np.float32), np.empty(h, np.float32), np.empty(h, np.float32)
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            for row in range(t * s.panel, min(s.rows, (t + 1) * s.panel)):
                z, da, told = s.gates[row], s.of_given[row], s.told[4 * row : 4 * row + 4]
                _normal(s.after[row], told[2:], of_cell)
                _scaled(of_cell, s.cell, s.cell_bias, dz)
                squashed(dz, reached)
                before_tanh(s.dh[row], z[3 * h :], reached, dz)
                _added(s.of_cell_bias[t], dz)
                _back(of_cell, dz, s.cell, s.of_cell[t], rms, told[3], s.dc[row])
                lstm_back(
                    z[:h], z[h : 2 * h], z[2 * h : 3 * h], z[3 * h :], s.before[row], s.dh[row], s.dc[row], reached,
                    da[:h], da[h : 2 * h], da[2 * h : 3 * h], da[3 * h :],
                )  # fmt: skip
                _added(s.of_bias[t], da)
                _normal(s.product[row], told[:2], normal)
                wide[:] = da
                s.of_product[row, :] = NONE
                _back(normal, wide, s.weight, s.of_weight[t], rms, told[1], s.of_product[row])

    return kernel(run)


@inlined
def _blocks(product: Any, told: Any, normal: Any) -> None:
    """x̂ of the product of a GRU, whose gates share one norm and whose candidate has its own."""
    h = len(normal) // 3
    _normal(product[: 2 * h], told[:2], normal[: 2 * h])
    _normal(product[2 * h :], told[2:], normal[2 * h :])


def gru_forward(rms: bool) -> Any:
    """Forward."""

    def run(p: Any) -> None:
        s = unpacked(p, 3)
        h = s.hidden
        normal, shifted = np.empty(3 * h, np.float32), np.empty(h, np.float32)
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            for row in range(t * s.panel, min(s.rows, (t + 1) * s.panel)):
                z, x, told = s.gates[row], s.given[row], s.told[4 * row : 4 * row + 4]
                _measured(s.product[row, : 2 * h], rms, s.eps, told[:2])
                _measured(s.product[row, 2 * h :], rms, s.eps, told[2:])
                _blocks(s.product[row], told, normal)
                _scaled(normal[2 * h :], s.weight[2 * h :], s.bias[2 * h :], shifted)
                _shifted(normal[: 2 * h], s.weight, s.bias, x)
                opened(normal[: 2 * h], z[: 2 * h])
                gru(z[:h], z[h : 2 * h], z[2 * h :], x[2 * h :], shifted, s.before[row], s.out[row])

    return kernel(run)


def gru_backward(rms: bool) -> Any:
    """Backward."""

    def run(p: Any) -> None:
        s = unpacked(p, 3)
        h = s.hidden
        normal, wide = np.empty(3 * h, np.float32), np.empty(3 * h, np.float32)
        shifted = np.empty(h, np.float32)
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            for row in range(t * s.panel, min(s.rows, (t + 1) * s.panel)):
                z, da, told = s.gates[row], s.of_given[row], s.told[4 * row : 4 * row + 4]
                _blocks(s.product[row], told, normal)
                _scaled(normal[2 * h :], s.weight[2 * h :], s.bias[2 * h :], shifted)
                gru_back(
                    z[:h], z[h : 2 * h], z[2 * h :], shifted, s.before[row], s.dh[row],
                    da[:h], da[h : 2 * h], da[2 * h :], wide[2 * h :],
                )  # fmt: skip
                wide[: 2 * h] = da[: 2 * h]
                _added(s.of_bias[t], wide)
                s.of_product[row, :] = NONE
                for first, last, scale in ((0, 2 * h, told[1]), (2 * h, 3 * h, told[3])):
                    _back(
                        normal[first:last], wide[first:last], s.weight[first:last], s.of_weight[t, first:last], rms,
                        scale, s.of_product[row, first:last],
                    )  # fmt: skip

    return kernel(run)
