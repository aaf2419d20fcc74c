"""One time step of an LSTM or GRU with batch norm inside (Cooijmans et al. 2017, equations 6 to 10).

Statistics are those of each column over the rows of the batch, so a task is some hidden units with all their gates and
all rows. A step tells the means and then the variances of the product's columns, and of an LSTM those of the cell's.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.gates import before_tanh, gru, gru_back, kept, lstm_back, opened, squashed, times
from normscope.kernels.cpu.compiled.loops import apart, read, write
from normscope.kernels.cpu.compiled.machine import inlined, jit, kernel, take
from normscope.kernels.cpu.compiled.steps import unpacked

HIGH, RSTD, REST = range(3)  # x̂ = (x − HIGH)·RSTD − REST: HIGH is the mean in float32, REST what that cannot hold


@inlined
def _summed(xs: Any, total: Any) -> None:
    apart()
    for j in range(len(xs)):
        write(total, j, read(total, j) + np.float64(read(xs, j)))


@inlined
def _squared(xs: Any, mean: Any, total: Any) -> None:
    apart()
    for j in range(len(xs)):
        d = np.float64(read(xs, j)) - read(mean, j)
        write(total, j, read(total, j) + d * d)


@jit
def _measured(x: Any, first: int, last: int, fixed: bool, eps: float, mean: Any, var: Any, terms: Any) -> None:
    """The statistics of the columns from `first` to `last`, and by what they become x̂."""
    rows = len(x)
    if not fixed:
        mean[:] = 0.0
        var[:] = 0.0
        for row in range(rows):
            _summed(x[row, first:last], mean)
        for j in range(len(mean)):
            mean[j] /= rows
        for row in range(rows):
            _squared(x[row, first:last], mean, var)
        for j in range(len(var)):
            var[j] /= rows
    _aimed(mean, var, eps, terms)


@jit
def _aimed(mean: Any, var: Any, eps: float, terms: Any) -> None:
    for j in range(len(mean)):
        rstd = 1.0 / math.sqrt(var[j] + eps)
        high = np.float32(mean[j])
        terms[HIGH, j], terms[RSTD, j] = high, np.float32(rstd)
        terms[REST, j] = np.float32((mean[j] - high) * rstd)


@inlined
def _affine(xs: Any, high: Any, rstd: Any, rest: Any, weight: Any, bias: Any, out: Any) -> None:
    """g·x̂ + b."""
    apart()
    for j in range(len(xs)):
        normal = (read(xs, j) - read(high, j)) * read(rstd, j) - read(rest, j)
        write(out, j, normal * read(weight, j) + read(bias, j))


@inlined
def _plus(xs: Any, out: Any) -> None:
    apart()
    for j in range(len(xs)):
        write(out, j, read(out, j) + read(xs, j))


@inlined
def _gathered(xs: Any, d: Any, high: Any, rstd: Any, rest: Any, ones: Any, products: Any) -> None:
    apart()
    for j in range(len(xs)):
        normal = (read(xs, j) - read(high, j)) * read(rstd, j) - read(rest, j)
        write(ones, j, read(ones, j) + np.float64(read(d, j)))
        write(products, j, read(products, j) + np.float64(read(d, j) * normal))


@inlined
def _written(xs: Any, d: Any, high: Any, rstd: Any, rest: Any, weight: Any, one: Any, product: Any, out: Any) -> None:
    """Add g/σ·(d − Σd/N − x̂·Σ(d·x̂)/N) to `out`."""
    apart()
    for j in range(len(xs)):
        normal = (read(xs, j) - read(high, j)) * read(rstd, j) - read(rest, j)
        scale = read(weight, j) * read(rstd, j)
        write(out, j, read(out, j) + scale * (read(d, j) - read(one, j) - normal * read(product, j)))


@jit
def _through(
    x: Any, first: int, last: int, d: Any, begin: int, terms: Any, weight: Any, fixed: bool, of_weight: Any,
    of_bias: Any, sums: Any, means: Any, out: Any,
) -> None:  # fmt: skip
    """Through the norm of some columns: the gradient of x added to `out`, of its weight and bias to theirs.

    `d`, the gradient of the output, begins at column `begin`; that of x and its statistics are those of x's columns.
    """
    rows, width = len(x), last - first
    ones, products = sums[0], sums[1]
    ones[:] = 0.0
    products[:] = 0.0
    for row in range(rows):
        _gathered(
            x[row, first:last], d[row, begin : begin + width], terms[HIGH], terms[RSTD], terms[REST], ones, products
        )
    for j in range(width):
        of_weight[j] += products[j]
        of_bias[j] += ones[j]
        means[0, j] = np.float32(0.0 if fixed else ones[j] / rows)
        means[1, j] = np.float32(0.0 if fixed else products[j] / rows)
    for row in range(rows):
        _written(
            x[row, first:last], d[row, begin : begin + width], terms[HIGH], terms[RSTD], terms[REST], weight,
            means[0], means[1], out[row, first:last],
        )  # fmt: skip


def lstm_forward(fixed: bool) -> Any:
    """Forward."""

    def run(p: Any) -> None:
        s = unpacked(p, 4)
        h, w = s.hidden, 4 * s.hidden
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            first, last = t * s.panel, min(h, (t + 1) * s.panel)
            n = last - first
            terms, a = np.empty((4, 3, n), np.float32), np.empty((4, n), np.float32)
            for g in range(4):
                at, to = g * h + first, g * h + last
                _measured(s.product, at, to, fixed, s.eps, s.told[at:to], s.told[w + at : w + to], terms[g])
            for row in range(s.rows):
                z, x = s.gates[row], s.given[row]
                for g in range(4):
                    at, to = g * h + first, g * h + last
                    _affine(
                        s.product[row, at:to], terms[g, HIGH], terms[g, RSTD], terms[g, REST], s.weight[at:to],
                        s.bias[at:to], a[g],
                    )  # fmt: skip
                    _plus(x[at:to], a[g])
                    if g == 2:
                        squashed(a[g], z[at:to])
                    else:
                        opened(a[g], z[at:to])
                kept(
                    z[first:last], z[h + first : h + last], z[2 * h + first : 2 * h + last], s.before[row, first:last],
                    s.after[row, first:last],
                )  # fmt: skip
            mean, var = s.told[2 * w + first : 2 * w + last], s.told[2 * w + h + first : 2 * w + h + last]
            _measured(s.after, first, last, fixed, s.eps, mean, var, terms[0])
            for row in range(s.rows):
                _affine(
                    s.after[row, first:last], terms[0, HIGH], terms[0, RSTD], terms[0, REST], s.cell[first:last],
                    s.cell_bias[first:last], a[0],
                )  # fmt: skip
                squashed(a[0], a[1])
                times(s.gates[row, 3 * h + first : 3 * h + last], a[1], s.out[row, first:last])

    return kernel(run)


def lstm_backward(fixed: bool) -> Any:
    """Backward."""

    def run(p: Any) -> None:
        s = unpacked(p, 4)
        h, w = s.hidden, 4 * s.hidden
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            first, last = t * s.panel, min(h, (t + 1) * s.panel)
            n = last - first
            terms, a, means = np.empty((3, n), np.float32), np.empty((2, n), np.float32), np.empty((2, n), np.float32)
            sums = np.empty((2, n), np.float64)
            reached = np.empty((s.rows, n), np.float32)
            _aimed(s.told[2 * w + first : 2 * w + last], s.told[2 * w + h + first : 2 * w + h + last], s.eps, terms)
            for row in range(s.rows):
                _affine(
                    s.after[row, first:last], terms[HIGH], terms[RSTD], terms[REST], s.cell[first:last],
                    s.cell_bias[first:last], a[0],
                )  # fmt: skip
                squashed(a[0], reached[row])
                o = s.gates[row, 3 * h + first : 3 * h + last]
                before_tanh(s.dh[row, first:last], o, reached[row], s.work[row, first:last])
            _through(
                s.after, first, last, s.work, first, terms, s.cell[first:last], fixed, s.of_cell[0, first:last],
                s.of_cell_bias[0, first:last], sums, means, s.dc,
            )  # fmt: skip
            for row in range(s.rows):
                z, da = s.gates[row], s.of_given[row]
                lstm_back(
                    z[first:last], z[h + first : h + last], z[2 * h + first : 2 * h + last],
                    z[3 * h + first : 3 * h + last], s.before[row, first:last], s.dh[row, first:last],
                    s.dc[row, first:last], reached[row], da[first:last], da[h + first : h + last],
                    da[2 * h + first : 2 * h + last], da[3 * h + first : 3 * h + last],
                )  # fmt: skip
            for g in range(4):
                at, to = g * h + first, g * h + last
                s.of_product[:, at:to] = 0.0
                _aimed(s.told[at:to], s.told[w + at : w + to], s.eps, terms)
                _through(
                    s.product, at, to, s.of_given, at, terms, s.weight[at:to], fixed, s.of_weight[0, at:to],
                    s.of_bias[0, at:to], sums, means, s.of_product,
                )  # fmt: skip

    return kernel(run)


def gru_forward(fixed: bool) -> Any:
    """Forward."""

    def run(p: Any) -> None:
        s = unpacked(p, 3)
        h, w = s.hidden, 3 * s.hidden
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            first, last = t * s.panel, min(h, (t + 1) * s.panel)
            n = last - first
            terms, a = np.empty((3, 3, n), np.float32), np.empty((3, n), np.float32)
            for g in range(3):
                at, to = g * h + first, g * h + last
                _measured(s.product, at, to, fixed, s.eps, s.told[at:to], s.told[w + at : w + to], terms[g])
            for row in range(s.rows):
                z, x = s.gates[row], s.given[row]
                for g in range(3):
                    at, to = g * h + first, g * h + last
                    _affine(
                        s.product[row, at:to], terms[g, HIGH], terms[g, RSTD], terms[g, REST], s.weight[at:to],
                        s.bias[at:to], a[g],
                    )  # fmt: skip
                    if g < 2:
                        _plus(x[at:to], a[g])
                        opened(a[g], z[at:to])
                gru(
                    z[first:last], z[h + first : h + last], z[2 * h + first : 2 * h + last],
                    x[2 * h + first : 2 * h + last], a[2], s.before[row, first:last], s.out[row, first:last],
                )  # fmt: skip

    return kernel(run)


def gru_backward(fixed: bool) -> Any:
    """Backward."""

    def run(p: Any) -> None:
        s = unpacked(p, 3)
        h, w = s.hidden, 3 * s.hidden
        while True:
            t = take(s.own)
            if t >= s.tasks:
                break
            first, last = t * s.panel, min(h, (t + 1) * s.panel)
            n, two = last - first, 2 * h
            terms, a, means = np.empty((3, n), np.float32), np.empty(n, np.float32), np.empty((2, n), np.float32)
            sums = np.empty((2, n), np.float64)
            at, to = two + first, two + last
            _aimed(s.told[at:to], s.told[w + at : w + to], s.eps, terms)
            for row in range(s.rows):
                z, da = s.gates[row], s.of_given[row]
                _affine(s.product[row, at:to], terms[HIGH], terms[RSTD], terms[REST], s.weight[at:to], s.bias[at:to], a)
                gru_back(
                    z[first:last], z[h + first : h + last], z[at:to], a, s.before[row, first:last],
                    s.dh[row, first:last], da[first:last], da[h + first : h + last], da[at:to],
                    s.work[row, first:last],
                )  # fmt: skip
            for g in range(3):
                at, to = g * h + first, g * h + last
                s.of_product[:, at:to] = 0.0
                _aimed(s.told[at:to], s.told[w + at : w + to], s.eps, terms)
                d, begin = (s.work, first) if g == 2 else (s.of_given, at)
                _through(
                    s.product, at, to, d, begin, terms, s.weight[at:to], fixed, s.of_weight[0, at:to],
                    s.of_bias[0, at:to], sums, means, s.of_product,
                )  # fmt: skip

    return kernel(run)
