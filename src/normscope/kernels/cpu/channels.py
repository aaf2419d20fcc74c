"""Batch, group and instance norm on the CPU, with the activation and the residual sum in the same pass."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.kernels.cpu import fresh
from normscope.kernels.cpu.pool import affine, launch, missing, past, plain, room, smooth, words
from normscope.kernels.offer import Gradients, Made, Offer, Operands, Problem

_BATCH, _SAMPLE, _POSITIONS = (frozenset(axes) for axes in ("NS", "CS", "S"))
_ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "gelu")
_PANEL = 1 << 18  # numbers of a panel of rows
_RUN, _TASKS = 1024, 16  # numbers of a run at least, unless that left fewer tasks
_MANY = 64  # tasks, so that no two threads write statistics that lie side by side
_LANES = 64  # a multiple of those of compiled/lanes.py, which only a machine with Numba can import


class _Form(NamedTuple):
    """A problem as sizes: (samples, channels, positions), how they lie, and which cells share a statistic."""

    samples: int
    channels: int
    positions: int
    rows: bool  # the channels lie side by side
    groups: int  # statistics of a sample
    batch: bool  # statistics are one a channel for all samples, or given so


def _form(problem: Problem) -> _Form:
    shape, spec = problem.shape, problem.spec
    first = spec.layout == "channels_first"
    channels = shape[1] if first else shape[-1]
    positions = math.prod(shape[2:] if first else shape[1:-1])
    rows = not first or problem.memory == "channels_last" or positions == 1
    groups = spec.groups if "C" in spec.over else channels
    alone = shape[0] == 1 and groups == channels  # a batch of one sample, whose panels many threads share
    return _Form(shape[0], channels, positions, rows, groups, spec.over == _BATCH or problem.given or alone)


def _supports(problem: Problem) -> str | None:
    spec = problem.spec
    if problem.device != "cpu":
        return f"it computes on the CPU, not on {problem.device}"
    if spec.over not in (_BATCH, _SAMPLE, _POSITIONS):
        return f"it takes statistics of channels or groups, not over {''.join(sorted(spec.over)) or 'nothing'}"
    if problem.given and spec.over == _SAMPLE:
        return "given statistics of groups are not those of single channels"
    if not spec.center or spec.scale != "std" or spec.eps is None or spec.eps_place != "inside":
        return "it centres, and divides by the standard deviation with eps inside the root"
    if spec.weight_offset or problem.casts_first():
        return "it has no weight offset and casts last"
    if spec.activation not in _ACTIVATIONS:
        return f"it has no {spec.activation}"
    if problem.dtype not in (torch.float32, torch.bfloat16):
        return f"it computes float32 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.mask:
        return "it counts all cells, masked or not"
    if problem.memory == "strided" or len(problem.shape) < 2:
        return "the input is neither contiguous nor channels_last"
    if 0 in problem.shape:
        return "the input is empty"
    return problem.odd or missing()


def _forward(problem: Problem, operands: Operands) -> Made:
    return made(problem, operands, fresh.like(operands.x))


def made(problem: Problem, operands: Operands, y: Tensor) -> Made:
    """The forward pass, written to `y`, which may be the input itself."""
    form, x = _form(problem), operands.x
    mean, var = _statistics(form, operands)
    packed, kept = _packed(problem, form, operands, mean, var, int(operands.residual is not None))
    half, kind = x.dtype is torch.bfloat16, smooth(packed[33])
    packed[11], packed[29] = y.data_ptr(), _past(form, y)
    packed[16] = 0 if operands.residual is None else operands.residual.data_ptr()
    if not form.rows:
        launch(_kernel("runs", "forward", half, kind), packed, _gathered(packed, form), 48 * packed[30])
    elif form.batch:
        panels = _panels(packed, form, kept)
        if not problem.given:
            launch(_kernel("columns", "sums", half, 0, False), packed, panels, _wide(form))
        _settle(packed, form, panels, False)
        launch(_kernel("columns", "mapped", half, kind, False), packed, panels, _wide(form))
    else:
        launch(_kernel("samples", "forward", half, kind), packed, form.samples, _wide(form) + 48 * form.channels)
    if problem.given:
        mean, var = mean.new_empty(0), mean.new_empty(0)
    return Made(y, mean, var)


def _backward(problem: Problem, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    way = {None: 0, "y": 1, "residual": 2}[problem.keeps()]
    return differentiated(problem, operands, y if way == 1 else operands.residual, made, grad, way)


def differentiated(
    problem: Problem, operands: Operands, more: Tensor | None, made: Made, grad: Tensor, way: int
) -> Gradients:
    """The backward pass; `way` is what tells the slope, as in `compiled/panels.py`: with −1, `x` holds the output."""
    form, x = _form(problem), operands.x
    mean, var = (made.mean, made.var) if operands.mean is None else _statistics(form, operands)
    packed, kept = _packed(problem, form, operands, mean, var, way)
    half, kind = x.dtype is torch.bfloat16, smooth(packed[33])
    dx, dr = fresh.like(x), fresh.like(x) if way > 0 else None
    parts = room(2 * form.samples * form.channels, dtype=torch.float64)
    of_affine = affine(form.channels, operands.weight, operands.bias, packed)
    packed[11], packed[17], packed[29] = dx.data_ptr(), grad.data_ptr(), _past(form, dx)
    packed[18], packed[19] = parts.data_ptr(), parts.data_ptr() + 8 * form.samples * form.channels
    packed[16], packed[20] = (0, 0) if more is None or dr is None else (more.data_ptr(), dr.data_ptr())
    if not form.rows:
        launch(_kernel("runs", "backward", half, kind), packed, _gathered(packed, form))
    elif form.batch:
        panels = _panels(packed, form, kept)
        _settle(packed, form, 0, True)
        launch(_kernel("columns", "sums", half, kind, True), packed, panels, _wide(form))
        _settle(packed, form, panels, True)
        launch(_kernel("columns", "mapped", half, kind, True), packed, panels, _wide(form))
    else:
        launch(_kernel("samples", "backward", half, kind), packed, form.samples, _wide(form) + 48 * form.channels)
    return Gradients(dx, *of_affine(), dr)


def _wide(form: _Form) -> int:
    """Bytes in which a thread works on wide rows."""
    return 60 * math.lcm(form.channels, _LANES)


def _count(form: _Form) -> int:
    """How many statistics there are."""
    return form.channels if form.batch else form.samples * form.groups


def _statistics(form: _Form, operands: Operands) -> tuple[Tensor, Tensor]:
    if operands.mean is not None and operands.var is not None:
        return operands.mean.double(), operands.var.double()
    return room(_count(form), dtype=torch.float64), room(_count(form), dtype=torch.float64)


def _packed(
    problem: Problem, form: _Form, operands: Operands, mean: Tensor, var: Tensor, way: int
) -> tuple[Any, list[Tensor]]:
    """The words that every kernel reads, and the tensors behind them, which must live as long.

    `way` is forward whether a residual is added, backward what tells the slope.
    """
    weight, bias = plain(operands.weight, form.channels, 1.0), plain(operands.bias, form.channels, 0.0)
    packed = words(
        {
            2: form.samples,
            3: form.samples,
            4: form.channels,
            5: form.positions,
            6: form.groups,
            7: int(form.batch),
            8: int(problem.given),
            10: operands.x.data_ptr(),
            12: weight.data_ptr(),
            13: bias.data_ptr(),
            14: mean.data_ptr(),
            15: var.data_ptr(),
            33: _ACTIVATIONS.index(problem.spec.activation),
            34: way,
        },
        problem.spec.eps or 0.0,
    )
    return packed, [weight, bias, mean, var]


def _panels(packed: Any, form: _Form, kept: list[Tensor]) -> int:
    """Cut the rows of a batch into panels, and give them a place for what they find; how many there are."""
    rows = form.samples * form.positions
    fold = _LANES // math.gcd(form.channels, _LANES)
    panel = max(1, _PANEL // (form.channels * fold)) * fold
    panels = -(-rows // panel)
    found = room(panels, 3, form.channels, dtype=torch.float64)
    numbers = room(5, form.channels, dtype=torch.float32)
    kept += [found, numbers]
    packed[2], packed[27], packed[28] = panels, panels, panel
    packed[21], packed[22] = found.data_ptr(), numbers.data_ptr()
    return panels


def _settle(packed: Any, form: _Form, panels: int, back: bool) -> None:
    tasks = -(-form.channels // 16)
    whole = packed[2]
    packed[2], packed[27] = tasks, panels
    launch(_kernel("columns", "settled", back), packed, tasks)
    packed[2], packed[27] = whole, whole


def _gathered(packed: Any, form: _Form) -> int:
    """How many tasks there are, where short statistics that lie side by side are one."""
    statistics = _count(form)
    length = form.positions * (1 if form.batch else form.channels // form.groups)
    together = max(1, min(_RUN // length, statistics // _TASKS))
    share = max(1, statistics // (_MANY * together)) * together
    packed[28], packed[30], packed[2] = share, together, -(-statistics // share)
    return packed[2]


def _past(form: _Form, y: Tensor) -> int:
    """Whether `y` is written past the caches: where it is too large for them, and its parts begin with a line."""
    size = y.element_size()
    whole = not form.rows or form.batch or form.positions * form.channels * size % 64 == 0
    return int(whole and past(y))


@functools.cache
def _kernel(file: str, name: str, *choices: Any) -> Any:
    """The kernel `name` of a file in `compiled`, compiled for these choices."""
    return getattr(importlib.import_module(f"normscope.kernels.cpu.compiled.{file}"), name)(*choices)


OFFERS = (Offer("numba", "channels", _supports, forward=_forward, backward=_backward),)
