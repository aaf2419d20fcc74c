"""The weights shrink towards zero: they are pulled there more strongly than the loss holds them.

## What it finds
Networks that do not learn well and in which the weights of at least half the layers have shrunk, over the run, to less
than a tenth of where they started.

## Why it hurts
A weight decay λ at a rate η multiplies each weight by 1 − ηλ at every step (in Adam, where the decay is part of the
gradient, it is a step of the full rate whenever it outweighs the loss). What the loss asks for must be stronger. Where
it is not, all weights fade, with them the signal and the gradient, and the network answers the same to everything.

## Evidence
The root mean square of each layer's weights at the end over that at the start.

## Prescription
Divide the weight decay by ten and again; decay of 1e-4 to 1e-2 is usual with SGD, up to 0.1 with AdamW. A penalty on
weights that was added to the loss counts too.

## When to ignore
When weights are shrunk away on purpose, as before pruning.

## References
Krogh & Hertz 1992, *A simple weight decay can improve generalization*, equation 2.
Loshchilov & Hutter 2019, *Decoupled weight decay regularization*, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding, Prescription

LEFT = Threshold(
    0.1,
    "chosen: two layers at a tenth each hand on a hundredth of the signal, and initializations keep it at one (He et "
    "al. 2015, section 2.2); training by itself makes weights grow",
    "ratio",
)
PULLED = Threshold(
    0.01,
    "chosen: a memory of a hundred steps, less than an epoch of all but the smallest data; AdamW's own 0.01 at a rate "
    "of 1e-3 makes it a hundred thousand",
    "share of the weights a step",
)
MOST = Threshold(0.5, "chosen: what pulls at weights pulls at all of them, so it is no layer's own affair", "share")


def check(case: Case) -> Iterator[Finding]:
    """One finding with every layer whose weights have shrunk."""
    if case.thrives:
        return
    pull = _pull(case)
    if pull > PULLED.value:
        yield _held_down(case, pull)
        return
    sizes = {site.path: track for site in case.producers if len(track := _size(case, site.path)) > 2}
    left = {path: track.last / float(track.values[0]) for path, track in sizes.items() if track.values[0] > 0}
    shrunk = sorted((path for path in left if left[path] < LEFT.value), key=lambda path: left[path])
    if not shrunk or len(shrunk) < MOST.value * len(sizes):
        return
    worst = shrunk[0]
    track = Track.of(sizes[worst].steps, sizes[worst].values / sizes[worst].values[0])
    yield RULE.finding(
        shrunk,
        f"The weights of `{worst}` have shrunk to {left[worst]:.2g} of where they started, and so, to less than a "
        f"tenth, have those of {len(shrunk)} of {len(sizes)} layers.",
        LEFT.evidence("rms", left[worst], track.steps, [(path, left[path]) for path in shrunk]),
        since_step=int(track.steps[0]),
        prescriptions=[
            _less(),
            remedies.advice("take penalties on the size of weights out of the loss"),
        ],
    )


def _pull(case: Case) -> float:
    """The share of themselves that the decay takes from the weights at each step; 0 where that is not known."""
    optimizer = case.experiment.optimizer if case.experiment is not None else None
    if optimizer is None:
        return 0.0
    rates = case.scalar(None, "learning_rate").values
    rate = float(np.median(rates)) if len(rates) else 0.0
    apart = isinstance(optimizer, SGD) or "AdamW" in type(optimizer).__name__
    apart = apart or any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    pulls = [float(group.get("weight_decay") or 0.0) for group in optimizer.param_groups]
    momentum = max(float(group.get("momentum") or 0.0) for group in optimizer.param_groups)
    return rate * min(pulls) / (1 - min(momentum, 0.99)) if apart and pulls else 0.0


def _held_down(case: Case, pull: float) -> Finding:
    sites = tuple(dict.fromkeys(site.path for site in case.producers if len(_size(case, site.path))))
    return RULE.finding(
        sites,
        f"The weight decay takes {pull:.1%} of the weights at each step: what was learned {1 / pull:.0f} steps ago is "
        "two thirds gone, and the loss has not lost half of its start.",
        PULLED.evidence("pull", pull, case.steps, [(path, pull) for path in sites]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[_less()],
    )


def _less() -> Prescription:
    return remedies.advice(
        "divide the optimizer's `weight_decay` by 10, and again until the weights keep their size",
        "the loss must hold the weights more strongly than the decay pulls at them",
    )


def _size(case: Case, path: str) -> Track:
    """The size of a layer's largest matrix over the run; empty where nothing moves it."""
    matrices = [one for one in case.parameters(path) if "weight" in one.name and len(case.moves(one))]
    return max((case.root_mean_square(one) for one in matrices), key=len, default=Track.of((), ()))


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def _decaying(parameters: Iterable[Tensor]) -> Optimizer:
    return SGD(parameters, lr=0.1, weight_decay=2.0)


SICK = (Scene(_network, ("0", "2"), optimizer=_decaying, steps=60),)
HEALTHY = (Scene(_network, optimizer=sgd(0.1), steps=60),)

RULE = Rule(
    "NS224",
    "decayed_weights",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"left": LEFT, "pulled": PULLED, "most": MOST},
    causes=(
        "unread_input",
        "unrelated_targets",
        *("vanishing_gradient", "rank_collapse", "dead_units", "collapsed_channels", "uneven_updates", "unlike_units"),
        *("rate_too_high", "rate_too_low", "restricted_output", "drifting_distribution"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
