"""Fitting the weight and the bias of a new norm so that its output is that of the old one, channel by channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normscope.anatomy.batch import Probe, tensors
from normscope.anatomy.flow import trace
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.norms.module import Norm
from normscope.stats.moments import Moments
from normscope.treat.fused import without_activation
from normscope.treat.measure import difference


class Fit(NamedTuple):
    """How far the outputs are from the original's after the fit, in standard deviations of the original's."""

    at_sites: dict[str, float]
    at_output: float


def calibrate(original: nn.Module, treated: nn.Module, paths: Sequence[str], probes: Sequence[Probe]) -> Fit:
    """Fit the norms at `paths` of `treated` to those of `original`, in evaluation mode, in the order in which they run.

    Each gets the population statistics of what reaches it, where it keeps any, and then the weight and the bias that
    bring its output closest to that of the original norm in the least-squares sense, channel by channel. What reaches
    it comes through the norms that were fitted before it, so a later norm makes up for the error of an earlier one.
    That takes one pass of both networks for each norm, up to that norm.
    """
    calls = [call.path for call in trace(original, probes[0]).calls]
    ordered = sorted((path for path in paths if path in calls), key=calls.index)
    with torch.no_grad():
        for path in ordered:
            old, new = original.get_submodule(path), treated.get_submodule(path)
            assert isinstance(new, Norm)
            once = calls.count(path) == 1
            _keep_population(treated, new, probes, once)
            _keep_line(new, _pairs(original, old, treated, new, probes, once))
        return _fit(original, treated, ordered, probes)


class _Line:
    """Least squares of y on x for each channel, batch by batch: means and centred sums merge as variances do."""

    def __init__(self) -> None:
        self.count = 0
        self.x = self.y = self.xx = self.xy = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """`x` and `y` (cells, channels)."""
        x, y, count = x.double().cpu(), y.double().cpu(), len(x)
        mean_x, mean_y = x.mean(0), y.mean(0)
        apart_x, apart_y = mean_x - self.x, mean_y - self.y
        both = self.count * count / (self.count + count)
        self.xx = self.xx + (x - mean_x).square().sum(0) + apart_x.square() * both
        self.xy = self.xy + ((x - mean_x) * (y - mean_y)).sum(0) + apart_x * apart_y * both
        self.count += count
        self.x = self.x + apart_x * count / self.count
        self.y = self.y + apart_y * count / self.count

    def slope(self, *, through_origin: bool) -> Tensor:
        xx, xy = self.xx, self.xy
        if through_origin:
            xx, xy = xx + self.count * self.x.square(), xy + self.count * self.x * self.y
        return torch.where(xx > 0, xy / xx, torch.zeros_like(xx))


def _keep_population(model: nn.Module, norm: Norm, probes: Sequence[Probe], once: bool) -> None:
    state = norm.state
    if "running_mean" not in state:
        return
    axis = _axis(norm)
    seen = Moments.empty((norm.channels,))
    for probe in probes:
        for x in _caught(model, norm, probe, once, inputs=True):
            seen += Moments.of(x, axis)
    state["running_mean"].copy_(torch.from_numpy(seen.mean))
    state["running_var"].copy_(torch.from_numpy(seen.var))


def _pairs(
    original: nn.Module, old: nn.Module, treated: nn.Module, new: Norm, probes: Sequence[Probe], once: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """What reaches the new norm, and what the old one made, before any activation, of what reached it."""
    bare = without_activation(old)
    for probe in probes:
        wanted = _caught(original, old, probe, once, inputs=bare is not old)
        wanted = wanted if bare is old else [bare(x) for x in wanted]
        given = _caught(treated, new, probe, once, inputs=True)
        yield from zip(given, wanted)


def _keep_line(norm: Norm, pairs: Iterator[tuple[Tensor, Tensor]]) -> None:
    if norm.weight is None:
        return
    offset = norm.spec.weight_offset
    norm.weight.fill_(1 - offset)
    if norm.bias is not None:
        norm.bias.zero_()
    line, axis = _Line(), _axis(norm)
    bare = without_activation(norm)
    training = norm.training
    bare.eval()
    for x, y in pairs:
        line.add(_cells(bare(x), axis), _cells(y, axis))
    norm.train(training)
    slope = line.slope(through_origin=norm.bias is None)
    norm.weight.copy_(slope - offset)
    if norm.bias is not None:
        norm.bias.copy_(line.y - slope * line.x)


def _fit(original: nn.Module, treated: nn.Module, paths: Sequence[str], probes: Sequence[Probe]) -> Fit:
    at_sites = dict.fromkeys(paths, 0.0)
    at_output = 0.0
    for probe in probes:
        wanted, wanted_output = _outputs(original, paths, probe)
        found, output = _outputs(treated, paths, probe)
        at_output = max(at_output, difference(output, wanted_output))
        for path in paths:
            at_sites[path] = max(at_sites[path], difference(found[path], wanted[path]))
    return Fit(at_sites, at_output)


class _Reached(Exception):
    """Everything that was wanted of a run has been seen."""


def _caught(model: nn.Module, module: nn.Module, probe: Probe, once: bool, *, inputs: bool) -> list[Tensor]:
    """The inputs or the outputs of `module` in one run; a run that calls it `once` ends there."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        caught.append(tensors((args, kwargs) if inputs else output)[0].clone())
        if once:
            raise _Reached

    inner = unwrapped(model)
    with isolated(inner, training=False), _hooked({module: catch}), suppress(_Reached):
        probe.run(inner)
    return caught


def _outputs(model: nn.Module, paths: Sequence[str], probe: Probe) -> tuple[dict[str, list[Tensor]], Any]:
    """Every output of the modules at `paths`, and that of the model."""
    inner = unwrapped(model)
    found: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keeping(path: str) -> Any:
        return lambda module, args, kwargs, output: found[path].append(tensors(output)[0].clone())

    with isolated(inner, training=False), _hooked({inner.get_submodule(path): keeping(path) for path in paths}):
        return found, probe.run(inner)


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _axis(norm: Norm) -> int:
    return 1 if norm.spec.layout == "channels_first" else -1


def _cells(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, -1).flatten(0, -2)
