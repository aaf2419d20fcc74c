"""What is joined to what in a model, asked by running copies of it: what the output reads, what never learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normscope.anatomy.batch import Probe, first_tensor, mapped, tensors
from normscope.anatomy.isolate import OF_TORCH, isolated, unwrapped
from normscope.diagnose.counterfactual import Experiment

FAR = (1e2, 1e4)
"""Sizes of the numbers that are put in the place of what the last layer gives: a bounded end gives the same."""

DRAWS = 3
"""Directions of the output whose gradients are taken: what none of them reads is not read."""

DEEP = 3
"""Containers inside one another that are looked through."""


def reach(experiment: Experiment, last: str) -> tuple[float, float] | None:
    """The bounds of the output, whatever the layer at `last` says; None where there are none or it cannot be told."""
    lows, highs = [], []
    for size in FAR:

        def swap(_m: nn.Module, _i: Any, output: Any, size: float = size) -> Any:
            return mapped(output, lambda one: size * torch.randn_like(one) if one.is_floating_point() else one)

        try:
            model = experiment.copied()
            model.get_submodule(last).register_forward_hook(swap)
            with isolated(model, training=False), torch.no_grad():
                torch.manual_seed(experiment.seed)
                given = first_tensor(Probe.of(experiment.probe).detached().run(model))
        except Exception:  # what cannot be run so is not bounded for all that is known
            return None
        if given is None or not bool(torch.isfinite(given).all()):
            return None
        lows.append(float(given.min()))
        highs.append(float(given.max()))
    width = highs[0] - lows[0]
    same = abs(lows[1] - lows[0]) + abs(highs[1] - highs[0]) < 0.05 * width
    return (lows[1], highs[1]) if width > 0 and same else None


def heard(experiment: Experiment) -> tuple[Tensor, Tensor] | None:
    """The first input of the fixed batch, and by how much the output moves with each of its numbers; None for integers.

    The root mean square over some random directions of the output, in evaluation mode.
    """
    probe = Probe.of(experiment.probe).detached()
    entry = first_tensor((probe.args, dict(probe.kwargs)))
    if entry is None or not entry.is_floating_point() or entry.ndim < 2:
        return None
    leaf = entry.clone().requires_grad_()
    swapped = mapped(probe.args, lambda one: leaf if one is entry else one)
    total = torch.zeros_like(entry)
    try:
        model = experiment.copied()
        with isolated(model, training=False), torch.enable_grad():
            torch.manual_seed(experiment.seed)
            given = first_tensor(model(*swapped, **dict(probe.kwargs)))
            if given is None or not given.requires_grad:
                return entry, total
            for _ in range(DRAWS):
                way = (given * torch.randn_like(given)).sum()
                (slope,) = torch.autograd.grad(way, leaf, retain_graph=True, allow_unused=True)
                total += 0 if slope is None else slope.square() / DRAWS
    except Exception:  # a backward pass that evaluation mode does not allow
        return None
    return entry, total.sqrt()


def feeds_itself(experiment: Experiment, path: str) -> bool | None:
    """Whether what a module gives reaches what it reads at a later call; None where that cannot be told."""
    told: list[list[Tensor]] = []
    for shift in (0.0, 1.0):
        read: list[Tensor] = []

        def note(_m: nn.Module, given: Any, output: Any, shift: float = shift, read: list[Tensor] = read) -> Any:
            read.append(given[0].detach().clone())
            return output + shift if len(read) == 1 else output

        try:
            model = experiment.copied()
            model.get_submodule(path).register_forward_hook(note)
            with isolated(model, training=False), torch.no_grad():
                torch.manual_seed(experiment.seed)
                Probe.of(experiment.probe).detached().run(model)
        except Exception:
            return None
        told.append(read)
    plain, moved = told
    return any(not torch.equal(one, other) for one, other in zip(plain[1:], moved[1:])) if plain[1:] else None


def twice(experiment: Experiment) -> tuple[Tensor, Tensor] | None:
    """What one copy gives for the fixed batch at its first and at its second call, in evaluation mode."""
    try:
        model = experiment.copied()
        found = []
        with isolated(model, training=False), torch.no_grad():  # which both calls share
            for _ in range(2):
                torch.manual_seed(experiment.seed)
                found.append(first_tensor(Probe.of(experiment.probe).detached().run(model)))
    except Exception:
        return None
    one, other = found
    return (one, other) if one is not None and other is not None and one.shape == other.shape else None


def unlisted(experiment: Experiment) -> dict[str, nn.Module]:
    """Modules that a module holds where `parameters()` does not look and that the loss reaches, by place.

    They stand in a plain list, tuple or dict. What is hidden there on purpose, as a teacher, is reached by no gradient.
    """
    model = unwrapped(experiment.model)
    known = {id(one) for one in model.modules()}
    found = {
        place: one for place, one in _contained(model) if id(one) not in known and any(True for _ in one.parameters())
    }
    if not found:
        return {}
    try:
        copy = experiment.copied()
        batch = Probe.of(experiment.probe)
        hidden = {place: one for place, one in _contained(copy) if place in found}
        with isolated(copy, training=True), torch.enable_grad():
            experiment.loss(batch.detached().run(copy), batch.target).backward()
    except Exception:
        return {}
    own = {id(one) for one in model.parameters()}
    return {
        place: found[place]
        for place, one in hidden.items()
        if any(each.grad is not None for each in one.parameters())
        and not any(id(each) in own for each in found[place].parameters())
    }


def _contained(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules in plain containers among the attributes of a model's modules, by place."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in OF_TORCH and isinstance(value, list | tuple | dict):
                yield from _inside(value, f"{path}.{name}".lstrip("."), DEEP)


def _inside(value: Any, place: str, depth: int) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield place, value
    elif isinstance(value, list | tuple | dict) and depth:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in pairs:
            yield from _inside(one, f"{place}.{key}", depth - 1)


def samples_first(experiment: Experiment) -> bool:
    """Whether the fixed batch shows that its first axis is that of samples, and the second that of time or places.

    Neighbours in time are more alike than others; samples that were drawn at random stand in no order.
    """
    probe = Probe.of(experiment.probe)
    given = [one for one in tensors((probe.args, dict(probe.kwargs))) if one.is_floating_point() and one.ndim == 3]
    if not given or min(given[0].shape[:2]) < 4:
        return False
    first, second = (_order(given[0].detach().double().transpose(0, axis)) for axis in (0, 1))
    return first > UNORDERED and second < ORDERED


UNORDERED, ORDERED = 0.9, 0.8
"""How unlike neighbours are over how unlike others are: 1 for samples, which have no order; below that in time."""


def _order(values: Tensor) -> float:
    count = len(values)
    near = (values[1:] - values[:-1]).square().mean()
    far = torch.stack([(values - values.roll(by, 0)).square().mean() for by in range(2, count - 1)]).mean()
    return float(near / far) if float(far) > 0 else 1.0
