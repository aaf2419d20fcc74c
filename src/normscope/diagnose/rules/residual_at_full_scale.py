"""The last normalization of a residual branch starts at full scale.

## What it finds
In a network that has not trained yet, residual sums one side of which is the output of a normalization with γ = 1,
when there are several of them.

## Why it hurts
Every block then adds a branch of variance 1 to what comes in, so the variance behind l blocks is l + 1 and each block
matters less to the sum than the one before. With γ = 0 in the last normalization every block starts as the identity;
large batches and high rates get through the first epochs more easily.

## Evidence
How many residual branches start at full scale.

## Prescription
`nn.init.zeros_(block.last_norm.weight)` before training; not in the shortcut's own normalization.

## When to ignore
In shallow networks, and where the recipe at hand is tuned to γ = 1.

## References
Goyal et al. 2017, *Accurate, Large Minibatch SGD*, section 5.1; He et al. 2019, *Bag of Tricks*, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normscope.anatomy.flow import Flow
from normscope.anatomy.observe import Call
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding

FULL = Threshold(1, "Goyal et al. 2017, section 5.1: γ = 0 in the last normalization of every block", "branches")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with the last norm of every residual branch."""
    flow = blueprint.flow
    if flow is None or blueprint.trained or not all(_is_fresh(norm.module) for norm in blueprint.norms):
        return
    last = (_branch(flow, addition) for addition in flow.sums())
    sites = tuple(dict.fromkeys(norm.path for norm in last if norm is not None))
    if len(sites) <= FULL.value:
        return
    yield RULE.finding(
        sites,
        f"{len(sites)} residual branches end in a normalization that starts at γ = 1.",
        Evidence("full_scale_branches", len(sites), FULL.value, unit=FULL.unit, source=FULL.source),
        prescriptions=[
            advice(f"start γ of {few(sites)} at zero: `nn.init.zeros_(norm.weight)`", "every block starts as identity")
        ],
    )


def _is_fresh(module: nn.Module) -> bool:
    tracked = getattr(module, "num_batches_tracked", None)
    return not isinstance(tracked, Tensor) or tracked.is_meta or int(tracked) == 0


def _branch(flow: Flow, addition: Call) -> Call | None:
    """The norm with γ = 1 that ends the longer side of a residual sum; None when there is none."""
    sides = flow.producers(addition, skip=True)
    if len(sides) != 2:
        return None
    above = [_ancestors(flow, side) for side in sides]
    if not any((sides[1 - place].index in above[place]) or (above[0] & above[1]) for place in (0, 1)):
        return None
    longer = sides[0] if len(above[0] - above[1]) >= len(above[1] - above[0]) else sides[1]
    weight = getattr(longer.module, "weight", None) if longer.role == "norm" else None
    if not isinstance(weight, Tensor) or weight.is_meta or isinstance(weight, nn.UninitializedParameter):
        return None
    return longer if bool(torch.all(weight.detach() == 1)) else None


def _ancestors(flow: Flow, call: Call) -> set[int]:
    found: set[int] = set()
    waiting = [call.index]
    while waiting:
        for index in flow.calls[waiting.pop()].inputs:
            if index not in found:
                found.add(index)
                if index >= 0:
                    waiting.append(index)
    return found


class _Block(nn.Module):
    def __init__(self, width: int, gamma: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        nn.init.constant_(self.norm2.weight, gamma)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


def _residual(gamma: float) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), _Block(4, gamma), _Block(4, gamma))


SICK = (
    Specimen(lambda: _residual(1.0), ("1.norm2", "2.norm2")),
    Specimen(lambda: _residual(1.0), ("1.norm2", "2.norm2"), {"example": torch.zeros(2, 3, 6, 6)}),
)
HEALTHY = (
    Specimen(lambda: _residual(0.0)),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())),
)

RULE = Rule(
    "NS115",
    "residual_at_full_scale",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"full": FULL},
    sick=SICK,
    healthy=HEALTHY,
)
