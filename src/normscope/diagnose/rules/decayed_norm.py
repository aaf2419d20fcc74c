"""Weight decay pulls on the parameters of normalizations and on biases.

## What it finds
An optimizer with weight decay on one-dimensional parameters: γ and β of normalizations, and biases of layers. Needs the
optimizer (`normscope.lint(model, optimizer=…)`).

## Why it hurts
Decay of a weight in front of a normalization does not limit what the layer computes, only the size that the
normalization divides by. Decay of γ does limit it: it pulls every channel towards zero, and decay of β and of biases
pulls towards a mean of zero. Neither is what weight decay is for, and accuracy is a little better without.

## Evidence
How many parameters of normalizations and biases lie in groups with weight decay.

## Prescription
Give them a group of their own without decay: `normscope.parameter_groups(model, weight_decay)` makes both groups, by
the type of the module that holds a parameter.

## When to ignore
When the decay on γ is meant, as a way to prune channels.

## References
He et al. 2019, *Bag of Tricks for Image Classification*, section 3.1 (no bias decay); van Laarhoven 2017, *L2
Regularization versus Batch and Weight Normalization*.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from normscope.anatomy.isolate import unwrapped
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding

DECAYED = Threshold(0, "He et al. 2019, section 3.1: decay on the weights of layers alone", "parameters")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every module whose γ, β or bias decays."""
    if blueprint.optimizer is None:
        return
    decayed = {
        id(one)
        for group in blueprint.optimizer.param_groups
        if float(group.get("weight_decay") or 0) > 0
        for one in group["params"]
    }
    norms = {norm.path for norm in blueprint.norms}
    found: dict[str, int] = {}
    for path, module in unwrapped(blueprint.model).named_modules():
        for name, one in module.named_parameters(recurse=False):
            if id(one) in decayed and (path in norms or name == "bias"):
                found[path] = found.get(path, 0) + one.numel()
    if not found:
        return
    yield RULE.finding(
        tuple(found),
        f"Weight decay pulls {sum(found.values())} parameters of normalizations and biases towards zero, in "
        f"{len(found)} modules.",
        Evidence("decayed_parameters", sum(found.values()), DECAYED.value, unit=DECAYED.unit, source=DECAYED.source),
        prescriptions=[
            advice(
                f"build the optimizer from `normscope.parameter_groups(model, weight_decay)` ({few(tuple(found))})",
                "it gives normalizations and biases a group without decay",
            )
        ],
    )


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2, bias=False))


class _Trained(Specimen):
    """A specimen whose optimizer is made of its own parameters."""

    def subject(self, folder: object = None) -> Blueprint:
        model = self.build()
        matrices = [one for one in model.parameters() if one.ndim > 1]
        vectors = [one for one in model.parameters() if one.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": self.known["decay"]}]
        return Blueprint(model, optimizer=torch.optim.SGD(groups, lr=0.1))


SICK = (_Trained(_small, ("1",), {"decay": 0.01}),)
HEALTHY = (_Trained(_small, known={"decay": 0.0}), Specimen(_small))

RULE = Rule(
    "NS104",
    "decayed_norm",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"decayed": DECAYED},
    sick=SICK,
    healthy=HEALTHY,
)
