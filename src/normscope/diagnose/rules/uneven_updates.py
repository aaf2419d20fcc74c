"""Some layers move a hundred times as fast as the others, or as slowly.

## What it finds
Layers whose updates, relative to their weights, are more than a hundred times larger or smaller than those of the
median layer through the second half of a run that has not lost half of its loss. Layers that the optimizer does not own
or whose gradient is zero are left to their own rule.

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


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers that are out of range."""
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
    thresholds={"uneven": UNEVEN},
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
