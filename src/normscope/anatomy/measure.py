"""Measuring an unknown module: which row of the catalog gives the same answers?

A stand-in with random weights is given small tensors of several shapes in both modes; a description is accepted only
when the one formula with that description gives the same numbers for every shape that the module takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, MutableMapping
from typing import get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from normscope.anatomy.double import Double, Parts, Run
from normscope.anatomy.isolate import OF_TORCH
from normscope.terms.catalog import CATALOG
from normscope.terms.spec import EpsPlace, NormSpec, Source

TOLERANCE = 2e-3  # relative; float32 rounding is far below, the difference between two rows far above
_SAME = 0.95  # share of bfloat16 elements that agree when the rounding stands in the same place
_LOUD = 100.0  # standard deviation of the inputs beside which any eps is nothing
_QUIET = 3e-3  # standard deviation of the inputs that tell one eps from another: its square is about 1e-5

_KNOWN: MutableMapping[type, dict[Hashable, NormSpec | None]] = WeakKeyDictionary()
_MEASURED_SOURCES: set[Source] = {"input", "batch", "synchronized"}
_STORED_SOURCES: set[Source] = {"running", "cumulative", "given"}


def measured(module: nn.Module, activation: str | None = None) -> NormSpec | None:
    """The description whose formula agrees with `module` on every input that it takes; None when no row does.

    The module and the random states stay as they are. The answer depends on the class, the attributes and the shapes,
    not on the weights, so equals are measured once.

    Args:
        module: the module.
        activation: the path of the part of it that its output is thought to go through last. Other parts must do
            nothing in evaluation mode (a dropout, an identity).
    """
    likeness = _likeness(module)
    if likeness is None:
        return _measured(module, activation)
    known = _KNOWN.setdefault(type(module), {})
    if likeness not in known:
        known[likeness] = _measured(module, activation)
    return known[likeness]


def _measured(module: nn.Module, activation: str | None) -> NormSpec | None:
    try:
        double = Double(module) if Double.is_worth_it(module) else None
    except Exception:  # a module may hold what cannot be copied
        return None
    if double is None or double.channels < 2:
        return None
    loud, quiet = double.runs(_LOUD), double.runs(_QUIET)
    if not loud or len(quiet) != len(loud) or not _is_followed_by(double, activation, loud[0].x):
        return None
    spec = next(_agreeing(double, loud, quiet), None)
    if spec is None:
        return None
    if spec.groups == double.channels:
        spec = spec.but(over="S", groups=1)
    return _with_cast(_with_momentum(spec, double, loud[0].x), module, loud[0].x)


def _agreeing(double: Double, loud: list[Run], quiet: list[Run]) -> Iterator[NormSpec]:
    parts = double.parts
    for spec in _candidates(double):
        if _agrees(spec, loud, parts):
            for eps, place in itertools.product(double.eps, get_args(EpsPlace)):
                exact = spec.but(eps=eps, eps_place=place)
                if _agrees(exact, quiet, parts):
                    yield exact


def _is_followed_by(double: Double, activation: str | None, x: Tensor) -> bool:
    """Whether the whole is the norm, and the activation after it."""
    y = double.answer(x, training=False)
    if activation is not None and y is not None:
        y = double.answer(y, False, double.whole.get_submodule(activation))
    whole = double.answer(x, False, double.whole)
    return y is not None and whole is not None and torch.allclose(whole, y, rtol=TOLERANCE)


def _likeness(module: nn.Module) -> Hashable | None:
    """What the answer depends on, as a key; None when the module holds something that is not plain."""
    key: list[Hashable] = []
    for path, each in module.named_modules():
        plain = {name: value for name, value in vars(each).items() if name not in OF_TORCH}
        if not all(isinstance(value, str | int | float | tuple | type(None) | torch.dtype) for value in plain.values()):
            return None
        tensors = (*each.named_parameters(recurse=False), *each.named_buffers(recurse=False))
        key.append((path, type(each), repr(plain), tuple((name, tensor.shape) for name, tensor in tensors)))
    return tuple(key)


# the catalog's side ------------------------------------------------------------------------------------------------


def _candidates(double: Double) -> Iterator[NormSpec]:
    """The rows of the catalog that `_formula` can say, with what the module has; the more common reading first."""
    parts, groups = double.parts, double.groups
    told = {"eps": double.eps[0], "affine": parts.weight is not None, "bias": parts.bias is not None}
    for row in CATALOG.values():
        if not _sayable(row):
            continue
        layouts = ("channels_last", "channels_first") if row.over == {"C"} else (row.layout,)
        states: list[tuple[Source, float | None]] = [(row.infer_from, row.momentum)]
        if row.infer_from == "running":
            states.append((row.train_from, None))
        for layout, (infer_from, momentum), offset in itertools.product(layouts, states, (0.0, 1.0)):
            if offset and parts.weight is None:
                continue
            yield row.but(
                **told,
                layout=layout,
                infer_from=infer_from,
                momentum=momentum,
                weight_offset=offset,
                groups=groups if row.over >= {"C", "S"} else 1,
                cast="output",
            )


def _sayable(row: NormSpec) -> bool:
    sources = {row.train_from, row.infer_from} <= _MEASURED_SOURCES | _STORED_SOURCES
    return sources and row.scale in ("std", "rms") and row.weights is None and row.activation is None


def _agrees(spec: NormSpec, runs: list[Run], parts: Parts) -> bool:
    for run in runs:
        expected = _formula(spec, run.x, parts, run.training)
        if expected is None:
            return False
        error = (run.y.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
        if not float(error) < TOLERANCE:
            return False
    return True


def _formula(spec: NormSpec, x: Tensor, parts: Parts, training: bool) -> Tensor | None:
    """``g · (x − μ)/σ + b`` in float64, for statistics of the input or stored ones; None where sizes do not fit."""
    normalized = _normalized(spec, x.double(), parts, training)
    return None if normalized is None else _affine(spec, normalized, parts)


def _normalized(spec: NormSpec, x: Tensor, parts: Parts, training: bool) -> Tensor | None:
    axis = _channel_axis(spec, x)
    cells = x.movedim(axis, 1)
    shape = cells.shape
    if shape[1] % spec.groups:
        return None
    cells = cells.reshape(shape[0], spec.groups, shape[1] // spec.groups, -1)
    if (spec.train_from if training else spec.infer_from) in _STORED_SOURCES:
        if parts.mean is None or parts.var is None or not parts.mean.numel() == parts.var.numel() == shape[1]:
            return None
        mean, square = (part.to(x.dtype).reshape(1, 1, -1, 1) for part in (parts.mean, parts.var))
    else:
        over = [axis for axis, name in ((0, "N"), (2, "C"), (3, "S")) if name in spec.over]
        mean = cells.mean(over, keepdim=True) if spec.center else torch.zeros((), dtype=x.dtype)
        square = (cells - mean).square().mean(over, keepdim=True)
    return ((cells - mean) / _sigma(square, spec.eps, spec.eps_place)).reshape(shape).movedim(1, axis)


def _sigma(square: Tensor, eps: float | None, place: EpsPlace) -> Tensor:
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    if place == "inside":
        return (square + eps).sqrt()
    return square.sqrt() + eps if place == "outside" else square.sqrt().clamp_min(eps)


def _affine(spec: NormSpec, normalized: Tensor, parts: Parts) -> Tensor | None:
    axis = _channel_axis(spec, normalized)
    shape = [1] * normalized.ndim
    shape[axis] = -1
    for part in (parts.weight, parts.bias):
        if part is not None and part.numel() not in (1, normalized.shape[axis]):
            return None
    if parts.weight is not None:
        normalized = normalized * (parts.weight.to(normalized.dtype) + spec.weight_offset).reshape(shape)
    return normalized if parts.bias is None else normalized + parts.bias.to(normalized.dtype).reshape(shape)


def _channel_axis(spec: NormSpec, x: Tensor) -> int:
    return 1 if spec.layout == "channels_first" else x.ndim - 1


# what the outputs alone do not tell ----------------------------------------------------------------------------------


def _with_momentum(spec: NormSpec, double: Double, x: Tensor) -> NormSpec:
    """Running statistics move from their old value towards the batch's by a share: that is the momentum."""
    if spec.infer_from != "running":
        return spec
    said = getattr(double.norm, "momentum", 0.1)
    if said is None:
        return spec.but(infer_from="cumulative", momentum=None)
    old, new = double.parts, double.after(x)
    if old.mean is None or new.mean is None or old.var is None or new.var is None:
        return spec
    batch = x.transpose(0, _channel_axis(spec, x)).flatten(1)
    toward = batch.mean(1) - old.mean
    share = float((new.mean - old.mean) @ toward / toward.square().sum())
    taken = (new.var - old.var * (1 - share)) / share if share else new.var
    plain, corrected = (float((taken - batch.var(1, correction=of)).abs().max()) for of in (0, 1))
    exact = isinstance(said, float) and abs(said - share) < TOLERANCE
    return spec.but(momentum=said if exact else float(f"{share:.4g}"), unbiased=corrected <= plain)


def _with_cast(spec: NormSpec, module: nn.Module, x: Tensor) -> NormSpec:
    """Whether bfloat16 is rounded before the weight or after everything: the one that agrees in more elements."""
    double, x = Double(module, torch.bfloat16), x.to(torch.bfloat16)
    parts, y = double.parts, double.answer(x, training=False)
    normalized = _normalized(spec, x.float(), parts, training=False)
    if y is None or normalized is None or parts.weight is None:
        return spec
    early, late = _affine(spec, normalized.to(torch.bfloat16), parts), _affine(spec, normalized, parts)
    if early is None or late is None:
        return spec
    agree_early, agree_late = (float((y == guess.to(y.dtype)).float().mean()) for guess in (early, late))
    return spec.but(cast="normalized") if agree_early > max(agree_late, _SAME) else spec
