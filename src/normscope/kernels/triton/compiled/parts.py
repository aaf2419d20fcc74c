"""What the kernels share: the activation and its slope, how a statistic is read, and Chan's merge."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activated(h, KIND: tl.constexpr):
    """f(h), in float32; NaN stays NaN."""
    if KIND == "relu":
        h = tl.where(h <= 0.0, 0.0, h)
    elif KIND == "leaky_relu":
        h = tl.where(h > 0.0, h, 0.01 * h)
    elif KIND == "silu":
        h = h * tl.sigmoid(h)
    elif KIND == "gelu":
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    return h


@triton.jit
def returned(dy, h, KIND: tl.constexpr):
    """Dy · f'(h). Of ReLU and LeakyReLU `h` may be the output as well."""
    if KIND == "relu":
        dy = tl.where(h <= 0.0, 0.0, dy)
    elif KIND == "leaky_relu":
        dy = tl.where(h > 0.0, dy, 0.01 * dy)
    elif KIND == "silu":
        s = tl.sigmoid(h)
        dy = dy * s * (1.0 + h * (1.0 - s))
    elif KIND == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * h * h)
        dy = dy * (0.5 * (1.0 + tl.erf(h * 0.7071067811865476)) + h * density)
    return dy


@triton.jit
def centre(mean, at, inside):
    """μ as two float32 numbers whose sum it is: the second one holds what float32 leaves of a float64."""
    told = tl.load(mean + at, mask=inside, other=0.0)
    near = told.to(tl.float32)
    return near, (told - near.to(told.dtype)).to(tl.float32)


@triton.jit
def scale(var, at, inside, eps):
    """1/σ, in float32."""
    return 1.0 / tl.sqrt(tl.load(var + at, mask=inside, other=1.0).to(tl.float32) + eps)


@triton.jit
def gain(weight, at, inside, offset):
    """The g of the formula in float32; 1 without a weight."""
    if weight is None:
        g = tl.where(inside, 1.0, 0.0)
    else:
        g = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset
    return g


@triton.jit
def shift(bias, at, inside):
    """The b of the formula in float32; 0 without a bias."""
    if bias is None:
        b = tl.where(inside, 0.0, 0.0)
    else:
        b = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    return b


@triton.jit
def slopes(dy, more, normed, g, b, where, inside, KIND: tl.constexpr, KEPT: tl.constexpr):
    """The gradient of g·x̂ + b + r. `more`: what was kept beside the input, "y" or "residual"."""
    if KEPT == "y":
        h = tl.load(more + where, mask=inside, other=0.0).to(tl.float32)
    else:
        h = normed * g + b
        if KEPT == "residual":
            h += tl.load(more + where, mask=inside, other=0.0).to(tl.float32)
    return returned(dy, h, KIND)


@triton.jit
def hinted(C, P, sn, sc, sp, AJ: tl.constexpr, AP: tl.constexpr):
    """The sizes and strides as they are, so that the compiler sees that AJ divides C and `sp`, and AP both P and `sc`.

    It sees 16 by itself. What it does not see to be aligned it reads number by number.
    """
    if AJ > 1:
        C = C // AJ * AJ
        sn = sn // AJ * AJ
        sp = sp // AJ * AJ
    if AP > 1:
        P = P // AP * AP
        sn = sn // AP * AP
        sc = sc // AP * AP
    return C, P, sn, sc, sp
