"""Layer and RMS norm: every row of channels has statistics of its own, and is read while it lies in the first cache."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.activations import activated, through
from normscope.kernels.cpu.compiled.lanes import LANES, load, put_some, spread, store, total, where, within
from normscope.kernels.cpu.compiled.machine import finish, inlined, jit, kernel, take
from normscope.kernels.cpu.compiled.operands import bench, fill, gather, kind_of, table, unpacked, words
from normscope.kernels.cpu.compiled.runs import look

ROWS = 32  # rows whose sums for the affine part are kept in float32
BLOCK = 4096  # numbers whose sums are kept in float32
NONE = np.float32(0)


@inlined
def _normal(x: Any, i: int, which: Any, part: bool, high: Any, rstd: Any, offset: Any, rms: bool) -> Any:
    value = load(x, i, which, part)
    return value * rstd if rms else (value - high) * rstd - offset


@inlined
def _put(x: Any, i: int, value: Any, which: Any, part: bool, past: bool) -> None:
    if part:
        put_some(x, i, value, which)
    else:
        store(x, i, value, past)


@inlined
def _output(
    o: Any, at: int, i: int, which: Any, part: bool, high: Any, rstd: Any, offset: Any, activation: int, added: bool,
    rms: bool, past: bool,
) -> None:  # fmt: skip
    """Write the numbers from column `i` on of the row that begins at `at`."""
    z = _normal(o.x, at + i, which, part, high, rstd, offset, rms) * load(o.weight, i, which, part)
    z += load(o.bias, i, which, part)
    if added:
        z += load(o.more, at + i, which, part)
    _put(o.y, at + i, activated(activation, z), which, part, past)


@inlined
def _write(
    o: Any, at: int, high: Any, rstd: Any, offset: Any, activation: int, added: bool, rms: bool, past: bool
) -> None:
    for i in range(0, o.channels, LANES):
        which = within(0, o.channels - i)
        if i + LANES > o.channels:
            _output(o, at, i, which, True, high, rstd, offset, activation, added, rms, past)
        else:
            _output(o, at, i, which, False, high, rstd, offset, activation, added, rms, past)


def forward(half: bool, smooth: int) -> Any:
    """A task is a panel of rows: measured, and written."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        panel, past, channels = word[28], word[29] != 0, o.channels
        activation, added, rms = kind_of(word, smooth), word[34] != 0, word[35] != 0
        few = min(channels, max(channels // 4, LANES))
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            for row in range(t * panel, min(o.samples, (t + 1) * panel)):
                at = row * channels
                high = NONE
                if not rms:
                    ones, _ = look(o.x, at, few, NONE, 0)
                    high = np.float32(ones / few)
                ones, squares = look(o.x, at, channels, high, 0)
                linear, square = ones / channels, squares / channels
                o.mean[row] = high + linear
                o.var[row] = square if rms else square - linear * linear
                rstd = 1.0 / math.sqrt(o.var[row] + o.eps)
                _write(o, at, high, np.float32(rstd), np.float32(linear * rstd), activation, added, rms, past)

    return kernel(run)


@inlined
def _gathered(
    o: Any, dz: Any, of_weight: Any, of_bias: Any, at: int, i: int, which: Any, part: bool, high: Any, rstd: Any,
    offset: Any, activation: int, kept: int, rms: bool, past: bool,
) -> Any:  # fmt: skip
    """Add the share of some columns in the gradients of weight and bias; g·dz there, and it times x̂.

    dz is the gradient of what the activation was given: it goes to `o.dr` with `kept`, and g·dz to `dz`.
    """
    normal, d = _normal(o.x, at + i, which, part, high, rstd, offset, rms), load(o.dy, at + i, which, part)
    if activation:
        if kept == 1:
            z = load(o.more, at + i, which, part)
        else:
            z = normal * load(o.weight, i, which, part) + load(o.bias, i, which, part)
        if kept == 2:
            z += load(o.more, at + i, which, part)
        d = through(activation, z, d)
    if kept:
        _put(o.dr, at + i, d, which, part, past)
    _put(of_bias, i, load(of_bias, i, which, part) + d, which, part, False)
    _put(of_weight, i, load(of_weight, i, which, part) + d * normal, which, part, False)
    d *= load(o.weight, i, which, part)
    if activation:
        _put(dz, i, d, which, part, False)
    return d, d * normal


@inlined
def _gather(
    o: Any, dz: Any, of_weight: Any, of_bias: Any, at: int, high: Any, rstd: Any, offset: Any, activation: int,
    kept: int, rms: bool, past: bool,
) -> Any:  # fmt: skip
    """`_gathered` of a row; the means of g·dz, and of it times x̂."""
    plain, along = 0.0, 0.0
    for start in range(0, o.channels, BLOCK):
        a, b = spread(NONE), spread(NONE)
        for i in range(start, min(start + BLOCK, o.channels), LANES):
            which = within(0, o.channels - i)
            if i + LANES > o.channels:
                d, moved = _gathered(
                    o, dz, of_weight, of_bias, at, i, which, True, high, rstd, offset, activation, kept, rms, past
                )
                d, moved = where(which, d, NONE), where(which, moved, NONE)
            else:
                d, moved = _gathered(
                    o, dz, of_weight, of_bias, at, i, which, False, high, rstd, offset, activation, kept, rms, past
                )
            a += d
            b += moved
        plain += total(a)
        along += total(b)
    return np.float32(plain / o.channels), np.float32(along / o.channels)


@inlined
def _returned(
    o: Any, dz: Any, at: int, i: int, which: Any, part: bool, high: Any, rstd: Any, offset: Any, plain: Any,
    along: Any, activation: int, rms: bool, past: bool,
) -> None:  # fmt: skip
    """Write the gradient of the input from column `i` on."""
    if activation:
        d = load(dz, i, which, part)
    else:
        d = load(o.dy, at + i, which, part) * load(o.weight, i, which, part)
    if not rms:
        d -= plain
    d -= _normal(o.x, at + i, which, part, high, rstd, offset, rms) * along
    _put(o.y, at + i, d * rstd, which, part, past)


@inlined
def _write_back(
    o: Any, dz: Any, at: int, high: Any, rstd: Any, offset: Any, plain: Any, along: Any, activation: int, rms: bool,
    past: bool,
) -> None:  # fmt: skip
    for i in range(0, o.channels, LANES):
        which = within(0, o.channels - i)
        if i + LANES > o.channels:
            _returned(o, dz, at, i, which, True, high, rstd, offset, plain, along, activation, rms, past)
        else:
            _returned(o, dz, at, i, which, False, high, rstd, offset, plain, along, activation, rms, past)


@jit
def _add(total: Any, at: int, part: Any) -> None:
    """Add the float32 `part` to the float64 `total` from `at` on, and begin it anew."""
    for i in range(len(part)):
        total[at + i] += np.float64(part[i])
        part[i] = NONE


def backward(half: bool, smooth: int) -> Any:
    """A task is a panel of rows; it writes their gradient, and its share of those of weight and bias."""
    dtype: Any = np.uint16 if half else np.float32

    def run(p: Any) -> None:
        o, word = unpacked(p, dtype), words(p)
        panel, past, channels = word[28], word[29] != 0, o.channels
        activation, kept, rms = kind_of(word, smooth), word[34], word[35] != 0
        place = table(bench(word), 3, channels, np.float32)
        dz, of_weight, of_bias = place[0], place[1], place[2]
        fill(of_weight, NONE)
        fill(of_bias, NONE)
        while True:
            t = take(o.own)
            if t >= o.tasks:
                break
            own = t * channels
            for c in range(own, own + channels):
                o.of_weight[c], o.of_bias[c] = 0.0, 0.0
            end = min(o.samples, (t + 1) * panel)
            for begin in range(t * panel, end, ROWS):
                for row in range(begin, min(end, begin + ROWS)):
                    at = row * channels
                    high = NONE if rms else np.float32(o.mean[row])
                    rstd = 1.0 / math.sqrt(o.var[row] + o.eps)
                    offset = np.float32((o.mean[row] - high) * rstd)  # what float32 cannot hold of μ
                    inverse = np.float32(rstd)
                    plain, along = _gather(
                        o, dz, of_weight, of_bias, at, high, inverse, offset, activation, kept, rms, past
                    )
                    _write_back(o, dz, at, high, inverse, offset, plain, along, activation, rms, past)
                _add(o.of_weight, own, of_weight)
                _add(o.of_bias, own, of_bias)
            if finish(o.own) == o.tasks:
                gather(o, o.tasks)

    return kernel(run)
