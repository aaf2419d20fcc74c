"""Layer and RMS norm: rows of C numbers beside each other, BR of them at once, or a long one in pieces of BC."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from normscope.kernels.triton.compiled.parts import activated, centre, gain, scale, shift, slopes


@triton.jit
def _tile(r0, c0, R, C, BR: tl.constexpr, BC: tl.constexpr):
    r, c = tl.arange(0, BR), tl.arange(0, BC)
    inside = (r0 + r < R)[:, None] & (c0 + c < C)[None, :]
    return (r0 + r).to(tl.int64)[:, None] * C + (c0 + c)[None, :], inside


@triton.jit
def _write(
    y, residual, weight, bias, normed, r0, c0, R, C, offset, KIND: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):
    at, inside = _tile(r0, c0, R, C, BR, BC)
    c = c0 + tl.arange(0, BC)
    h = normed * gain(weight, c, c < C, offset)[None, :] + shift(bias, c, c < C)[None, :]
    if residual is not None:
        h += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, activated(h, KIND).to(y.dtype.element_ty), mask=inside)


@triton.jit
def forward(
    x, y, residual, weight, bias, mean, var, R, C, eps, offset,
    KIND: tl.constexpr, RMS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """f(g · (x − μ)/σ + b + r), or without μ, and the statistics of each row."""
    r0 = tl.program_id(0) * BR
    r = r0 + tl.arange(0, BR)
    # the mean of the first piece as the origin: what follows is small, and float32 tells it well
    at, inside = _tile(r0, 0, R, C, BR, BC)
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    many = tl.minimum(C, BC)
    squares = tl.sum(v * v, 1)
    origin = tl.sum(v, 1) / many
    off = tl.where(inside, v - origin[:, None], 0.0)
    middle = tl.sum(off, 1) / many
    off = tl.where(inside, off - middle[:, None], 0.0)
    m2 = tl.sum(off * off, 1)
    if not ONE:
        seen = tl.zeros([1], dtype=tl.float32) + many
        for c0 in range(BC, C, BC):
            at, inside = _tile(r0, c0, R, C, BR, BC)
            v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            squares += tl.sum(v * v, 1)
            off = tl.where(inside, v - origin[:, None], 0.0)
            many = tl.minimum(C - c0, BC)
            own = tl.sum(off, 1) / many
            off = tl.where(inside, off - own[:, None], 0.0)
            share = many / (seen + many)
            delta = own - middle
            m2 += tl.sum(off * off, 1) + delta * delta * (seen * share)
            middle += delta * share
            seen += many
    spread = (squares if RMS else m2) / C
    tl.store(mean + r, origin.to(mean.dtype.element_ty) + middle.to(mean.dtype.element_ty), mask=r < R)
    tl.store(var + r, spread.to(var.dtype.element_ty), mask=r < R)
    rate = (1.0 / tl.sqrt(spread + eps))[:, None]
    if ONE:
        normed = (v if RMS else off) * rate
        _write(y, residual, weight, bias, normed, r0, 0, R, C, offset, KIND, BR, BC)
    else:
        for c0 in range(0, C, BC):
            at, inside = _tile(r0, c0, R, C, BR, BC)
            v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            if not RMS:
                v = (v - origin[:, None]) - middle[:, None]
            _write(y, residual, weight, bias, v * rate, r0, c0, R, C, offset, KIND, BR, BC)


@triton.jit
def _read(
    x, dy, more, weight, bias, mean, var, r0, c0, R, C, eps, offset,
    KIND: tl.constexpr, KEPT: tl.constexpr, RMS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of one tile: x̂, the gradient of g·x̂ + b + r, g, and 1/σ."""
    at, inside = _tile(r0, c0, R, C, BR, BC)
    r, c = r0 + tl.arange(0, BR), c0 + tl.arange(0, BC)
    g, b = gain(weight, c, c < C, offset)[None, :], shift(bias, c, c < C)[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    rate = scale(var, r, r < R, eps)[:, None]
    if not RMS:
        near, rest = centre(mean, r, r < R)
        v = (v - near[:, None]) - rest[:, None]
    normed = v * rate
    up = slopes(up, more, normed, g, b, at, inside, KIND, KEPT)
    return tl.where(inside, normed, 0.0), tl.where(inside, up, 0.0), g, rate


@triton.jit
def _write_back(
    dx, dr, normed, up, g, rate, by_scale, by_centre, r0, c0, R, C, RMS: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    at, inside = _tile(r0, c0, R, C, BR, BC)
    if dr is not None:
        tl.store(dr + at, up.to(dr.dtype.element_ty), mask=inside)
    back = up * g - normed * (by_scale / C)[:, None]
    if not RMS:
        back -= (by_centre / C)[:, None]
    tl.store(dx + at, (back * rate).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    x, dy, more, weight, bias, mean, var, dx, dr, of_weight, of_bias, R, C, share, eps, offset,
    KIND: tl.constexpr, KEPT: tl.constexpr, RMS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Rows that fit in one tile; what a program's `share` of rows gives to weight and bias, (programs, C), float32."""
    k = tl.program_id(0)
    dw, db = tl.zeros([BC], dtype=tl.float32), tl.zeros([BC], dtype=tl.float32)
    for step in range(0, share, BR):
        r0 = k * share + step
        normed, up, g, rate = _read(
            x, dy, more, weight, bias, mean, var, r0, 0, R, C, eps, offset, KIND, KEPT, RMS, BR, BC
        )
        dw += tl.sum(up * normed, 0)
        db += tl.sum(up, 0)
        by_scale, by_centre = tl.sum(up * g * normed, 1), tl.sum(up * g, 1)
        _write_back(dx, dr, normed, up, g, rate, by_scale, by_centre, r0, 0, R, C, RMS, BR, BC)
    c = tl.arange(0, BC)
    tl.store(of_weight + k.to(tl.int64) * C + c, dw, mask=c < C)
    tl.store(of_bias + k.to(tl.int64) * C + c, db, mask=c < C)


@triton.jit
def backward_long(
    x, dy, more, weight, bias, mean, var, dx, dr, of_weight, of_bias, R, C, share, eps, offset,
    KIND: tl.constexpr, KEPT: tl.constexpr, RMS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The same, row by row in pieces: a program adds to its own row of `of_weight` and `of_bias`, which hold zeros."""
    k = tl.program_id(0)
    for step in range(share):
        r0 = k * share + step
        by_scale, by_centre = tl.zeros([BR], dtype=tl.float32), tl.zeros([BR], dtype=tl.float32)
        for c0 in range(0, C, BC):
            normed, up, g, _ = _read(
                x, dy, more, weight, bias, mean, var, r0, c0, R, C, eps, offset, KIND, KEPT, RMS, BR, BC
            )
            by_scale += tl.sum(up * g * normed, 1)
            by_centre += tl.sum(up * g, 1)
            c = c0 + tl.arange(0, BC)
            at = k.to(tl.int64) * C + c
            tl.store(of_weight + at, tl.load(of_weight + at, mask=c < C) + tl.sum(up * normed, 0), mask=c < C)
            tl.store(of_bias + at, tl.load(of_bias + at, mask=c < C) + tl.sum(up, 0), mask=c < C)
        for c0 in range(0, C, BC):
            normed, up, g, rate = _read(
                x, dy, more, weight, bias, mean, var, r0, c0, R, C, eps, offset, KIND, KEPT, RMS, BR, BC
            )
            _write_back(dx, dr, normed, up, g, rate, by_scale, by_centre, r0, c0, R, C, RMS, BR, BC)
        tl.debug_barrier()  # the next row adds to what this one wrote
