"""`sites`: every norm, producer and activation of a model, as places to observe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from normscope.anatomy.batch import Probe, first_tensor
from normscope.anatomy.flow import Flow, symbolic
from normscope.anatomy.isolate import unwrapped
from normscope.anatomy.observe import Call, observe
from normscope.anatomy.recognize import kind_of, role_of, spec_of
from normscope.terms.site import Site

# Functions whose result has the axes of their first argument in another order or number.
_REARRANGING = frozenset(
    [
        "permute",
        "transpose",
        "T",
        "mT",
        "H",
        "mH",
        "movedim",
        "moveaxis",
        "swapaxes",
        "swapdims",
        "reshape",
        "view",
        "flatten",
        "unflatten",
        "Flatten",
        "Unflatten",
        "matmul",
        "bmm",
        "einsum",
        "getitem",
        "squeeze",
        "unsqueeze",
        "stack",
    ]
)


def sites(model: nn.Module, example: Any = None) -> tuple[Site, ...]:
    """Every norm, producer and activation of `model`, each the site of its output.

    Args:
        model: any module; `torch.compile` and data-parallel wrappers are passed through.
        example: a batch by the convention of `Probe.of`. With it the model runs once, in evaluation mode and without
            a trace: every call is a site, in execution order; activation functions called inside ``forward`` are
            sites ``<module path>/<function>``; `Site.depth` numbers the sites as they ran, and modules that never ran
            come last with depth -1. Without it modules come, and `depth` numbers them, in the order of registration.

    A module that is registered several times is one site (for each call) with the other paths as `aliases`. The parts
    of a norm, producer or activation are no sites of their own.

    Raises:
        DataError: `example` is nothing that the model can be called with.
        ModelError: the model raised.
    """
    model = unwrapped(model)
    at_rest = _registered(model)
    if example is None:
        feeds = _feeds(symbolic(model))
        return tuple(
            replace(site, depth=depth, feeds=feeds.get((site.path, 0))) for depth, site in enumerate(at_rest.values())
        )
    return _run(model, at_rest, Probe.of(example))


def _registered(model: nn.Module) -> dict[str, Site]:
    """The sites of the modules, by path, in order of registration."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in _outermost(model):
        paths.setdefault(module, []).append(path)
    return {path: _site(path, module, tuple(aliases)) for module, (path, *aliases) in paths.items()}


def _outermost(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    if role_of(module) != "other":
        yield path, module
        return
    for name, child in module._modules.items():  # named_children() would leave out a second name
        if child is not None:
            yield from _outermost(child, f"{path}.{name}" if path else name)


def _site(path: str, module: nn.Module, aliases: tuple[str, ...] = ()) -> Site:
    site = Site(path, role=role_of(module), kind=kind_of(module), spec=spec_of(module), aliases=aliases)
    return replace(site, channel_axis=_own_axis(site, module, None))


def _run(model: nn.Module, at_rest: dict[str, Site], probe: Probe) -> tuple[Site, ...]:
    """The sites of the calls in one run, then those of the modules that did not run."""
    calls: list[Call] = []
    found: list[Site] = []
    axes: list[tuple[int, int | None]] = []  # of each call: axes of its output, and which of them holds channels

    def follow(call: Call, inputs: Any, output: Any) -> None:
        site = _called(call, at_rest)
        tensor = first_tensor(output)
        rank = tensor.ndim if tensor is not None else 0
        calls.append(call)
        axes.append((rank, _channel_axis(call, site, rank, axes)))
        if site is not None:
            found.append(replace(site, call=call.call, depth=len(found), channel_axis=axes[-1][1]))

    observe(model, follow, probe, training=False)
    feeds = _feeds(Flow(tuple(calls)))
    ran = {site.path for site in found}
    return (
        *(replace(site, feeds=feeds.get((site.path, site.call))) for site in found),
        *(site for path, site in at_rest.items() if path not in ran),
    )


def _called(call: Call, at_rest: dict[str, Site]) -> Site | None:
    """The site of a call; None when it is none: a function that is no activation, a module of no interest."""
    if call.module is None:
        return Site(call.path, role=call.role, kind=call.kind) if call.role == "activation" else None
    if call.role == "other":
        return None
    return at_rest.get(call.path) or _site(call.path, call.module)


def _feeds(flow: Flow | None) -> dict[tuple[str, int], str | None]:
    """By path and number of call: the activation function that takes the value of a norm or producer at once."""
    if flow is None:
        return {}
    return {(call.path, call.call): flow.feeds(call) for call in flow.calls if call.role in ("norm", "producer")}


def _channel_axis(call: Call, site: Site | None, rank: int, axes: list[tuple[int, int | None]]) -> int | None:
    """The axis of channels in a call's output: its own, or that of the value it works on, or the usual one."""
    if not rank:
        return None
    if site is not None and call.module is not None and site.role != "activation":
        return _own_axis(site, call.module, rank)
    if call.kind not in _REARRANGING:
        for index in call.inputs:
            if index >= 0 and axes[index][0] == rank:
                return axes[index][1]
    return 1 if rank >= 3 else -1


def _own_axis(site: Site, module: nn.Module, rank: int | None) -> int | None:
    """Where a norm or producer puts channels in an output of `rank` axes (None: with a batch axis)."""
    if isinstance(module, nn.modules.conv._ConvNd):
        unbatched = rank == len(module.kernel_size) + 1
        return 0 if unbatched else 1
    if site.role == "norm":
        layout = site.spec.layout if site.spec is not None else getattr(module, "layout", "channels_first")
        return 1 if layout == "channels_first" and rank != 1 else -1
    return -1 if site.role == "producer" else None
