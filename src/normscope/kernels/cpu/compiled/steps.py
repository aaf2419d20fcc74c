"""The words of one time step of a recurrent layer as sizes and arrays: what `recurrent.py` packs, said once."""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from normscope.kernels.cpu.compiled.machine import WORDS, jit, pointer
from normscope.kernels.cpu.compiled.operands import words
from normscope.kernels.cpu.compiled.step_words import (
    AFTER,
    BEFORE,
    BIAS,
    CELL,
    CELL_BIAS,
    DC,
    DH,
    GATES,
    GIVEN,
    OF_BIAS,
    OF_CELL,
    OF_CELL_BIAS,
    OF_GIVEN,
    OF_PRODUCT,
    OF_WEIGHT,
    OUT,
    PRODUCT,
    TOLD,
    WEIGHT,
    WORK,
)  # fmt: skip


class Step(NamedTuple):
    """What a kernel of one time step reads or writes; an array that a call has not is never looked into.

    With N rows (sequences), H hidden units and G gates, W = G·H: the gates lie side by side, each with H units.

    Attributes:
        own: the address of the words, where tasks are counted.
        tasks: how many there are.
        rows: N.
        hidden: H.
        panel: rows of a task, or hidden units of one.
        fixed: whether the statistics are given; else they are measured, and told.
        eps: the guard of the divisions.
        product: the recurrent product, (N, W).
        given: that of the inputs, normalized, with its bias, (N, W).
        weight: of the norm of the product, (W,).
        bias: of the recurrent product, (W,).
        cell: the weight of the norm of the cell, (H,).
        cell_bias: its bias, (H,).
        before: the cell (LSTM) or the hidden state (GRU) before the step, (N, H).
        after: the cell after it, (N, H).
        out: the hidden state after it, (N, H).
        gates: their values, (N, W).
        told: the statistics, as each kernel lays them.
        dh: the gradient of the hidden state; of a GRU, what goes past the product replaces it, (N, H).
        dc: the gradient of the cell after the step, then of that before it, (N, H).
        of_weight: the gradient of `weight`, added to, one row a task or one row.
        of_bias: that of `bias`, likewise.
        of_cell: that of `cell`, likewise.
        of_cell_bias: that of `cell_bias`, likewise.
        of_product: the gradient of the product, (N, W).
        of_given: that of `given`, (N, W).
        work: room for (N, H) numbers.
    """

    own: Any
    tasks: Any
    rows: Any
    hidden: Any
    panel: Any
    fixed: Any
    eps: Any
    product: Any
    given: Any
    weight: Any
    bias: Any
    cell: Any
    cell_bias: Any
    before: Any
    after: Any
    out: Any
    gates: Any
    told: Any
    dh: Any
    dc: Any
    of_weight: Any
    of_bias: Any
    of_cell: Any
    of_cell_bias: Any
    of_product: Any
    of_given: Any
    work: Any


@jit
def _line(word: Any, i: int, size: int) -> Any:
    return carray(pointer(word[i]), (size,), np.float32)


@jit
def _table(word: Any, i: int, rows: int, size: int, dtype: Any) -> Any:
    return carray(pointer(word[i]), (rows, size), dtype)


@jit
def unpacked(p: Any, gates: int) -> Any:
    """All operands of a cell with so many gates."""
    word, real = words(p), carray(p, (WORDS,), np.float64)
    tasks, n, hidden, width = word[2], word[3], word[4], gates * word[4]
    f32, f64 = np.float32, np.float64
    return Step(
        word[1], tasks, n, hidden, word[5], word[6], real[9],
        _table(word, PRODUCT, n, width, f32), _table(word, GIVEN, n, width, f32),
        _line(word, WEIGHT, width), _line(word, BIAS, width), _line(word, CELL, hidden), _line(word, CELL_BIAS, hidden),
        _table(word, BEFORE, n, hidden, f32), _table(word, AFTER, n, hidden, f32), _table(word, OUT, n, hidden, f32),
        _table(word, GATES, n, width, f32), carray(pointer(word[TOLD]), (4 * n + 10 * hidden,), f64),
        _table(word, DH, n, hidden, f32), _table(word, DC, n, hidden, f32),
        _table(word, OF_WEIGHT, tasks, width, f64), _table(word, OF_BIAS, tasks, width, f64),
        _table(word, OF_CELL, tasks, hidden, f64), _table(word, OF_CELL_BIAS, tasks, hidden, f64),
        _table(word, OF_PRODUCT, n, width, f32), _table(word, OF_GIVEN, n, width, f32),
        _table(word, WORK, n, hidden, f32),
    )  # fmt: skip
