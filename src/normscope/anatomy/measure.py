"""Measuring an unknown module: which row of the catalog gives the same answers?

A copy with random weights is given small tensors of several shapes in both modes; a description is accepted only when
the one formula with that description gives the same numbers for every shape that the module takes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from normscope.anatomy.isolate import isolated
from normscope.terms.catalog import CATALOG
from normscope.terms.spec import EpsPlace, NormSpec, Source

TOLERANCE = 2e-3  # relative; float32 rounding is far below, the difference between two rows far above
_SAME = 0.95  # share of bfloat16 elements that agree when the rounding stands in the same place
_LOUD = 100.0  # standard deviation of the inputs beside which any eps is nothing
_QUIET = 3e-3  # standard deviation of the inputs that tell one eps from another: its square is about 1e-5
_BATCH, _LENGTH, _HEIGHT, _WIDTH = 11, 7, 5, 3
_SPARE = 13  # takes the place of a size that equals the number of channels
_LARGEST = 65536  # elements of a parameter; a norm has one number per channel

_WEIGHTS = ("weight", "gamma", "scale", "g", "alpha", "a_2")
_BIASES = ("bias", "beta", "shift", "b", "b_2")
_EPS = ("eps", "variance_epsilon", "epsilon", "_eps", "norm_eps", "layer_norm_eps")
_USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 0.0)
_CHANNELS = ("num_features", "num_channels", "normalized_shape", "hidden_size", "dim", "features", "channels")
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_KNOWN: MutableMapping[type, dict[Hashable, NormSpec | None]] = WeakKeyDictionary()

_MEASURED_SOURCES: set[Source] = {"input", "batch", "synchronized"}
_STORED_SOURCES: set[Source] = {"running", "cumulative", "given"}


@dataclass(frozen=True)
class _Parts:
    """The tensors of a norm by their part in the formula; each is None or has one number per channel (or one)."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None


@dataclass(frozen=True)
class _Run:
    """What the module made of one input in one mode."""

    x: Tensor
    y: Tensor
    training: bool


def measured(module: nn.Module) -> NormSpec | None:
    """The description whose formula agrees with `module` on every input that it takes; None when no row does.

    The module and the random states stay as they are. Parts inside it (an activation, a dropout) are set aside: the
    answer is that of the norm before them. The answer depends on the class, the attributes and the shapes, not on the
    weights, so equals are measured once.
    """
    likeness = _likeness(module)
    if likeness is None:
        return _measured(module)
    known = _KNOWN.setdefault(type(module), {})
    if likeness not in known:
        known[likeness] = _measured(module)
    return known[likeness]


def _measured(module: nn.Module) -> NormSpec | None:
    if any(tensor.numel() > _LARGEST for tensor in (*module.parameters(), *module.buffers())):
        return None
    try:
        double = _double(module)
    except Exception:  # a module may hold what cannot be copied
        return None
    channels, parts = _channels(double), _parts(double)
    if channels < 2:
        return None
    shapes = _shapes(channels)
    loud, quiet = _runs(double, shapes, _LOUD), _runs(double, shapes, _QUIET)
    if not loud or len(quiet) != len(loud):
        return None
    for spec in _candidates(double, parts):
        if not _agrees(spec, loud, parts):
            continue
        for eps, place in itertools.product(_eps(double), get_args(EpsPlace)):
            exact = spec.but(eps=eps, eps_place=place)
            if _agrees(exact, quiet, parts):
                if exact.groups == channels:
                    exact = exact.but(over="S", groups=1)
                return _with_cast(_with_momentum(exact, double, parts, loud[0]), double, loud[0].x)
    return None


def _likeness(module: nn.Module) -> Hashable | None:
    """What the answer depends on, as a key; None when the module holds something that is not plain."""
    key: list[Hashable] = []
    for path, each in module.named_modules():
        plain = {name: value for name, value in vars(each).items() if name not in _OF_EVERY_MODULE}
        if not all(isinstance(value, str | int | float | tuple | type(None) | torch.dtype) for value in plain.values()):
            return None
        tensors = (*each.named_parameters(recurse=False), *each.named_buffers(recurse=False))
        key.append((path, type(each), repr(plain), tuple((name, tensor.shape) for name, tensor in tensors)))
    return tuple(key)


# the module's side -------------------------------------------------------------------------------------------------


def _double(module: nn.Module) -> nn.Module:
    """A copy without hooks, in float32, with random positive numbers in its tensors and no activation at its end."""
    hooks = (value for each in module.modules() for name, value in vars(each).items() if name.endswith("_hooks"))
    double = copy.deepcopy(module, {id(value): type(value)() for value in hooks})
    if any(tensor.is_meta for tensor in (*double.parameters(), *double.buffers())):
        double = double.to_empty(device="cpu")
    double = double.float().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in (*double.parameters(), *double.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.zero_()
    for name, _ in list(double.named_children()):
        setattr(double, name, nn.Identity())
    return double


def _channels(module: nn.Module) -> int:
    """How many channels the module works on: what its tensors or its attributes say, else some."""
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    sizes = [tensor.numel() for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1]
    for name in _CHANNELS:
        said = getattr(module, name, None)
        said = said[0] if isinstance(said, tuple | list) and len(said) == 1 else said
        if isinstance(said, int) and not isinstance(said, bool):
            sizes.append(said)
    return sizes[0] if sizes else 2 * _groups(module) if _groups(module) > 1 else 8


def _shapes(channels: int) -> list[tuple[int, ...]]:
    n, length, height, width = (size if size != channels else _SPARE for size in (_BATCH, _LENGTH, _HEIGHT, _WIDTH))
    return [
        (n, channels, height, width),
        (n, height, width, channels),
        (n, channels, length),
        (n, length, channels),
        (n, channels),
    ]


def _runs(module: nn.Module, shapes: list[tuple[int, ...]], std: float) -> list[_Run]:
    """One run per shape and mode; shapes that the module does not take are left out, and rank 2 where more work."""
    generator = torch.Generator().manual_seed(1)
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    runs: list[_Run] = []
    for shape in shapes:
        if len(shape) == 2 and runs:
            break
        x = ((torch.randn(shape, generator=generator) + 0.5) * std).to(device)
        both = [_Run(x, y, training) for training in (True, False) if (y := _answer(module, x, training)) is not None]
        runs += both if len(both) == 2 else []
    return runs


def _answer(module: nn.Module, x: Tensor, training: bool) -> Tensor | None:
    try:
        with isolated(module, training=training), torch.no_grad():
            module.train(training)
            y = module.forward(x.clone())
    except Exception:  # whatever a stranger's forward raises for a shape it does not take
        return None
    usable = isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point() and bool(y.isfinite().all())
    return y if usable else None


def _parts(module: nn.Module) -> _Parts:
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    floating = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}

    def first(names: Any) -> Tensor | None:
        return next((floating[name].flatten() for name in names if name in floating), None)

    return _Parts(
        weight=first(_WEIGHTS),
        bias=first(_BIASES),
        mean=first(name for name in floating if "mean" in name),
        var=first(name for name in floating if "var" in name),
    )


def _groups(module: nn.Module) -> int:
    said = getattr(module, "num_groups", getattr(module, "groups", 1))
    return said if isinstance(said, int) and said > 0 else 1


def _eps(module: nn.Module) -> tuple[float, ...]:
    said = (getattr(module, name, None) for name in _EPS)
    return next(((float(eps),) for eps in said if isinstance(eps, float)), _USUAL_EPS)


# the catalog's side ------------------------------------------------------------------------------------------------


def _candidates(module: nn.Module, parts: _Parts) -> Iterator[NormSpec]:
    """The rows of the catalog that `_formula` can say, with what the module has; the more common reading first."""
    eps, groups = _eps(module)[0], _groups(module)
    told = {"eps": eps, "affine": parts.weight is not None, "bias": parts.bias is not None}
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


def _agrees(spec: NormSpec, runs: list[_Run], parts: _Parts) -> bool:
    for run in runs:
        expected = _formula(spec, run.x, parts, run.training)
        if expected is None:
            return False
        error = (run.y.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
        if not float(error) < TOLERANCE:
            return False
    return True


def _formula(spec: NormSpec, x: Tensor, parts: _Parts, training: bool) -> Tensor | None:
    """``g · (x − μ)/σ + b`` in float64, for statistics of the input or stored ones; None where sizes do not fit."""
    normalized = _normalized(spec, x.double(), parts, training)
    return None if normalized is None else _affine(spec, normalized, parts)


def _normalized(spec: NormSpec, x: Tensor, parts: _Parts, training: bool) -> Tensor | None:
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


def _affine(spec: NormSpec, normalized: Tensor, parts: _Parts) -> Tensor | None:
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


def _with_momentum(spec: NormSpec, module: nn.Module, parts: _Parts, run: _Run) -> NormSpec:
    """Running statistics move from their old value towards the batch's by a share: that is the momentum."""
    if spec.infer_from != "running" or parts.mean is None or parts.var is None:
        return spec
    if getattr(module, "momentum", 0.1) is None:
        return spec.but(infer_from="cumulative", momentum=None)
    with isolated(module, training=True), torch.no_grad():
        module.forward(run.x.clone())
        after = _parts(module)
    if after.mean is None or after.var is None:
        return spec
    batch = run.x.transpose(0, _channel_axis(spec, run.x)).flatten(1)
    toward = batch.mean(1) - parts.mean
    share = float((after.mean - parts.mean) @ toward / toward.square().sum())
    said = getattr(module, "momentum", None)
    exact = isinstance(said, float) and abs(said - share) < TOLERANCE
    taken = (after.var - parts.var * (1 - share)) / share if share else after.var
    plain, corrected = (float((taken - batch.var(1, correction=of)).abs().max()) for of in (0, 1))
    return spec.but(momentum=said if exact else float(f"{share:.4g}"), unbiased=corrected <= plain)


def _with_cast(spec: NormSpec, module: nn.Module, x: Tensor) -> NormSpec:
    """Whether bfloat16 is rounded before the weight or after everything: the one that agrees in more elements."""
    half = copy.deepcopy(module).to(torch.bfloat16)
    x, parts = x.to(torch.bfloat16), _parts(half)
    y = _answer(half, x, training=False)
    normalized = _normalized(spec, x.float(), parts, training=False)
    if y is None or normalized is None or parts.weight is None:
        return spec
    early = _affine(spec, normalized.to(torch.bfloat16), parts)
    late = _affine(spec, normalized, parts)
    if early is None or late is None:
        return spec
    agree_early, agree_late = (float((y == guess.to(y.dtype)).float().mean()) for guess in (early, late))
    return spec.but(cast="normalized") if agree_early > max(agree_late, _SAME) else spec
