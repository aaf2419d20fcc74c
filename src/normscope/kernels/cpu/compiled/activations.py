"""Activations and their slopes, of single numbers and of lanes.

Kinds: 0 none, 1 ReLU, 2 LeakyReLU, 3 SiLU, 4 GELU, 5 GELU by tanh.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.lanes import below, floor, power, where
from normscope.kernels.cpu.compiled.limits import share, within
from normscope.kernels.cpu.compiled.machine import inlined

F0, F1, HALF, LEAK = np.float32(0), np.float32(1), np.float32(0.5), np.float32(0.01)
_UNLEAK = np.float32(100)
_LEAST = np.float32(1.4e-45)  # the least number above zero
_INFINITE, _NAN = np.float32(np.inf), np.float32(np.nan)
_LOG2E, _LN2, _LN2_REST = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOW, _HIGH = np.float32(-87.0), np.float32(88.0)
_E0, _E1, _E2 = np.float32(1.9875691e-4), np.float32(1.3981999e-3), np.float32(8.3334519e-3)
_E3, _E4, _E5 = np.float32(4.1665796e-2), np.float32(1.6666666e-1), np.float32(5.0e-1)


@inlined
def exponential(z: Any) -> Any:
    """e^z to 2 units in the last place, without a call, so that loops over it become vector code (Cephes' expf)."""
    z = where(below(z, _HIGH), z, _HIGH)
    z = where(below(_LOW, z), z, _LOW)
    n = floor(z * _LOG2E + HALF)
    r = z - n * _LN2 - n * _LN2_REST
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    return (p * r * r + r + F1) * power(n)


# Φ(z) − ½ = z·P(w) up to |z| = 5.25, and the slope of GELU less ½ = z·Q(w) up to |z| = 5.6, with w = 2z²/top² − 1. Both
# are odd in z and analytic: a polynomial needs neither a division nor e^z, whose units are what GELU waits for.
# Fitted to the least error over Chebyshev's nodes; in float32 the first is off by 2e-7 at most, the second by 4e-7.
_TOP, _TO_W = np.float32(5.25**2), np.float32(2 / 5.25**2)
_P13, _P12, _P11, _P10, _P9, _P8, _P7, _P6, _P5, _P4, _P3, _P2, _P1, _P0 = (
    np.float32(c)
    for c in (
        -0.000560946413, 0.00145660958, -0.00132637145, 0.00186945242, -0.00511995424, 0.00907036662,
        -0.0129544018, 0.0183260012, -0.0249949265, 0.0320642591, -0.0397686362, 0.0496438965,
        -0.0671266541, 0.134659365,
    )
)  # fmt: skip
_BEND, _BEND_TO_W = np.float32(5.6), np.float32(2 / 5.6**2)
_Q15, _Q14, _Q13, _Q12, _Q11, _Q10, _Q9, _Q8, _Q7, _Q6, _Q5, _Q4, _Q3, _Q2, _Q1, _Q0 = (
    np.float32(c)
    for c in (
        -0.00676893024, 0.0162352137, -0.00690509425, 0.00184484629, -0.0321607664, 0.0575310364,
        -0.0558831804, 0.0600381605, -0.0721656457, 0.0732012913, -0.0651848391, 0.0565010756,
        -0.0509472303, 0.0518161096, -0.0642829016, 0.126416579,
    )
)  # fmt: skip
_TANH, _CUBE, _THREE, _FLAT = np.float32(1.5957691216), np.float32(0.07135481283), np.float32(3), np.float32(12)


@inlined
def normal_cdf(z: Any) -> Any:
    """Φ(z); exactly 0 and 1 beyond 5.25."""
    w = within(z * z, _TOP) * _TO_W - F1
    p = (((((_P13 * w + _P12) * w + _P11) * w + _P10) * w + _P9) * w + _P8) * w + _P7
    p = ((((((p * w + _P6) * w + _P5) * w + _P4) * w + _P3) * w + _P2) * w + _P1) * w + _P0
    return share(z * p + HALF)


@inlined
def gelu_slope(z: Any) -> Any:
    """Φ(z) + z·φ(z)."""
    u = within(z, _BEND)
    w = u * u * _BEND_TO_W - F1
    p = ((((((_Q15 * w + _Q14) * w + _Q13) * w + _Q12) * w + _Q11) * w + _Q10) * w + _Q9) * w + _Q8
    p = (((((((p * w + _Q7) * w + _Q6) * w + _Q5) * w + _Q4) * w + _Q3) * w + _Q2) * w + _Q1) * w + _Q0
    return u * p + HALF


@inlined
def tanh_cdf(z: Any) -> Any:
    """(1 + tanh(√(2/π)·(z + 0.044715·z³)))/2, which is nearly Φ(z) (Hendrycks & Gimpel 2016)."""
    u = within(z, _FLAT)
    return F1 / (exponential(F0 - u * (u * u * _CUBE + _TANH)) + F1)


@inlined
def activated(kind: int, z: Any) -> Any:
    """f(z)."""
    if kind == 1:
        return where(below(z, F0), F0, z)  # NaN stays
    if kind == 2:
        return where(below(z, F0), z * LEAK, z)
    if kind == 3:
        return z / (F1 + exponential(F0 - z))
    if kind == 4:
        return z * normal_cdf(z)
    if kind == 5:
        return z * tanh_cdf(z)
    return z


@inlined
def through(kind: int, z: Any, grad: Any) -> Any:
    """f′(z)·grad; at the corner of the ReLU family f′ is that of the left side, as torch has it."""
    if kind == 1:
        return where(below(z, _LEAST), F0, grad)  # where z is NaN, the gradient passes, as in torch
    if kind == 2:
        return where(below(F0, z), grad, grad * LEAK)
    if kind == 3:
        s = F1 / (F1 + exponential(F0 - z))
        return grad * (s * (F1 + z * (F1 - s)))
    if kind == 4:
        return where(below(z, _INFINITE), grad * gelu_slope(z), _NAN)  # limits make a number of NaN
    if kind == 5:
        s, u = tanh_cdf(z), within(z, _FLAT)
        slope = s + u * s * (F1 - s) * (u * u * _CUBE * _THREE + _TANH)
        return where(below(z, _INFINITE), grad * slope, _NAN)
    return grad


@inlined
def inverse(kind: int, y: Any) -> Any:
    """The z of f(z) = y, for kinds 0 and 2."""
    if kind == 2:
        return where(below(y, F0), y * _UNLEAK, y)
    return y
