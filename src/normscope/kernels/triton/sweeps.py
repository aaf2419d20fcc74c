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
    guard,
    like,
    loops,
    on,
    power,
    room,
    tiled,
    told,
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
            settle(form, moments(form, x), mean, var)
        grid = (form.samples * form.tiles, _cut(form).columns)
        kernels.mapped[grid](
            x, y, operands.residual, flat(operands.weight), flat(operands.bias), *told(operands, mean, var),
            *_sizes(form), *_where(problem, form), KIND=problem.spec.activation, **tiled(form),
        )  # fmt: skip
    return Made(y.to(x.dtype), mean, var)


def backward(problem: Problem, form: Form, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    """The gradients of all operands."""
    x = operands.x
    operands = operands._replace(**dict(zip(("mean", "var"), told(operands, made.mean, made.var))))
    needed = not problem.given or operands.weight is not None or operands.bias is not None
    found = sums(problem, form, operands, y, grad) if needed else None
    of_scale = of_centre = None
    if not problem.given:
        assert found is not None
        cut = _cut(form)
        with on(x):
            of_scale, of_centre = torch.empty(2, form.statistics, device=x.device).unbind()
            loops("channels").settled_back[_settlers(form)](
                found, flat(operands.weight), of_scale, of_centre, form.channels, form.groups, form.inner, cut.splits,
                found.stride(0), form.size, problem.spec.weight_offset, **_merge(form, cut),
            )  # fmt: skip
    dw, db = (None, None) if found is None else found.sum(1)
    made_back = returned(problem, form, operands, y, grad, of_scale, of_centre)
    return made_back._replace(weight=like(dw, operands.weight), bias=like(db, operands.bias))


def moments(form: Form, x: Tensor) -> Tensor:
    """Count, mean and M2 of each channel in each chunk: (3, chunks, C), float64."""
    cut = _cut(form)
    found = torch.empty(3, cut.chunks, form.channels, dtype=torch.float64, device=x.device)
    with on(x):
        loops("channels").moments[cut.chunks, cut.columns](
            x, found, *_sizes(form), *cut[:3], found.stride(0), **tiled(form)
        )
    return found


def settle(form: Form, found: Tensor, mean: Tensor, var: Tensor) -> None:
    """Merge the moments of all chunks into `mean` and `var`."""
    cut = _cut(form)
    with on(found):
        loops("channels").settled[_settlers(form)](
            found, mean, var, form.channels, form.groups, form.inner, cut.splits, found.stride(0), **_merge(form, cut)
        )


def sums(problem: Problem, form: Form, operands: Operands, y: Tensor | None, grad: Tensor) -> Tensor:
    """Σ dh·x̂ and Σ dh of each channel in each chunk, by the μ and σ² among the operands: (2, chunks, C), float64."""
    cut, x = _cut(form), operands.x
    found = torch.empty(2, cut.chunks, form.channels, dtype=torch.float64, device=x.device)
    more, words = _more(problem, form, operands, y)
    with on(x):
        loops("channels").sums[cut.chunks, cut.columns](
            x, grad, more, flat(operands.weight), flat(operands.bias), operands.mean, operands.var, found,
            *_sizes(form), *cut[:3], found.stride(0), *_where(problem, form), **words,
        )  # fmt: skip
    return found


def returned(
    problem: Problem, form: Form, operands: Operands, y: Tensor | None, grad: Tensor, of_scale: Tensor | None,
    of_centre: Tensor | None,
) -> Gradients:  # fmt: skip
    """The gradients of the input and the residual; without means, those of a given μ and σ²."""
    x = operands.x
    more, words = _more(problem, form, operands, y)
    dx, dr = room(x), room(x) if problem.keeps() else None
    with on(x):
        loops("channels").mapped_back[form.samples * form.tiles, _cut(form).columns](
            x, grad, more, flat(operands.weight), flat(operands.bias), operands.mean, operands.var, of_scale, of_centre,
            dx, dr, *_sizes(form), *_where(problem, form), **words,
        )  # fmt: skip
    return Gradients(dx.to(x.dtype), residual=like(dr, x))


def _more(problem: Problem, form: Form, operands: Operands, y: Tensor | None) -> tuple[Tensor | None, dict[str, Any]]:
    """What was kept beside the input, and the words of the kernels that read it."""
    kept = problem.keeps()
    more = y if kept == "y" else operands.residual if kept else None
    return more, {"KIND": problem.spec.activation, "KEPT": kept, **tiled(form)}


def _sizes(form: Form) -> tuple[int, ...]:
    return form.channels, form.positions, *form.strides, form.tiles


def _where(problem: Problem, form: Form) -> tuple[int | float, ...]:
    """Which statistic is whose, eps, and what is added to the weight."""
    of_sample = 0 if form.batch else form.groups
    return form.inner, of_sample, guard(problem.spec), problem.spec.weight_offset


def _settlers(form: Form) -> tuple[int, int]:
    """The programs of the merge: one a statistic, or one for many where each is of one channel."""
    if form.inner > 1:
        return form.statistics, 1
    return -(-form.channels // min(power(form.channels), _TOGETHER)), form.statistics // form.channels


def _merge(form: Form, cut: _Cut) -> dict[str, Any]:
    across = min(power(form.inner if form.inner > 1 else form.channels), _TOGETHER)
    return {"BJ": across, "BK": min(power(cut.splits), 1024 // across), "EACH": form.inner == 1, "num_warps": 4}
