"""The words of a batch, group or instance norm's kernel as sizes and arrays: what `channels.py` packs, said once."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled.machine import WORDS, inlined, jit, pointer, take


class Operands(NamedTuple):
    """What every kernel reads or writes; an array that a call has not is never looked into.

    Attributes:
        own: the address of the words, where tasks are counted.
        tasks: how many there are.
        samples: N, or the rows of a batch of rows of channels.
        channels: C.
        positions: of a sample.
        groups: statistics of a sample.
        eps: the guard of the division.
        x: the input.
        y: what is written: the output, or the gradient of the input.
        weight: g, (channels,).
        bias: b, (channels,).
        mean: μ, one a statistic.
        var: σ², one a statistic.
        more: the residual, or the output that was kept.
        dy: the gradient of the output.
        of_weight: the share in the gradient of g of each sample or task, (…, channels).
        of_bias: that in the gradient of b.
        dr: the gradient of the residual.
        dw: the gradient of g, (channels,).
        db: that of b.
    """

    own: Any
    tasks: Any
    samples: Any
    channels: Any
    positions: Any
    groups: Any
    eps: Any
    x: Any
    y: Any
    weight: Any
    bias: Any
    mean: Any
    var: Any
    more: Any
    dy: Any
    of_weight: Any
    of_bias: Any
    dr: Any
    dw: Any
    db: Any


@jit
def words(p: Any) -> Any:
    """The words as integers."""
    return carray(p, (WORDS,), np.int64)


@jit
def numbers(word: Any, i: int, size: int, dtype: Any) -> Any:
    """The array of `size` numbers at the address that word `i` holds."""
    return carray(pointer(word[i]), (size,), dtype)


@jit
def bench(word: Any) -> int:
    """The address of the place where this thread works, which who launches the kernel provides."""
    return word[36] + take(word[1] + 8 * 38) * word[37]


@jit
def table(address: int, rows: int, width: int, dtype: Any) -> Any:
    """The array (rows, width) at an address."""
    return carray(pointer(address), (rows, width), dtype)


@jit
def fill(values: Any, value: float) -> None:
    """Set each."""
    for i in range(len(values)):
        values[i] = value


@jit
def move(source: Any, at: int, to: Any, begin: int, count: int) -> None:
    """Copy so many numbers from `at` on to `begin` and on."""
    for i in range(count):
        to[begin + i] = source[at + i]


@jit
def unpacked(p: Any, dtype: Any) -> Any:
    """All operands; `dtype` is that of the tensors."""
    word, real = words(p), carray(p, (WORDS,), np.float64)
    samples, channels, positions, groups = word[3], word[4], word[5], word[6]
    every, each = samples * channels * positions, samples * channels
    return Operands(
        word[1], word[2], samples, channels, positions, groups, real[9],
        numbers(word, 10, every, dtype), numbers(word, 11, every, dtype),
        numbers(word, 12, channels, np.float32), numbers(word, 13, channels, np.float32),
        numbers(word, 14, each, np.float64), numbers(word, 15, each, np.float64),
        numbers(word, 16, every, dtype), numbers(word, 17, every, dtype),
        numbers(word, 18, each, np.float64), numbers(word, 19, each, np.float64),
        numbers(word, 20, every, dtype), numbers(word, 31, channels, np.float32),
        numbers(word, 32, channels, np.float32),
    )  # fmt: skip


@inlined
def kind_of(word: Any, smooth: int) -> int:
    """The number of the activation: `smooth`, for which the kernel is compiled, or which of the others was told."""
    return smooth if smooth else min(word[33], 2)


@jit
def gather(o: Any, parts: int) -> None:
    """Write the gradients of g and b, of which there are so many parts."""
    for k in range(1, parts):
        for c in range(o.channels):
            o.of_weight[c] += o.of_weight[k * o.channels + c]
            o.of_bias[c] += o.of_bias[k * o.channels + c]
    for c in range(o.channels):
        o.dw[c], o.db[c] = o.of_weight[c], o.of_bias[c]
