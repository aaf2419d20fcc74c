"""A layer with weight normalization is followed by a normalization that undoes it.

## What it finds
Linear layers and convolutions under weight normalization all of whose output goes into a normalization of each channel
(batch or instance normalization).

## Why it hurts
Weight normalization learns a length g for each output's weights; the normalization behind divides each channel by its
own deviation, and g with it. g changes nothing, gets no gradient but rounding, and every step still pays for the
division.

## Evidence
The data flow: how many such layers there are.

## Prescription
Remove the weight normalization: `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`. Weight
*standardization* is another matter: with group normalization it helps.

## When to ignore
When the normalization behind will be removed.

## References
Salimans & Kingma 2016, *Weight Normalization*, section 2; van Laarhoven 2017, *L2 Regularization versus
Batch and Weight Normalization* (scale invariance).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from normscope.anatomy.recognize import spec_of
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.norms.reparametrize import Rows
from normscope.terms.finding import Evidence, Finding

REDUNDANT = Threshold(0, "van Laarhoven 2017: the output does not depend on the length of the weights", "layers")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every layer whose weight normalization is undone."""
    if blueprint.flow is None:
        return
    sites = []
    for layer, norm in blueprint.flow.chain("producer", "norm", sole=True):
        spec = spec_of(norm.module) if norm.module is not None else None
        per_channel = spec is not None and "C" not in spec.over and bool(spec.scale) and spec.train_from != "given"
        if per_channel and layer.module is not None and _is_weight_normalized(layer.module):
            sites.append(layer.path)
    sites = tuple(dict.fromkeys(sites))
    if not sites:
        return
    yield RULE.finding(
        sites,
        f"{len(sites)} layer{'s have' if len(sites) > 1 else ' has'} weight normalization whose length the "
        "normalization behind divides away.",
        Evidence("redundant_layers", len(sites), REDUNDANT.value, unit=REDUNDANT.unit, source=REDUNDANT.source),
        prescriptions=[
            advice(
                f"remove the weight normalization of {few(sites)}: "
                '`torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`',
                "the model computes the same without",
            )
        ],
    )


def _is_weight_normalized(module: nn.Module) -> bool:
    if hasattr(module, "weight_g") and hasattr(module, "weight_v"):  # torch's older weight norm, by a hook
        return True
    if not parametrize.is_parametrized(module, "weight"):
        return False
    steps = module.parametrizations["weight"]  # type: ignore[index]
    return any(step.gain == "row" if isinstance(step, Rows) else type(step).__name__ == "_WeightNorm" for step in steps)


def _pair(norm: nn.Module) -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), norm, nn.ReLU())


SICK = (Specimen(lambda: _pair(nn.BatchNorm2d(8)), ("0",)),)
HEALTHY = (
    Specimen(lambda: _pair(nn.GroupNorm(2, 8))),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))),
)

RULE = Rule(
    "NS116",
    "redundant_weight_norm",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"redundant": REDUNDANT},
    sick=SICK,
    healthy=HEALTHY,
)
