"""A layer learns a bias that the normalization behind it subtracts again.

## What it finds
Linear and convolution layers with a bias whose every reader is a normalization that subtracts the mean of each channel
(batch or instance normalization, or groups of one channel). The data flow decides, not the order of registration: a
layer whose output also goes elsewhere, or into layer or group normalization, needs its bias.

## Why it hurts
Adding a constant to a channel moves its mean by that constant, and the normalization takes the mean away. The bias
changes nothing in the forward pass and receives no gradient but rounding noise: memory, time and optimizer state for
a parameter that does not exist, and under weight decay a number that only shrinks.

## Evidence
The data flow: traced on the example when there is one, else read off the code by torch.fx.

## Prescription
Build the layer with `bias=False`. The normalization's own offset β takes its place; the network computes the same
function.

## When to ignore
When the normalization is to be folded into the layer for inference: the fold needs a bias, and can make one.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, section 3.2: "the bias b can be ignored since its effect will be canceled
by the subsequent mean subtraction".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.anatomy.observe import Call
from normscope.anatomy.recognize import spec_of
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription
from normscope.terms.spec import NormSpec

CANCELLED = Threshold(0, "Ioffe & Szegedy 2015, section 3.2: one cancelled bias is one too many", "layers")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every layer whose bias is cancelled."""
    layers = _cancelled(blueprint)
    if not layers:
        return
    sites = tuple(layers)
    idle = sum(bias.numel() for bias in layers.values())
    has = "layer has a bias" if len(sites) == 1 else "layers have a bias"
    yield RULE.finding(
        sites,
        f"{len(sites)} {has} that the normalization behind subtracts again: {idle} parameters without effect.",
        Evidence("cancelled_bias", len(sites), CANCELLED.value, unit="layers", source=CANCELLED.source),
        prescriptions=[
            Prescription(
                "remove_bias",
                sites,
                words=f"build {', '.join(f'`{site}`' for site in sites[:3])}{' …' if len(sites) > 3 else ''} "
                "with `bias=False`",
                reason="the normalization's offset does what the bias was meant to do",
            )
        ],
    )


def _cancelled(blueprint: Blueprint) -> dict[str, nn.Parameter]:
    """Path → bias of each layer all of whose calls are read by cancelling normalizations alone."""
    if blueprint.flow is None:
        return {}
    kept: set[str] = set()
    found: dict[str, nn.Parameter] = {}
    for call in blueprint.flow.calls:
        bias = getattr(call.module, "bias", None)
        if not isinstance(call.module, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(bias, nn.Parameter):
            continue
        readers = blueprint.readers(call)
        returned = call.index in blueprint.flow.outputs
        if readers and not returned and all(_cancels(blueprint, call, reader) for reader in readers):
            found[call.path] = bias
        else:
            kept.add(call.path)
    return {path: bias for path, bias in found.items() if path not in kept}


def _cancels(blueprint: Blueprint, call: Call, reader: Call) -> bool:
    """Whether `reader` subtracts from each channel that `call` makes a mean that holds the channel's constant."""
    spec = spec_of(reader.module) if reader.module is not None else None
    if reader.module is None or spec is None or not _subtracts_channel_mean(spec):
        return False
    if isinstance(call.module, nn.Linear):  # features are its last axis: the channel axis only of a matrix
        axes = blueprint.axes(reader.module)
        return "N" in spec.over and (axes == 2 or (axes is None and isinstance(reader.module, nn.BatchNorm1d)))
    return True


def _subtracts_channel_mean(spec: NormSpec) -> bool:
    measured = spec.train_from not in ("given", "none")
    return spec.center and measured and bool(spec.over) and "C" not in spec.over and spec.layout == "channels_first"


class _Branches(nn.Module):
    """The output of `first` also reaches the sum, so its bias counts; that of `second` does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)

    def forward(self, x):
        stem = self.first(x)
        return stem + self.norm2(self.second(self.norm1(stem).relu()))


SICK = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), ("0",)),
    Specimen(_Branches, ("second",)),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)), ("0",)),
)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))),
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())),
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8))),
)

RULE = Rule(
    "NS101",
    "bias_before_norm",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"cancelled": CANCELLED},
    sick=SICK,
    healthy=HEALTHY,
)
