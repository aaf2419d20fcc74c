"""Statistics in two stages, and what is done to every number with them: for a batch, and for groups that are large.

The tensor is looked at as (N, C, P) with any strides. A tile is BJ channels by BP positions of one sample; tiles of
the same channels are numbered sample by sample, and a chunk of so many tiles is one program. Programs write what they
found beside each other, and a second kernel merges it in a fixed order: no atomics, the same bits every time.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from normscope.kernels.triton.compiled.parts import activated, centre, gain, hinted, scale, shift, slopes


@triton.jit
def _tile(item, tiles, C, P, sn, sc, sp, BJ: tl.constexpr, BP: tl.constexpr):
    """Where tile `item` of this program's channels begins, its offsets, and which of its numbers exist."""
    n = item // tiles
    p0 = (item % tiles) * BP
    j0 = tl.program_id(1) * BJ
    j, p = tl.arange(0, BJ), tl.arange(0, BP)
    base = n.to(tl.int64) * sn + j0.to(tl.int64) * sc + p0.to(tl.int64) * sp
    inside = (j0 + j < C)[:, None] & (p0 + p < P)[None, :]
    return base + (j[:, None] * sc + p[None, :] * sp), inside, tl.minimum(P - p0, BP)


@triton.jit
def _statistic(item, tiles, j, C, inner, of_sample):
    """The number of the statistic of each channel of a tile: of its group, in its sample."""
    return (item // tiles) * of_sample + j // inner


@triton.jit
def moments(
    x, found, C, P, sn, sc, sp, tiles, items, chunk, splits, plane,
    BJ: tl.constexpr, BP: tl.constexpr, AJ: tl.constexpr, AP: tl.constexpr,
):  # fmt: skip
    """Count, mean and M2 of each channel in each chunk, float64, one plane of (chunks, C) each."""
    C, P, sn, sc, sp = hinted(C, P, sn, sc, sp, AJ, AP)
    k = tl.program_id(0)
    first = (k // splits) * items + (k % splits) * chunk
    last = tl.minimum(first + chunk, (k // splits + 1) * items)
    # the mean of the first tile as the origin: what follows is small, and float32 tells it well
    at, inside, many = _tile(first, tiles, C, P, sn, sc, sp, BJ, BP)
    origin = tl.sum(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), 1) / many
    mean, m2 = tl.zeros([BJ], dtype=tl.float32), tl.zeros([BJ], dtype=tl.float32)
    seen = 0
    for step in range(last - first):
        item = first + step
        at, inside, many = _tile(item, tiles, C, P, sn, sc, sp, BJ, BP)
        v = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - origin[:, None], 0.0)
        own = tl.sum(v, 1) / many
        v = tl.where(inside, v - own[:, None], 0.0)
        share = many.to(tl.float32) / (seen + many)
        delta = own - mean
        m2 += tl.sum(v * v, 1) + delta * delta * (seen * share)
        mean += delta * share
        seen += many
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    out = found + k.to(tl.int64) * C + j
    tl.store(out, tl.zeros([BJ], dtype=tl.float64) + seen, mask=j < C)
    tl.store(out + plane, origin.to(tl.float64) + mean.to(tl.float64), mask=j < C)
    tl.store(out + 2 * plane, m2.to(tl.float64), mask=j < C)


@triton.jit
def _of(C, groups, inner, BJ: tl.constexpr, EACH: tl.constexpr):
    """Whose statistics a program settles: sample, first channel, how many of them, numbers of the statistics, which."""
    if EACH:  # every channel has its own: BJ of them
        n = tl.program_id(1)
        first = tl.program_id(0) * BJ
        width = tl.minimum(C - first, BJ)
        s = n * C + first + tl.arange(0, BJ)
        there = tl.arange(0, BJ) < width
    else:
        s = tl.program_id(0)
        n = s // groups
        first = (s % groups) * inner
        width = inner
        there = s >= 0
    return n, first, width, s, there


@triton.jit
def _reduced(v, EACH: tl.constexpr):
    v = tl.sum(v, 0)
    if not EACH:
        v = tl.sum(v, 0)
    return v


@triton.jit
def settled(found, mean, var, C, groups, inner, splits, plane, BK: tl.constexpr, BJ: tl.constexpr, EACH: tl.constexpr):
    """The merge of all chunks and channels that a statistic is of."""
    n, first, width, s, there = _of(C, groups, inner, BJ, EACH)
    k, j = tl.arange(0, BK), tl.arange(0, BJ)
    base = found + n.to(tl.int64) * splits * C + first
    size, total = tl.zeros([BK, BJ], dtype=tl.float64), tl.zeros([BK, BJ], dtype=tl.float64)
    for k0 in range(0, splits, BK):
        for j0 in range(0, width, BJ):
            inside = (k0 + k < splits)[:, None] & (j0 + j < width)[None, :]
            at = base + (k0 + k)[:, None].to(tl.int64) * C + (j0 + j)[None, :]
            many = tl.load(at, mask=inside, other=0.0)
            size += many
            total += many * tl.load(at + plane, mask=inside, other=0.0)
    count = tl.maximum(_reduced(size, EACH), 1.0)
    middle = _reduced(total, EACH) / count
    m2 = tl.zeros([BK, BJ], dtype=tl.float64)
    for k0 in range(0, splits, BK):
        for j0 in range(0, width, BJ):
            inside = (k0 + k < splits)[:, None] & (j0 + j < width)[None, :]
            at = base + (k0 + k)[:, None].to(tl.int64) * C + (j0 + j)[None, :]
            off = tl.load(at + plane, mask=inside, other=0.0) - middle
            m2 += tl.load(at + 2 * plane, mask=inside, other=0.0)
            m2 += tl.where(inside, tl.load(at, mask=inside, other=0.0) * off * off, 0.0)
    tl.store(mean + s, middle.to(mean.dtype.element_ty), mask=there)
    tl.store(var + s, (_reduced(m2, EACH) / count).to(var.dtype.element_ty), mask=there)


@triton.jit
def mapped(
    x, y, residual, weight, bias, mean, var, C, P, sn, sc, sp, tiles, inner, of_sample, eps, offset,
    KIND: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr, AJ: tl.constexpr, AP: tl.constexpr,
):  # fmt: skip
    """f(g · (x − μ)/σ + b + r), tile by tile."""
    C, P, sn, sc, sp = hinted(C, P, sn, sc, sp, AJ, AP)
    item = tl.program_id(0)
    at, inside, _ = _tile(item, tiles, C, P, sn, sc, sp, BJ, BP)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    s = _statistic(item, tiles, j, C, inner, of_sample)
    near, rest = centre(mean, s, j < C)
    rate = scale(var, s, j < C, eps)
    g, b = gain(weight, j, j < C, offset), shift(bias, j, j < C)
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    h = ((v - near[:, None]) - rest[:, None]) * rate[:, None] * g[:, None] + b[:, None]
    if residual is not None:
        h += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, activated(h, KIND).to(y.dtype.element_ty), mask=inside)


@triton.jit
def sums(
    x, dy, more, weight, bias, mean, var, found, C, P, sn, sc, sp, tiles, items, chunk, splits, plane, inner,
    of_sample, eps, offset, KIND: tl.constexpr, KEPT: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr,
    AJ: tl.constexpr, AP: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias that each chunk of each channel gives: two planes of (chunks, C), float64."""
    C, P, sn, sc, sp = hinted(C, P, sn, sc, sp, AJ, AP)
    k = tl.program_id(0)
    first = (k // splits) * items + (k % splits) * chunk
    last = tl.minimum(first + chunk, (k // splits + 1) * items)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    g, b = gain(weight, j, j < C, offset), shift(bias, j, j < C)
    of_weight, of_bias = tl.zeros([BJ, BP], dtype=tl.float32), tl.zeros([BJ, BP], dtype=tl.float32)
    for step in range(last - first):
        item = first + step
        at, inside, _ = _tile(item, tiles, C, P, sn, sc, sp, BJ, BP)
        s = _statistic(item, tiles, j, C, inner, of_sample)
        near, rest = centre(mean, s, j < C)
        rate = scale(var, s, j < C, eps)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        normed = ((v - near[:, None]) - rest[:, None]) * rate[:, None]
        up = slopes(up, more, normed, g[:, None], b[:, None], at, inside, KIND, KEPT)
        of_weight += tl.where(inside, up * normed, 0.0)
        of_bias += tl.where(inside, up, 0.0)
    out = found + k.to(tl.int64) * C + j
    tl.store(out, tl.sum(of_weight, 1).to(tl.float64), mask=j < C)
    tl.store(out + plane, tl.sum(of_bias, 1).to(tl.float64), mask=j < C)


@triton.jit
def settled_back(
    found, weight, of_scale, of_centre, C, groups, inner, splits, plane, size, offset,
    BK: tl.constexpr, BJ: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """The means of g·dh·x̂ and g·dh over the cells of each statistic, float32."""
    n, first, width, s, there = _of(C, groups, inner, BJ, EACH)
    k, j = tl.arange(0, BK), tl.arange(0, BJ)
    base = found + n.to(tl.int64) * splits * C + first
    by_scale, by_centre = tl.zeros([BK, BJ], dtype=tl.float64), tl.zeros([BK, BJ], dtype=tl.float64)
    for j0 in range(0, width, BJ):
        g = gain(weight, first + j0 + j, j0 + j < width, offset)[None, :].to(tl.float64)
        for k0 in range(0, splits, BK):
            inside = (k0 + k < splits)[:, None] & (j0 + j < width)[None, :]
            at = base + (k0 + k)[:, None].to(tl.int64) * C + (j0 + j)[None, :]
            by_scale += g * tl.load(at, mask=inside, other=0.0)
            by_centre += g * tl.load(at + plane, mask=inside, other=0.0)
    tl.store(of_scale + s, (_reduced(by_scale, EACH) / size).to(tl.float32), mask=there)
    tl.store(of_centre + s, (_reduced(by_centre, EACH) / size).to(tl.float32), mask=there)


@triton.jit
def mapped_back(
    x, dy, more, weight, bias, mean, var, of_scale, of_centre, dx, dr, C, P, sn, sc, sp, tiles, inner, of_sample, eps,
    offset, KIND: tl.constexpr, KEPT: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr, AJ: tl.constexpr,
    AP: tl.constexpr,
):  # fmt: skip
    """The gradient of the input, and of the residual where there was one; `of_scale` None: statistics were given."""
    C, P, sn, sc, sp = hinted(C, P, sn, sc, sp, AJ, AP)
    item = tl.program_id(0)
    at, inside, _ = _tile(item, tiles, C, P, sn, sc, sp, BJ, BP)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    s = _statistic(item, tiles, j, C, inner, of_sample)
    near, rest = centre(mean, s, j < C)
    rate = scale(var, s, j < C, eps)
    g, b = gain(weight, j, j < C, offset), shift(bias, j, j < C)
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    normed = ((v - near[:, None]) - rest[:, None]) * rate[:, None]
    up = slopes(up, more, normed, g[:, None], b[:, None], at, inside, KIND, KEPT)
    if dr is not None:
        tl.store(dr + at, up.to(dr.dtype.element_ty), mask=inside)
    up = up * g[:, None]
    if of_scale is not None:
        up -= tl.load(of_centre + s, mask=j < C, other=0.0)[:, None]
        up -= normed * tl.load(of_scale + s, mask=j < C, other=0.0)[:, None]
    tl.store(dx + at, (up * rate[:, None]).to(dx.dtype.element_ty), mask=inside)
