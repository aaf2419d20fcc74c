"""Forward and backward in sweeps over the whole tensor: each chunk on its own, the merge, then every number."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.kernels.offer import Gradients, Made, Operands, Problem
from normscope.kernels.triton.form import (
    PROGRAMS,
    Form,
    flat,
    fresh_statistics,
    like,
    loops,
    on,
    power,
    room,
    told,
    warps,
)

_TOGETHER = 64  # channels that a program of the merge looks at together


class _Cut(NamedTuple):
    """How the tiles of a channel are cut into chunks, one a program."""

    items: int  # tiles that may be in one chunk together: of a sample, or of all
    chunk: int  # tiles of a chunk
    splits: int  # chunks of so many tiles
    chunks: int  # of the whole tensor
    columns: int  # tiles side by side, along the channels


def _cut(form: Form) -> _Cut:
    columns = -(-form.channels // form.block[0])
    apart = 1 if form.batch else form.samples
    items = form.tiles * form.samples // apart
    chunk = math.ceil(items / max(1, PROGRAMS // (columns * apart)))
    splits = -(-items // chunk)
    return _Cut(items, chunk, splits, apart * splits, columns)


def forward(problem: Problem, form: Form, operands: Operands) -> Made:
    """The output, and the statistics where none were given."""
    kernels = loops("channels")
    x = operands.x
    y = room(x)
    with on(x):
        mean, var = fresh_statistics(x, 0 if problem.given else form.statistics)
        if not problem.given:
            _measure(kernels, form, x, mean, var)
        grid = (form.samples * form.tiles, _cut(form).columns)
        kernels.mapped[grid](
            x, y, operands.residual, flat(operands.weight), flat(operands.bias), *told(operands, mean, var),
            *_sizes(form), *_where(problem, form), KIND=problem.spec.activation, **_tile(form),
        )  # fmt: skip
    return Made(y.to(x.dtype), mean, var)


def backward(problem: Problem, form: Form, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    """The gradients of all operands."""
    kernels = loops("channels")
    x, kept = operands.x, problem.keeps
    more = y if kept == "y" else operands.residual if kept else None
    dx, dr = room(x), room(x) if kept else None
    with on(x):
        weight, bias = flat(operands.weight), flat(operands.bias)
        mean, var = told(operands, made.mean, made.var)
        same = (*_sizes(form), *_where(problem, form))
        words: dict[str, Any] = {"KIND": problem.spec.activation, "KEPT": kept, **_tile(form)}
        cut = _cut(form)
        found = torch.empty(2, cut.chunks, form.channels, dtype=torch.float64, device=x.device)
        needed = not problem.given or weight is not None or bias is not None
        if needed:
            kernels.sums[cut.chunks, cut.columns](
                x, grad, more, weight, bias, mean, var, found, *same[:6], *cut[:3], found[0].numel(), *same[6:], **words
            )
        of_scale = of_centre = None
        if not problem.given:
            of_scale, of_centre = torch.empty(2, form.statistics, device=x.device).unbind()
            kernels.settled_back[_settlers(form)](
                found, weight, of_scale, of_centre, form.channels, form.groups, form.inner, cut.splits,
                found[0].numel(), form.size, problem.spec.weight_offset, **_merge(form, cut),
            )  # fmt: skip
        kernels.mapped_back[form.samples * form.tiles, cut.columns](
            x, grad, more, weight, bias, mean, var, of_scale, of_centre, dx, dr, *same, **words
        )
        dw, db = found.sum(1) if needed else found[:, 0]
    return Gradients(dx.to(x.dtype), like(dw, operands.weight), like(db, operands.bias), like(dr, operands.x))


def _measure(kernels: Any, form: Form, x: Tensor, mean: Tensor, var: Tensor) -> None:
    cut = _cut(form)
    found = torch.empty(3, cut.chunks, form.channels, dtype=torch.float64, device=x.device)
    plane = found[0].numel()
    kernels.moments[cut.chunks, cut.columns](x, found, *_sizes(form), *cut[:3], plane, **_tile(form))
    kernels.settled[_settlers(form)](
        found, mean, var, form.channels, form.groups, form.inner, cut.splits, plane, **_merge(form, cut)
    )


def _sizes(form: Form) -> tuple[int, ...]:
    return form.channels, form.positions, *form.strides, form.tiles


def _where(problem: Problem, form: Form) -> tuple[int | float, ...]:
    """Which statistic is whose, eps, and what is added to the weight."""
    of_sample = 0 if form.batch else form.groups
    return form.inner, of_sample, problem.spec.eps or 0.0, problem.spec.weight_offset


def _tile(form: Form) -> dict[str, int]:
    across, along = form.block
    return {"BJ": across, "BP": along, "num_warps": warps(across * along)}


def _settlers(form: Form) -> tuple[int, int]:
    """The programs of the merge: one a statistic, or one for many where each is of one channel."""
    if form.inner > 1:
        return form.statistics, 1
    return -(-form.channels // min(power(form.channels), _TOGETHER)), form.statistics // form.channels


def _merge(form: Form, cut: _Cut) -> dict[str, Any]:
    across = min(power(form.inner if form.inner > 1 else form.channels), _TOGETHER)
    return {"BJ": across, "BK": min(power(cut.splits), 1024 // across), "EACH": form.inner == 1, "num_warps": 4}
