"""Batch, group and instance norm of contiguous (N, C, S): a task is some statistics that lie side by side.

A statistic covers runs of numbers: those of one channel in each sample (batch), or of all channels of one group in one
sample (group, instance), which are a single run. They are read twice, and fit a core's cache for all usual shapes, so
that the second look does not go to memory.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.activations import activated, inverse, through
from normscope.kernels.cpu.compiled.lanes import (
    LANES,
    fetch,
    lanes,
    load,
    once,
    put,
    put_some,
    some,
    spread,
    store,
    total,
    where,
    within,
)
from normscope.kernels.cpu.compiled.machine import LINE, finish, inlined, jit, kernel, merge, take
from normscope.kernels.cpu.compiled.operands import bench, fill, gather, kind_of, table, unpacked, words
from normscope.kernels.cpu.compiled.panels import coefficients, unscaled

BLOCK = 4096  # numbers whose sums are kept in float32
FEW = 1024  # numbers whose mean the others are measured from
NEAR = 1 << 17  # numbers of a task while the next one is fetched
OFTEN = 16384  # numbers after which they are measured from a newer mean
NONE = np.float32(0)


@jit
def look(x: Any, at: int, length: int, pivot: Any, ahead: int) -> Any:
    """Σd and Σd² of a run, where d = x − pivot; what lies `ahead` is fetched."""
    once()
    ones, squares = 0.0, 0.0
    for first in range(at, at + length, BLOCK):
        last = min(first + BLOCK, at + length)
        a, b = spread(NONE), spread(NONE)
        whole = first + (last - first) // LANES * LANES
        for i in range(first, whole, LANES):
            if ahead:
                fetch(x, i + ahead)
            d = lanes(x, i) - pivot
            a += d
            b += d * d
        if whole < last:
            which = within(0, last - whole)
            d = where(which, some(x, whole, which) - pivot, NONE)
            a += d
            b += d * d
        ones += total(a)
        squares += total(b)
    return ones, squares


@jit
def _measure(x: Any, base: int, stride: int, runs: int, length: int, count: int, found: Any, ahead: int) -> None:
    """(count, mean, M2) of `count` statistics of so many runs, which lie side by side, into `found`."""
    few = min(length, FEW, max(length // 4, LANES))
    for n in range(6):
        fill(found[n], 0.0)
    for k in range(count):
        ones, _ = look(x, base + k * length, few, NONE, 0)
        found[3, k] = ones / few  # what the others are measured from
    held = 0
    for r in range(runs):
        held += length
        for k in range(count):
            ones, squares = look(x, base + r * stride + k * length, length, np.float32(found[3, k]), ahead)
            found[4, k] += ones
            found[5, k] += squares
        if held >= OFTEN or r == runs - 1:
            for k in range(count):
                rest, pivot = found[4, k] / held, np.float32(found[3, k])
                m2 = found[5, k] - found[4, k] * rest
                found[0, k], found[1, k], found[2, k] = merge(
                    found[0, k], found[1, k], found[2, k], float(held), pivot + rest, m2
                )
                found[3, k], found[4, k], found[5, k] = found[1, k], 0.0, 0.0
            held = 0


@jit
def _after(o: Any, first: int, together: int, share: int) -> int:
    """The next statistic for this thread: behind those from `first` on, or where another task begins."""
    after = first + together
    return after if after % share else take(o.own) * share


@jit
def _onward(distance: int, left: int, looked_at: int) -> int:
    """How far on numbers lie that are fetched; 0 where nothing is `left`, or no room beside those `looked_at`."""
    return distance if left > 0 and looked_at <= NEAR else 0


@inlined
def _normal(
    x: Any, more: Any, i: int, which: Any, part: bool, high: Any, scale: Any, shift: Any, activation: int, added: int
) -> Any:
    z = (load(x, i, which, part) - high) * scale + shift
    if added:
        z += load(more, i, which, part)
    return activated(activation, z)


@inlined
def _write(
    x: Any, y: Any, more: Any, at: int, length: int, high: Any, scale: Any, shift: Any, activation: int, added: int,
    line: int, ahead: int,
) -> None:  # fmt: skip
    """A run of the output; past the caches from the first whole line on, where `line` is the numbers of one, not 0.

    Meanwhile what lies `ahead` is fetched.
    """
    end, i = at + length, at
    head = min(-at % line, length) if line else 0
    nothing = within(0, 0)
    if head:
        which = within(0, head)
        put_some(y, i, _normal(x, more, i, which, True, high, scale, shift, activation, added), which)
        i += head
    whole = i + (end - i) // LANES * LANES
    for j in range(i, whole, LANES):
        if ahead:
            fetch(x, j + ahead)
            if added:
                fetch(more, j + ahead)
        z = _normal(x, more, j, nothing, False, high, scale, shift, activation, added)
        store(y, j, z, line > 0)
    if whole < end:
        which = within(0, end - whole)
        put_some(y, whole, _normal(x, more, whole, which, True, high, scale, shift, activation, added), which)


def forward(half: bool, smooth: int) -> Any:
    """The forward kernel: float32, or bfloat16 as `half`."""
    dtype: Any = np.uint16 if half else np.float32
    size = 2 if half else 4

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        batch, given, share, together, added = word[7], word[8], word[28], word[30], word[34]
        activation = kind_of(word, smooth)
        line = LINE // size if word[29] else 0
        inner = o.channels // o.groups
        statistics = o.channels if batch else o.samples * o.groups
        runs, length = (o.samples, o.positions) if batch else (1, inner * o.positions)
        stride = o.channels * o.positions
        found = table(bench(word), 6, together, np.float64)
        first = take(o.own) * share
        while first < statistics:
            after = _after(o, first, together, share)
            onward = _onward((after - first) * length, statistics - after, together * length * runs) if batch else 0
            count = min(together, statistics - first)
            if not given:
                ahead = stride if batch and length <= BLOCK else 0
                _measure(o.x, first * length, stride, runs, length, count, found, ahead)
                for k in range(count):
                    o.mean[first + k], o.var[first + k] = found[1, k], found[2, k] / found[0, k]
            for r in range(runs):
                for k in range(count):
                    s = first + k
                    for j in range(1 if batch else inner):
                        c = s if batch else s % o.groups * inner + j
                        high, _, _, scale, shift = coefficients(o.mean[s], o.var[s], o.eps, o.weight[c], o.bias[c])
                        at = r * stride + s * length + j * o.positions
                        _write(o.x, o.y, o.more, at, o.positions, high, scale, shift, activation, added, line, onward)
            first = after

    return kernel(run)


@inlined
def _gradient(
    x: Any,
    dy: Any,
    more: Any,
    i: int,
    which: Any,
    part: bool,
    high: Any,
    scale: Any,
    shift: Any,
    activation: int,
    kept: int,
) -> Any:
    """Return x − high and dz; with `kept` −1, x is told from the output that it holds, as in `panels.sums`."""
    u = load(x, i, which, part)
    if kept < 0:
        u = inverse(activation, u)
    d = u - high
    dz = load(dy, i, which, part)
    if kept > 0:
        z = load(more, i, which, part)
        if kept == 2:
            z += d * scale + shift
        dz = through(activation, z, dz)
    elif activation:
        dz = through(activation, u if kept else d * scale + shift, dz)
    return d, dz


@inlined
def _sums(
    x: Any, dy: Any, more: Any, dr: Any, at: int, length: int, high: Any, scale: Any, shift: Any, activation: int,
    kept: int, ahead: int,
) -> Any:  # fmt: skip
    """Σ dz and Σ dz·(x − high) of a run; with `kept` 1 or 2, dz written to `dr`."""
    ones, products = 0.0, 0.0
    nothing = within(0, 0)
    for first in range(at, at + length, BLOCK):
        last = min(first + BLOCK, at + length)
        a, b = spread(NONE), spread(NONE)
        whole = first + (last - first) // LANES * LANES
        for i in range(first, whole, LANES):
            if ahead:
                fetch(x, i + ahead)
                fetch(dy, i + ahead)
                if kept > 0:
                    fetch(more, i + ahead)
            d, dz = _gradient(x, dy, more, i, nothing, False, high, scale, shift, activation, kept)
            if kept > 0:
                put(dr, i, dz)
            a += dz
            b += dz * d
        if whole < last:
            which = within(0, last - whole)
            d, dz = _gradient(x, dy, more, whole, which, True, high, scale, shift, activation, kept)
            if kept > 0:
                put_some(dr, whole, dz, which)
            a += where(which, dz, NONE)
            b += where(which, dz * d, NONE)
        ones += total(a)
        products += total(b)
    return ones, products


@inlined
def _write_back(
    x: Any, dy: Any, up: Any, dx: Any, at: int, length: int, high: Any, scale: Any, shift: Any, toward: Any,
    offset: Any, activation: int, kept: int, line: int, ahead: int,
) -> None:  # fmt: skip
    """A run of the gradient of the input; what lies `ahead` is fetched."""
    end, i = at + length, at
    head = min(-at % line, length) if line else 0
    nothing = within(0, 0)
    if head:
        which = within(0, head)
        d, dz = _gradient(x, dy, x, i, which, True, high, scale, shift, activation, kept)
        put_some(dx, i, scale * dz + (toward * d + offset), which)
        i += head
    whole = i + (end - i) // LANES * LANES
    for j in range(i, whole, LANES):
        if ahead:
            fetch(x, j + ahead)
            fetch(up, j + ahead)
        d, dz = _gradient(x, dy, x, j, nothing, False, high, scale, shift, activation, kept)
        store(dx, j, scale * dz + (toward * d + offset), line > 0)
    if whole < end:
        which = within(0, end - whole)
        d, dz = _gradient(x, dy, x, whole, which, True, high, scale, shift, activation, kept)
        put_some(dx, whole, scale * dz + (toward * d + offset), which)


def backward(half: bool, smooth: int) -> Any:
    """The backward kernel; `kept` is what tells the slope: 0 the input alone, 1 the output, 2 the residual.

    With 1 and 2 the gradient of the residual is written in the first look, and read in its place in the second.
    With −1 the input was overwritten by the output, from which it is told.
    """
    dtype: Any = np.uint16 if half else np.float32
    size = 2 if half else 4

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        batch, given, share, together, kept = word[7], word[8], word[28], word[30], word[34]
        activation = kind_of(word, smooth)
        line = LINE // size if word[29] else 0
        inner = 1 if batch else o.channels // o.groups
        statistics = o.channels if batch else o.samples * o.groups
        runs, length = o.samples if batch else 1, o.positions
        stride = o.channels * length
        ahead = stride if batch and length <= BLOCK else 0
        n = float(runs * inner * length)
        first = take(o.own) * share
        while first < statistics:
            after = _after(o, first, together, share)
            onward = _onward((after - first) * length, statistics - after, 2 * together * length * runs) if batch else 0
            last = min(first + together, statistics)
            for r in range(runs):
                for s in range(first, last):
                    for j in range(inner):
                        c = s if batch else s % o.groups * inner + j
                        high, low, rstd, scale, shift = coefficients(o.mean[s], o.var[s], o.eps, o.weight[c], o.bias[c])
                        run_ = r * o.channels + s * inner + j
                        near = shift if kept < 0 else high
                        plain, moved = _sums(
                            o.x, o.dy, o.more, o.dr, run_ * length, length, near, scale, shift, activation, kept,
                            ahead,
                        )  # fmt: skip
                        moved *= unscaled(scale, kept < 0)
                        o.of_bias[run_], o.of_weight[run_] = plain, (moved - low * plain) * rstd
            for s in range(first, last):
                of_one, of_x = 0.0, 0.0
                if not given:
                    for r in range(runs):
                        for j in range(inner):
                            g = o.weight[s if batch else s % o.groups * inner + j]
                            of_one += g * o.of_bias[r * o.channels + s * inner + j]
                            of_x += g * o.of_weight[r * o.channels + s * inner + j]
                high, low, rstd, _, _ = coefficients(o.mean[s], o.var[s], o.eps, 1.0, 0.0)
                toward = np.float32(-rstd * rstd * of_x / n)
                offset = np.float32(-rstd * of_one / n + rstd * rstd * low * of_x / n)
                for r in range(runs):
                    for j in range(inner):
                        c = s if batch else s % o.groups * inner + j
                        high, _, _, scale, shift = coefficients(o.mean[s], o.var[s], o.eps, o.weight[c], o.bias[c])
                        near, back_to_x = shift if kept < 0 else high, unscaled(scale, kept < 0)
                        _write_back(
                            o.x, o.dr if kept > 0 else o.dy, o.dy, o.y, (r * o.channels + s * inner + j) * length,
                            length, near, scale, shift, np.float32(toward * back_to_x), offset,
                            0 if kept > 0 else activation, min(kept, 0), line, onward,
                        )  # fmt: skip
            if (last % share == 0 or last == statistics) and finish(o.own) == o.tasks:
                gather(o, o.samples)
            first = after

    return kernel(run)
