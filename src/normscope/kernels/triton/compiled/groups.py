"""Group and instance norm, one program for each group of each sample: its second reading comes from the cache.

A group is looked at as (channels, positions) with any strides, in tiles of BJ by BP. Where one tile holds it all
(ONE), nothing is read twice.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from normscope.kernels.triton.compiled.parts import activated, centre, gain, hinted, scale, shift, slopes


@triton.jit
def _base(groups, inner, sn, sc):
    s = tl.program_id(0)
    return (s // groups).to(tl.int64) * sn + ((s % groups) * inner).to(tl.int64) * sc


@triton.jit
def _tile(j0, p0, inner, P, sc, sp, BJ: tl.constexpr, BP: tl.constexpr):
    j, p = tl.arange(0, BJ), tl.arange(0, BP)
    inside = (j0 + j < inner)[:, None] & (p0 + p < P)[None, :]
    at = (j0 + j).to(tl.int64)[:, None] * sc + (p0 + p).to(tl.int64)[None, :] * sp
    return at, inside, tl.minimum(inner - j0, BJ) * tl.minimum(P - p0, BP)


@triton.jit
def _sum(v):
    return tl.sum(tl.sum(v, 1), 0)


@triton.jit
def forward(
    x, y, residual, weight, bias, mean, var, P, sn, sc, sp, groups, inner, eps, offset,
    KIND: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr, AJ: tl.constexpr, AP: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """f(g · (x − μ)/σ + b + r), and μ and σ² of the group."""
    inner, P, sn, sc, sp = hinted(inner, P, sn, sc, sp, AJ, AP)
    s = tl.program_id(0)
    base = _base(groups, inner, sn, sc)
    first = (s % groups) * inner
    # the mean of the first tile as the origin: what follows is small, and float32 tells it well
    at, inside, many = _tile(0, 0, inner, P, sc, sp, BJ, BP)
    v = tl.load(x + base + at, mask=inside, other=0.0).to(tl.float32)
    origin = _sum(v) / many
    v = tl.where(inside, v - origin, 0.0)
    middle = _sum(v) / many
    v = tl.where(inside, v - middle, 0.0)
    m2 = _sum(v * v)
    seen = many
    if not ONE:
        for j0 in range(0, inner, BJ):
            for p0 in range(0, P, BP):
                if j0 + p0 > 0:
                    at, inside, many = _tile(j0, p0, inner, P, sc, sp, BJ, BP)
                    v = tl.load(x + base + at, mask=inside, other=0.0).to(tl.float32)
                    v = tl.where(inside, v - origin, 0.0)
                    own = _sum(v) / many
                    v = tl.where(inside, v - own, 0.0)
                    share = many.to(tl.float32) / (seen + many)
                    delta = own - middle
                    m2 += _sum(v * v) + delta * delta * (seen * share)
                    middle += delta * share
                    seen += many
    spread = m2 / seen
    tl.store(mean + s, origin.to(mean.dtype.element_ty) + middle.to(mean.dtype.element_ty))
    tl.store(var + s, spread.to(var.dtype.element_ty))
    rate = 1.0 / tl.sqrt(spread + eps)
    if ONE:
        _write(
            y, residual, weight, bias, base, first, v, rate, 0, 0, P, sc, sp, inner, offset, KIND, BJ, BP,
        )  # fmt: skip
    else:
        for j0 in range(0, inner, BJ):
            for p0 in range(0, P, BP):
                at, inside, many = _tile(j0, p0, inner, P, sc, sp, BJ, BP)
                v = tl.load(x + base + at, mask=inside, other=0.0).to(tl.float32)
                v = (v - origin) - middle
                _write(
                    y, residual, weight, bias, base, first, v, rate, j0, p0, P, sc, sp, inner, offset, KIND, BJ, BP,
                )  # fmt: skip


@triton.jit
def _write(
    y, residual, weight, bias, base, first, v, rate, j0, p0, P, sc, sp, inner, offset,
    KIND: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    at, inside, _ = _tile(j0, p0, inner, P, sc, sp, BJ, BP)
    j = j0 + tl.arange(0, BJ)
    g, b = gain(weight, first + j, j < inner, offset), shift(bias, first + j, j < inner)
    h = v * rate * g[:, None] + b[:, None]
    if residual is not None:
        h += tl.load(residual + base + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + base + at, activated(h, KIND).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _read(
    x, dy, more, weight, bias, base, first, near, rest, rate, j0, p0, P, sc, sp, inner, offset,
    KIND: tl.constexpr, KEPT: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Of one tile: x̂, the gradient of g·x̂ + b + r, and g."""
    at, inside, _ = _tile(j0, p0, inner, P, sc, sp, BJ, BP)
    j = j0 + tl.arange(0, BJ)
    g, b = gain(weight, first + j, j < inner, offset), shift(bias, first + j, j < inner)
    v = tl.load(x + base + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(dy + base + at, mask=inside, other=0.0).to(tl.float32)
    normed = ((v - near) - rest) * rate
    up = slopes(up, more, normed, g[:, None], b[:, None], base + at, inside, KIND, KEPT)
    return tl.where(inside, normed, 0.0), tl.where(inside, up, 0.0), g


@triton.jit
def backward(
    x, dy, more, weight, bias, mean, var, dx, dr, of_weight, of_bias, P, sn, sc, sp, groups, inner, eps, offset,
    KIND: tl.constexpr, KEPT: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr, AJ: tl.constexpr, AP: tl.constexpr,
    ONE: tl.constexpr,
):  # fmt: skip
    """The gradients of input and residual; those of weight and bias that each sample gives, (N, C) each, float32."""
    inner, P, sn, sc, sp = hinted(inner, P, sn, sc, sp, AJ, AP)
    s = tl.program_id(0)
    base = _base(groups, inner, sn, sc)
    first = (s % groups) * inner
    near, rest = centre(mean, s, True)
    rate = scale(var, s, True, eps)
    size = inner * P
    by_scale, by_centre = 0.0, 0.0
    normed, up, g = _read(
        x, dy, more, weight, bias, base, first, near, rest, rate, 0, 0, P, sc, sp, inner, offset, KIND, KEPT, BJ, BP,
    )  # fmt: skip
    j = tl.arange(0, BJ)
    for j0 in range(0, inner, BJ):
        if ONE:
            dw, db = tl.sum(up * normed, 1), tl.sum(up, 1)
        else:
            w, c = tl.zeros([BJ, BP], dtype=tl.float32), tl.zeros([BJ, BP], dtype=tl.float32)
            for p0 in range(0, P, BP):
                normed, up, g = _read(
                    x, dy, more, weight, bias, base, first, near, rest, rate, j0, p0, P, sc, sp, inner, offset,
                    KIND, KEPT, BJ, BP,
                )  # fmt: skip
                w += up * normed
                c += up
            dw, db = tl.sum(w, 1), tl.sum(c, 1)
        channel = s.to(tl.int64) * inner + j0 + j
        tl.store(of_weight + channel, dw, mask=j0 + j < inner)
        tl.store(of_bias + channel, db, mask=j0 + j < inner)
        by_scale += tl.sum(g * dw, 0)
        by_centre += tl.sum(g * db, 0)
    by_scale, by_centre = by_scale / size, by_centre / size
    for j0 in range(0, inner, BJ):
        for p0 in range(0, P, BP):
            if not ONE:
                normed, up, g = _read(
                    x, dy, more, weight, bias, base, first, near, rest, rate, j0, p0, P, sc, sp, inner, offset,
                    KIND, KEPT, BJ, BP,
                )  # fmt: skip
            at, inside, _ = _tile(j0, p0, inner, P, sc, sp, BJ, BP)
            if dr is not None:
                tl.store(dr + base + at, up.to(dr.dtype.element_ty), mask=inside)
            back = (up * g[:, None] - by_centre - normed * by_scale) * rate
            tl.store(dx + base + at, back.to(dx.dtype.element_ty), mask=inside)
