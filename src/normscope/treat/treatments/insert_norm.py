"""Put a norm in front of activations, so that what reaches them keeps its scale whatever the weights do.

The norm starts with weight 1 and bias 0. A module that is an activation gets it in a small Sequential of both. Where
the activation is a function, or one module that is called in many places, the norm follows the layer that feeds it.

It preserves nothing of the function: the network is to be trained with the norms. Parameters stay the same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from normscope.anatomy.batch import Probe, first_tensor
from normscope.anatomy.flow import TRANSPARENT, Flow
from normscope.anatomy.observe import Call, observe
from normscope.anatomy.walk import sites as sites_of
from normscope.norms.module import build
from normscope.terms.errors import SpecError
from normscope.terms.site import Site
from normscope.terms.spec import Layout, NormSpec
from normscope.treat.batches import first
from normscope.treat.fitting import fitted, spec_named, words
from normscope.treat.flows import calls_at, flow_of
from normscope.treat.surgery import after, before, follow, unregistered
from normscope.treat.treatment import Change, Treated, Treatment

# Activations that are no nonlinearity between layers, but an answer, a gate or a threshold of its own.
_NOT_BETWEEN_LAYERS = {"softmax", "log_softmax", "glu", "hardshrink", "softshrink", "tanhshrink", "logsigmoid"}
# What hands on each channel by itself, so that the channels of a layer are still the same behind it.
_BY_CHANNEL = {
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Identity", "dropout"),
    *(f"{way}Pool{rank}d" for way in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for rank in (1, 2, 3)),
}


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: Any = None,
    norm: str | NormSpec | Mapping[str, Any] = "BatchNorm",
    position: Literal["before", "after"] = "before",
) -> Treated:
    """Insert `norm` at the activations at `sites`, or after the layers there.

    Args:
        model: the network, changed in place.
        sites: activations (modules, or functions as path/function), or layers whose output is to be normalized.
            Without sites: every activation between layers that no norm feeds; what the model returns is left out.
        data: a batch; needed where the code cannot be read without running it, or hides the number of channels.
        norm: a name of the catalog, a description, or its `to_dict`.
        position: before the activation or after it.

    Raises:
        DataError: the flow cannot be read without data.
        UnknownNameError: a site names nothing that runs; the catalog has no such norm.
        SpecError: `position` is neither before nor after.
    """
    if position not in ("before", "after"):
        raise SpecError(
            "A norm was to be inserted at a position that does not exist.",
            found={"position": repr(position)},
            because="a norm stands before an activation or after it",
            do='choose "before" or "after"',
        )
    spec = spec_named(norm)
    flow = flow_of(model, data)
    shapes = {} if data is None else _shapes(model, first(data, model))
    changes, skipped = [], []
    for call in _targets(flow, sites):
        try:
            insertion = _planned(model, flow, call, position)
            place = _place(flow, call, shapes)
            fit = fitted(spec, place.channels, place.layout, positions=place.positions)
            if fit.over == frozenset("S") and not place.positions:
                raise _Unfit(f"its input has no positions for {words(fit, place.channels)} to normalize over")
        except _Unfit as unfit:
            skipped.append((call.path, str(unfit)))
            continue
        norm_layer = build(fit, place.channels, device=place.device, dtype=place.dtype)
        norm_layer.train(insertion.module.training)
        model = insertion.operation(model, insertion.module, norm_layer)
        named = words(fit, place.channels)
        after_words = f"{call.kind} → {named}" if insertion.operation is after else f"{named} → {call.kind}"
        changes.append(Change(call.path, call.kind, after_words))
    return Treated(model, tuple(changes), "nothing", None, tuple(skipped))


class _Unfit(Exception):
    """Why no norm can be inserted at a site."""


class _Place(NamedTuple):
    """The tensor to normalize."""

    channels: int
    layout: Layout
    positions: bool
    device: torch.device
    dtype: torch.dtype


class _Insertion(NamedTuple):
    """An operation of `normscope.treat.surgery` and the module it is done to."""

    operation: Callable[[nn.Module, nn.Module, nn.Module], nn.Module]
    module: nn.Module


def _targets(flow: Flow, sites: Sequence[str]) -> tuple[Call, ...]:
    """The activations to treat, and the layers that feed none."""
    found: dict[int, Call] = {}
    answers = _answers(flow)
    named = {Site.parse(site).path for site in sites}
    for call in calls_at(flow, sites):
        if call.path in named:
            call = _activation_behind(flow, call)
        elif call.index in answers or not _between_layers(flow, call):
            continue
        found[call.index] = call
    return tuple(found[index] for index in sorted(found))


def _between_layers(flow: Flow, call: Call) -> bool:
    function = call.activation
    return (
        function is not None
        and function.name not in _NOT_BETWEEN_LAYERS
        and not _reaches(flow, call, "norm")
        and _reaches(flow, call, "producer")
    )


def _activation_behind(flow: Flow, call: Call) -> Call:
    """The activation that a layer feeds and nothing else, else the call itself."""
    taken = flow.consumers(call, skip=True)
    return taken[0] if call.role == "producer" and len(taken) == 1 and taken[0].role == "activation" else call


def _answers(flow: Flow) -> set[int]:
    """The calls whose value the model returns, as it is or rearranged."""
    found: set[int] = set()
    waiting = list(flow.outputs)
    while waiting:
        index = waiting.pop()
        found.add(index)
        if flow.calls[index].kind in TRANSPARENT:
            waiting += [call.index for call in flow.producers(flow.calls[index])]
    return found


def _reaches(flow: Flow, call: Call, role: str) -> bool:
    """Whether a value of that role reaches `call` past nothing but functions such as a sum or a reshape."""
    seen: set[int] = set()
    waiting = list(flow.producers(call))
    while waiting:
        made = waiting.pop()
        if made.role == role:
            return True
        if made.role == "other" and made.index not in seen:
            seen.add(made.index)
            waiting += flow.producers(made)
    return False


def _planned(model: nn.Module, flow: Flow, call: Call, position: str) -> _Insertion:
    if call.role not in ("activation", "producer"):
        raise _Unfit("it is neither an activation nor a layer that feeds one")
    neighbours = flow.producers(call, skip=True) if position == "before" else flow.consumers(call, skip=True)
    if call.role == "producer":
        neighbours = flow.consumers(call, skip=True)
    if any(other.role == "norm" for other in neighbours):
        raise _Unfit("a norm stands there already")
    if call.role == "activation" and call.module is not None and len(flow.at(call.path)) == 1:
        insertion = _Insertion(before if position == "before" else after, call.module)
    elif call.role == "activation" and position == "after":
        raise _Unfit("only an activation module that is called once can have a norm behind it")
    else:
        insertion = _Insertion(follow, _layer(flow, call))
    if held := unregistered(model, insertion.module):
        raise _Unfit(f"`{held}` holds the module outside of the registered modules and would go on calling it")
    return insertion


def _layer(flow: Flow, call: Call) -> nn.Module:
    """The layer that a norm can follow so that it works on nothing but what reaches `call`."""
    made = call
    while made.role != "producer":
        feeders = flow.producers(made)
        if len(feeders) != 1 or (feeders[0].role != "producer" and feeders[0].kind not in _BY_CHANNEL):
            names = ", ".join(f"`{feeder.path}`" for feeder in feeders) or "the input of the model"
            raise _Unfit(f"no single layer feeds it, but {names}")
        made = feeders[0]
        if len(flow.consumers(made)) != 1 or made.index in flow.outputs:
            raise _Unfit(f"`{made.path}`, which feeds it, is used elsewhere too")
    if made.module is None:
        raise _Unfit(f"`{made.path}`, which feeds it, is a function and no module")
    if len(flow.at(made.path)) != 1:
        raise _Unfit(f"`{made.path}`, which feeds it, is called {len(flow.at(made.path))} times")
    return made.module


def _place(flow: Flow, call: Call, shapes: Mapping[tuple[str, int], _Place]) -> _Place:
    """Where the norm will stand, from the example or from the layer that feeds `call`."""
    if (call.path, call.call) in shapes:
        return shapes[call.path, call.call]
    made = call
    while made.kind in _BY_CHANNEL or (made is call and call.role == "activation"):
        feeders = flow.producers(made)
        if len(feeders) != 1:
            break
        made = feeders[0]
    layer: Any = made.module
    if isinstance(layer, nn.Linear):
        return _Place(layer.out_features, "channels_last", False, layer.weight.device, layer.weight.dtype)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return _Place(layer.out_channels, "channels_first", True, layer.weight.device, layer.weight.dtype)
    raise _Unfit("the number of its channels is not known without data")


def _shapes(model: nn.Module, probe: Probe) -> dict[tuple[str, int], _Place]:
    """The places of all calls in one run whose output has channels first or last."""
    outputs: dict[tuple[str, int], tuple[torch.Size, torch.device, torch.dtype]] = {}

    def note(call: Call, inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            outputs[call.path, call.call] = tensor.shape, tensor.device, tensor.dtype

    observe(model, note, probe, training=False)
    places: dict[tuple[str, int], _Place] = {}
    for site in sites_of(model, probe):
        shape, device, dtype = outputs.get((site.path, site.call), (torch.Size(), None, None))
        if device is None or dtype is None or site.channel_axis is None or len(shape) < 2:
            continue
        axis = site.channel_axis % len(shape)
        if axis in (1, len(shape) - 1):
            layout: Layout = "channels_first" if axis == 1 else "channels_last"
            places[site.path, site.call] = _Place(shape[axis], layout, len(shape) > 2, device, dtype)
    return places


TREATMENT = Treatment("insert_norm", "nothing", apply)
