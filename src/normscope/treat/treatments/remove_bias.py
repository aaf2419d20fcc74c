"""Remove the bias of a layer whose output goes to a norm that subtracts the mean of each channel.

The mean takes the bias along, so the bias changes nothing: it costs memory and time, and its gradient is noise. Where
the norm keeps a running mean, the bias is subtracted from that too.

It preserves the function exactly, in both modes, and proves it at every layer on random input in float64. A bias that
the norm does not cancel (layer norm, group norm, RMS norm: their mean runs over channels with different biases) stays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normscope.anatomy.batch import Probe
from normscope.anatomy.flow import Flow
from normscope.anatomy.isolate import isolated
from normscope.anatomy.observe import Call, observe
from normscope.anatomy.recognize import spec_of
from normscope.terms.errors import TreatmentRefused
from normscope.treat.batches import first
from normscope.treat.flows import calls_at, flow_of
from normscope.treat.measure import difference
from normscope.treat.treatment import Change, Treated, Treatment

EXACT = 1e-9  # of a standard deviation, in float64: a thousand times its rounding in a sum of a million terms
SAMPLES = 16
ROUNDING = 1e-3  # of a standard deviation of the model's output: what float32 rounding grows to through deep networks


def apply(model: nn.Module, sites: Sequence[str] = (), *, data: Any = None) -> Treated:
    """Remove the biases of the layers at `sites`, or of all layers, that a norm behind them cancels.

    Args:
        model: the network, changed in place.
        sites: paths of layers, or of the norms behind them.
        data: a batch; needed where the code cannot be read without running it. With it the error of the whole model
            is measured.

    Raises:
        DataError: the flow cannot be read without data.
        UnknownNameError: a site names nothing that runs.
    """
    flow = flow_of(model, data)
    chosen = {call.index for call in calls_at(flow, sites)}
    probe = None if data is None else first(data, model)
    wanted = _answer(model, probe)
    seen = _inputs(model, probe)
    changes, skipped = [], []
    for producer, norm in flow.chain("producer", "norm"):
        if {producer.index, norm.index}.isdisjoint(chosen) or getattr(producer.module, "bias", None) is None:
            continue
        reason = _entangled(flow, producer, norm) or _removed(producer.module, norm.module, seen.get(producer.path))
        if reason:
            skipped.append((producer.path, reason))
        else:
            changes.append(Change(producer.path, "bias", f"no bias: `{norm.path}` cancels it"))
    error = difference(_answer(model, probe), wanted) if probe is not None else None
    if error is not None and not error < ROUNDING:
        raise TreatmentRefused(
            "The removal of biases was undone.",
            found=f"the output moved by {error:.3g} of its standard deviation, biases of {len(changes)} layers removed",
            because="every layer was proven alone, but together they change the function of this model",
            do="remove the biases one by one, sites=(path,), to find the layer that matters",
        )
    return Treated(model, tuple(changes), "exact", error, tuple(skipped))


def _entangled(flow: Flow, producer: Call, norm: Call) -> str | None:
    """Why the bias is not the norm's alone to cancel, or None."""
    if producer.module is None or norm.module is None:
        return "it is a function and no module"
    if flow.producers(norm) != (producer,):
        return f"something stands between it and `{norm.path}`"
    if flow.consumers(producer) != (norm,) or producer.index in flow.outputs:
        return f"its output goes elsewhere than to `{norm.path}` too"
    if len(flow.at(producer.path)) > 1 or len(flow.at(norm.path)) > 1:
        return f"it or `{norm.path}` is called more than once"
    if parametrize.is_parametrized(producer.module, "bias"):
        return "its bias is reparametrized"
    return None


def _removed(layer: Any, norm: Any, x: Tensor | None) -> str | None:
    """Remove the bias of `layer` if that is proven to change nothing, on `x` where its input was seen; else why not."""
    spec = spec_of(norm)
    if spec is None or not spec.center or "C" in spec.over:
        return f"{type(norm).__name__} does not subtract the mean of each channel"
    if x is None and not isinstance(layer, nn.modules.conv._ConvNd) and spec.layout == "channels_first":
        return "whether its units are the channels of the norm depends on the shape of the input: pass data"
    with_bias = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    without = copy.deepcopy(with_bias)
    _take_bias(*without)
    try:
        error = _apart(with_bias, without, _random_input(layer) if x is None else x.double())
    except (RuntimeError, ValueError) as failure:
        return f"the proof could not be run: {failure}".splitlines()[0]
    if not error < EXACT:
        return f"without it the output of the norm moves by {error:.3g} standard deviations"
    _take_bias(layer, norm)
    return None


def _take_bias(layer: Any, norm: Any) -> None:
    bias = layer.bias.detach()
    layer.bias = None
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.sub_(bias.to(norm.running_mean))


def _apart(one: tuple[nn.Module, nn.Module], other: tuple[nn.Module, nn.Module], x: Tensor) -> float:
    """The larger difference of both modes, evaluation first: training moves the running statistics."""
    errors = []
    with torch.no_grad():
        for training in (False, True):
            outputs = [norm.train(training)(layer.train(training)(x)) for layer, norm in (other, one)]
            errors.append(difference(*outputs))
    return max(errors)


def _random_input(layer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape: tuple[int, ...] = (8, getattr(layer, "in_features", 0))
    if isinstance(layer, nn.modules.conv._ConvNd):
        reach = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(layer.dilation, layer.kernel_size)]
        shape = (4, layer.in_channels, *(size + 3 * stride for size, stride in zip(reach, layer.stride)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(layer.weight.device)


def _inputs(model: nn.Module, probe: Probe | None) -> dict[str, Tensor]:
    """What reaches each layer in its first call: the first samples, which the proof is made on."""
    found: dict[str, Tensor] = {}

    def note(call: Call, inputs: tuple[Tensor, ...], output: Any) -> None:
        if call.role == "producer" and call.module is not None and inputs:
            found.setdefault(call.path, inputs[0][:SAMPLES].clone())

    if probe is not None:
        observe(model, note, probe, training=False)
    return found


def _answer(model: nn.Module, probe: Probe | None) -> Any:
    if probe is None:
        return None
    with torch.no_grad(), isolated(model, training=False):
        return probe.run(model)


TREATMENT = Treatment("remove_bias", "exact", apply)
