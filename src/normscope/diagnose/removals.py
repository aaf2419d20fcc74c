"""How one cause is taken out of a copy of a model, with all the rest as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normscope.anatomy.batch import Probe, mapped
from normscope.anatomy.recognize import role_of, spec_of
from normscope.anatomy.walk import sites
from normscope.terms.activations import activation_named
from normscope.terms.finding import Prescription
from normscope.treat.treatment import treat

_RUNNING = ("running_mean", "running_var")


class Change(NamedTuple):
    """A cause that can be taken out: what is done in words, and the function that does it to a copy and its batch."""

    words: str
    make: Callable[[nn.Module, Probe], tuple[nn.Module, Probe]]


def _drawn_anew(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """Every weight normal, at the deviation that keeps the variance through its activation (He et al. 2015).

    Biases are zero. Drawn, not rescaled: training bends the weights, and that is a consequence of the bad start.
    """
    feeds = {site.path: site.feeds for site in sites(model, probe) if site.role == "producer"}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if role_of(module) != "producer" or not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        function = activation_named(feeds.get(path))
        with torch.no_grad():
            weight.normal_(0.0, (function.gain if function else 1.0) * weight[0].numel() ** -0.5)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                bias.zero_()
    return model, probe


def _standardized(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """Mean 0 and deviation 1 of every feature of the input (of every channel of images)."""
    args = mapped(probe.args, standardize)
    return model, replace(probe, args=args, kwargs=mapped(dict(probe.kwargs), standardize))


def standardize(values: Tensor) -> Tensor:
    """`values` with mean 0 and deviation 1 per feature: the last axis, or axis 1 of images. Integers stay."""
    if not values.is_floating_point() or values.ndim < 2:
        return values
    axis = 1 if values.ndim >= 4 else values.ndim - 1
    over = [other for other in range(values.ndim) if other != axis]
    spread = values.std(over, keepdim=True, correction=0)
    return (values - values.mean(over, keepdim=True)) / torch.where(spread > 0, spread, torch.ones_like(spread))


def _batch_statistics(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """Evaluation mode takes the statistics of its own batch, as torch's norms do without running ones."""
    for module in _running(model):
        for name in _RUNNING:
            module._buffers[name] = None
    return model, probe


def _population_statistics(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """The running statistics become those of the batch in training mode without dropout, which stands for all data."""
    norms = list(_running(model))
    kept = [(norm, norm.momentum) for norm in norms if hasattr(norm, "momentum")]
    dropping = {module: module.training for module in model.modules() if _drops(module)}
    was = {module: module.training for module in model.modules()}
    for norm, _ in kept:
        norm.momentum = 1.0  # pyright: ignore[reportArgumentType]
        for name in _RUNNING:
            if (buffer := norm._buffers.get(name)) is not None:
                buffer.nan_to_num_(0.0, 0.0, 0.0)  # nothing of an infinite value is still not a number
    model.train()
    for module in dropping:
        module.eval()
    with torch.no_grad():
        probe.detached().run(model)
    for norm, momentum in kept:
        norm.momentum = momentum
    for module, training in was.items():
        module.training = training
    return model, probe


def _scale_reset(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """Every norm's scale is 1 and its offset 0, as at the start."""
    with torch.no_grad():
        for module in model.modules():
            if spec_of(module) is None:
                continue
            for name, value in (("weight", 1.0), ("bias", 0.0)):
                if isinstance(parameter := module._parameters.get(name), Tensor):
                    parameter.fill_(value)
    return model, probe


def _normalized(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """A norm before every hidden activation that has none."""
    return treat(model, Prescription("insert_norm"), data=probe, inplace=True).model, probe


def _without_dropout(model: nn.Module, probe: Probe) -> tuple[nn.Module, Probe]:
    """Dropout keeps everything."""
    for module in model.modules():
        if _drops(module):
            module.p = 0.0  # pyright: ignore[reportArgumentType]
    return model, probe


REMOVALS: Mapping[str, Change] = MappingProxyType(
    {
        "initialization": Change("the weights drawn at the gain of their activation", _drawn_anew),
        "input": Change("the input standardized", _standardized),
        "modes": Change("batch statistics in evaluation mode too", _batch_statistics),
        "running": Change("the running statistics replaced by the population's", _population_statistics),
        "scale": Change("γ and β reset", _scale_reset),
        "scales": Change("a norm before the activations", _normalized),
        "dropout": Change("dropout taken out", _without_dropout),
    }
)


def _running(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if any(module._buffers.get(name) is not None for name in _RUNNING)]


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd)
