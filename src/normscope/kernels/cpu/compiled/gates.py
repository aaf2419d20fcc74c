"""The gates of recurrent cells, forward and backward, of some hidden units of one sequence at one time step."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from normscope.kernels.cpu.compiled.activations import F0, F1, exponential
from normscope.kernels.cpu.compiled.loops import apart, read, write
from normscope.kernels.cpu.compiled.machine import inlined

_TWO, _NEAR = np.float32(2), np.float32(0.625)
_T0, _T1, _T2 = np.float32(-5.70498872745e-3), np.float32(2.06390887954e-2), np.float32(-5.37397155531e-2)
_T3, _T4 = np.float32(1.33314422036e-1), np.float32(-3.33332819422e-1)


@inlined
def sigmoid(z: Any) -> Any:
    """1 / (1 + e^−z); NaN stays, which `exponential` takes for a large number."""
    return F1 / (F1 + exponential(F0 - z)) if z == z else z


@inlined
def tanh(z: Any) -> Any:
    """The hyperbolic tangent: a polynomial near 0, where 1 − 2 / (e^2z + 1) would cancel (Cephes' tanhf); NaN stays."""
    s = z * z
    near = ((((_T0 * s + _T1) * s + _T2) * s + _T3) * s + _T4) * s * z + z
    far = F1 - _TWO / (F1 + exponential(_TWO * z))
    return near if s < _NEAR * _NEAR else far if z == z else z


@inlined
def squashed(a: Any, out: Any) -> None:
    """The tanh of each."""
    apart()
    for j in range(len(out)):
        write(out, j, tanh(read(a, j)))


@inlined
def opened(a: Any, out: Any) -> None:
    """The sigmoid of each."""
    apart()
    for j in range(len(out)):
        write(out, j, sigmoid(read(a, j)))


@inlined
def kept(i: Any, f: Any, g: Any, before: Any, after: Any) -> None:
    """The cell of an LSTM after the step."""
    apart()
    for j in range(len(i)):
        write(after, j, read(f, j) * read(before, j) + read(i, j) * read(g, j))


@inlined
def times(o: Any, reached: Any, out: Any) -> None:
    """The product of each."""
    apart()
    for j in range(len(o)):
        write(out, j, read(o, j) * read(reached, j))


@inlined
def before_tanh(up: Any, o: Any, reached: Any, out: Any) -> None:
    """The gradient of the normalized cell, where that of h = o · tanh is `up` and the tanh is `reached`."""
    apart()
    for j in range(len(o)):
        t = read(reached, j)
        write(out, j, read(up, j) * read(o, j) * (F1 - t * t))


@inlined
def lstm_back(
    i: Any, f: Any, g: Any, o: Any, before: Any, up: Any, along: Any, reached: Any, di: Any, df: Any, dg: Any, do: Any
) -> None:
    """The gradients before the gates, and that of the cell before this step in place of that after it, `along`.

    `up` is the gradient of the hidden state, `reached` the tanh of the normalized cell.
    """
    apart()
    for j in range(len(i)):
        c = read(along, j)
        write(di, j, c * read(g, j) * read(i, j) * (F1 - read(i, j)))
        write(df, j, c * read(before, j) * read(f, j) * (F1 - read(f, j)))
        write(dg, j, c * read(i, j) * (F1 - read(g, j) * read(g, j)))
        write(do, j, read(up, j) * read(reached, j) * read(o, j) * (F1 - read(o, j)))
        write(along, j, c * read(f, j))


@inlined
def gru(r: Any, z: Any, n: Any, given: Any, product: Any, before: Any, after: Any) -> None:
    """H = n + z·(h₀ − n), with n = tanh(x + r·p), where `product` is p, `given` is x."""
    apart()
    for j in range(len(n)):
        candidate = tanh(read(given, j) + read(r, j) * read(product, j))
        write(n, j, candidate)
        write(after, j, candidate + read(z, j) * (read(before, j) - candidate))


@inlined
def gru_back(r: Any, z: Any, n: Any, product: Any, before: Any, up: Any, dr: Any, dz: Any, dn: Any, dp: Any) -> None:
    """The gradients before the gates and of p, and that of the state before this step in place of that after it."""
    apart()
    for j in range(len(n)):
        d, open_, kept, c = read(up, j), read(r, j), read(z, j), read(n, j)
        of_n = d * (F1 - kept) * (F1 - c * c)
        write(dn, j, of_n)
        write(dp, j, of_n * open_)
        write(dr, j, of_n * read(product, j) * open_ * (F1 - open_))
        write(dz, j, d * (read(before, j) - c) * kept * (F1 - kept))
        write(up, j, d * kept)
