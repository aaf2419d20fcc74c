"""Some layers move a hundred times as fast as the others, or as slowly.

## What it finds
Layers whose updates, relative to their weights, are more than a hundred times larger or smaller than those of the
median layer through the second half of a run that has not lost half of its loss. Layers that the optimizer does not own
or whose gradient is zero are left to their own rule. With the optimizer at hand, also layers in a group whose rate is a
hundredth of another's and that stand still, or a hundred times the others' and that are thrown about.

## Why it hurts
One learning rate has to suit all layers. The fast ones are thrown about while the slow ones are still at their random
start; the whole network learns at the pace of neither.

## Evidence
‖ΔW‖/‖W‖ for one step of each layer, the median over the second half of the run, over that of the median layer.

## Prescription
Bring weights to a common scale (initialization at the gain, normalization), remove rates of single layers that are off,
or use an optimizer that adapts to each layer (Adam, LARS, LAMB).

## When to ignore
When layers are trained at rates of their own on purpose, as in fine-tuning.

## References
You, Gitman & Ginsburg 2017, *Large batch training of convolutional networks*, section 4: ‖W‖/‖∇W‖ differs by up
to a factor of 233 between the layers of AlexNet. Bernstein et al. 2020, *On the distance between two neural networks
and the stability of learning*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.terms.finding import Finding

UNEVEN = Threshold(
    100.0,
    "chosen, five times what a network that trains shows: in AlexNet's first step ‖W‖/‖∇W‖ is 5.76 to 1345 over the "
    "layers' weights, and none is further than a factor of 18 from the median one (You et al. 2017, table 2)",
    "ratio",
)
STILL = Threshold(
    0.02, "what `rate_too_low` calls still: within 2% of themselves wide networks are linear in their weights", "ratio"
)
THROWN = Threshold(0.1, "chosen: ten such steps, all one way, are as long as the weights themselves", "ratio")
SPARED = Threshold(0.8, "chosen: where a fifth of the loss is left the rest of the network makes up for it", "share")
FIRST = 3
"""Samples of the start that are looked at for a layer that is thrown about."""


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers that are out of range."""
    if (grouped := _grouped(case)) is not None:
        yield grouped
        return
    ratios = case.update_ratio
    late = {path: float(np.median(track.values)) for path in ratios.paths if len(track := ratios.at(path).late())}
    late = {path: value for path, value in late.items() if value > 0}
    if len(late) < 3 or case.thrives:
        return
    typical = float(np.median(list(late.values())))
    off = {path: max(value / typical, typical / value) for path, value in late.items()}
    worst = sorted((path for path in off if off[path] > UNEVEN.value), key=lambda path: -off[path])
    if not worst:
        return
    way = "faster" if late[worst[0]] > typical else "slower"
    yield RULE.finding(
        worst,
        f"Relative to its weights `{worst[0]}` moves {off[worst[0]]:.0f} times {way} than the median layer, and "
        f"{len(worst)} of {len(late)} layers are more than {UNEVEN.value:.0f} times off.",
        UNEVEN.evidence("update_ratio", off[worst[0]], ratios.steps, [(path, off[path]) for path in worst]),
        since_step=int(ratios.steps[0]),
        prescriptions=[
            remedies.advice("give all layers one learning rate, or divide that of the fast ones"),
            remedies.advice("train with `torch.optim.Adam`", "it moves each weight by its own measure"),
        ],
    )


def _grouped(case: Case) -> Finding | None:
    """Layers whose group of the optimizer has next to no rate, or one that throws them about."""
    tried = case.experiment
    if tried is None or tried.optimizer is None:
        return None
    names = {id(one): name for name, one in tried.model.named_parameters()}
    rates = {
        names[id(one)]: float(group.get("initial_lr", group["lr"]))
        for group in tried.optimizer.param_groups
        for one in group["params"]
        if id(one) in names
    }
    own = {
        path: max(told)
        for path in case.update_ratio.paths
        if (told := [rate for name, rate in rates.items() if name.startswith(f"{path}.") and rate > 0])
    }
    if len(own) < 2 or max(own.values()) < UNEVEN.value * min(own.values()):
        return None
    usual = float(np.median(list(own.values())))
    slow = {path: _moved(case, path) for path in own if own[path] * UNEVEN.value <= max(own.values())}
    fast = {path: _first(case, path) for path in own if own[path] >= UNEVEN.value * usual}
    still = [path for path in slow if slow[path] < STILL.value]
    thrown = [path for path in fast if fast[path] > THROWN.value]
    if not (still or thrown) or (case.fallen or 0.0) > SPARED.value:
        return None
    worst = thrown or still
    value = max(own.values()) / min(own.values())
    words = (
        f"it moved by {fast[worst[0]]:.2g} of itself in one step"
        if thrown
        else f"in the whole run it has moved by {slow[worst[0]]:.2g} of itself at most"
    )
    return RULE.finding(
        worst,
        f"The optimizer gives its groups rates from {min(own.values()):.3g} to {max(own.values()):.3g}, that of "
        f"`{worst[0]}` is {own[worst[0]]:.3g}, and {words}.",
        UNEVEN.evidence("rates", value, case.steps, [(path, own[path]) for path in worst]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[remedies.advice("give all groups one learning rate, or rates within a factor of ten")],
    )


def _moved(case: Case, path: str) -> float:
    """The most that a layer can have moved, relative to its weights: its updates, each as long as those beside it."""
    track = case.update_ratio.at(path)
    return float(track.values.mean()) * (int(case.steps[-1] - case.steps[0]) + 1) if len(track) else 0.0


def _first(case: Case, path: str) -> float:
    track = case.update_ratio.at(path)
    return float(track.values[:FIRST].max()) if len(track) else 0.0


def _network() -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 8))


def _rates(parameters: Iterable[Tensor]) -> Optimizer:
    first, *rest = [*parameters]
    return SGD([{"params": rest, "lr": 1e-3}, {"params": [first], "lr": 1e-7}], lr=1e-3)


SICK = (Scene(_network, ("0",), optimizer=_rates),)
HEALTHY = (Scene(_network),)

RULE = Rule(
    "NS212",
    "uneven_updates",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"uneven": UNEVEN, "still": STILL, "thrown": THROWN, "spared": SPARED},
    causes=("unrelated_targets",),
    roots=("rates",),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
