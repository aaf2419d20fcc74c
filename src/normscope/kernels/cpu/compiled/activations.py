"""Activations and their slopes, of single numbers and of lanes; kinds: 0 none, 1 ReLU, 2 LeakyReLU, 3 SiLU, 4 GELU."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.lanes import below, floor, power, where
from normscope.kernels.cpu.compiled.machine import inlined

F0, F1, HALF, LEAK = np.float32(0), np.float32(1), np.float32(0.5), np.float32(0.01)
_UNLEAK = np.float32(100)
MINUS_HALF, _LEAST = np.float32(-0.5), np.float32(1.4e-45)  # the least number above zero
_LOG2E, _LN2, _LN2_REST = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_SQRT_HALF, _PDF = np.float32(0.70710678), np.float32(0.39894228)
_LOW, _HIGH, _FOUR, _MINUS_FOUR = np.float32(-87.0), np.float32(88.0), np.float32(4.0), np.float32(-4.0)
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


_A = tuple(
    np.float32(a)
    for a in (
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    )
)  # fmt: skip
_B = tuple(
    np.float32(b)
    for b in (
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)  # fmt: skip
_A0, _A1, _A2, _A3, _A4, _A5, _A6 = _A
_B0, _B1, _B2, _B3, _B4 = _B


@inlined
def normal_cdf(z: Any) -> Any:
    """Φ(z), from erf as a rational function of odd degree 13 over degree 8 (the coefficients of Eigen's float erf)."""
    u = z * _SQRT_HALF
    u = where(below(u, _FOUR), u, _FOUR)
    u = where(below(_MINUS_FOUR, u), u, _MINUS_FOUR)
    s = u * u
    p = (((((_A0 * s + _A1) * s + _A2) * s + _A3) * s + _A4) * s + _A5) * s + _A6
    q = (((_B0 * s + _B1) * s + _B2) * s + _B3) * s + _B4
    return HALF + HALF * (u * p / q)


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
        return grad * (normal_cdf(z) + z * _PDF * exponential(MINUS_HALF * z * z))
    return grad


@inlined
def inverse(kind: int, y: Any) -> Any:
    """The z of f(z) = y, for kinds 0 and 2."""
    if kind == 2:
        return where(below(y, F0), y * _UNLEAK, y)
    return y
