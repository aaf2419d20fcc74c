"""Nearly all of the loss is about one class, or about few of the samples.

## What it finds
Losses whose gradient belongs for nine tenths and more to one class, each of whose samples counts fifty times as much as
those of the others; and losses that do not change with the answers for more than half of the samples. Asked of the loss
itself, with outputs that are all zero, on the fixed batch: classes that are frequent are no finding, since a sample of
theirs counts as much as any other, nor are weights that make up for frequency.

## Why it hurts
The network learns to answer that one class, or what the few samples ask for, and the rest is noise beside it.

## Evidence
The root mean square of the gradient of the loss at each sample's outputs, added up over the samples of each class.

## Prescription
Give each class the weight 1 / (its share), not its count; look at masks and indices before the loss.

## When to ignore
When one class is to be found at any price, or most targets are missing on purpose.

## References
King & Zeng 2001, *Logistic regression in rare events data*, section 4.2: weights that undo the shares of classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.anatomy.batch import Probe, first_tensor
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.terms.finding import Finding

MOST = Threshold(0.9, "chosen: what is left for all other classes together is a tenth", "share")
HEAVY = Threshold(50.0, "chosen: weights that undo frequencies of 2% and 98%, and no more", "ratio")
UNHEARD = Threshold(0.5, "chosen: more samples are left out than count", "share")
IGNORED = -100
"""The class that torch's losses leave out."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    told = _gradients(case.experiment) if case.experiment is not None else None
    if told is None:
        return
    sizes, target = told
    last = case.producers[-1].path if case.producers else ""
    silent = float((sizes == 0).double().mean())
    if silent > UNHEARD.value:
        words = f"The loss does not change with the answers for {silent:.0%} of the samples of the fixed batch."
        threshold, value = UNHEARD, silent
        advice = remedies.advice(
            "look at masks and indices between the output and the loss", "every sample with a target is to be heard"
        )
    else:
        found = _heaviest(sizes, target)
        if found is None:
            return
        label, share, value = found
        words = (
            f"Class {label} has {share:.1%} of the gradient of the loss on the fixed batch: each of its samples counts "
            f"{value:.3g} times as much as one of another class."
        )
        threshold = HEAVY
        advice = remedies.advice(
            "take the weights of classes out of the loss, or make them `1 / (classes * share)` of each class",
            "a weight is to undo the share of its class, and the product of both is then the same for all",
        )
    yield RULE.finding(
        [last],
        words,
        threshold.evidence("weight" if threshold is HEAVY else "unheard", value, [int(case.steps[0])], [(last, value)]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[advice],
    )


def _gradients(tried: Experiment) -> tuple[Tensor, Tensor] | None:
    """Of each sample of the fixed batch, the size of the loss's gradient at outputs of zero, and its class."""
    target, given = Probe.of(tried.probe).target, first_tensor(tried.output())
    if tried.loss_fn is None or not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != 1:
        return None
    if given is None or not given.is_floating_point() or given.ndim != 2 or len(given) != len(target):
        return None
    output = torch.zeros_like(given).requires_grad_()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(tried.seed)
            (slope,) = torch.autograd.grad(tried.loss(output, target), output)
    except Exception:  # a loss that takes no zeros
        return None
    kept = target != IGNORED
    sizes = slope.detach().double().square().mean(1).sqrt()[kept]
    return (sizes, target[kept]) if len(sizes) > 1 and bool(torch.isfinite(sizes).all()) and sizes.any() else None


def _heaviest(sizes: Tensor, target: Tensor) -> tuple[int, float, float] | None:
    """The class with the most of the gradient: its label, its share, and the weight of a sample over another's."""
    labels = target.unique()
    if len(labels) < 2:
        return None
    shares = torch.stack([sizes[target == label].sum() for label in labels]) / sizes.sum()
    worst = int(shares.argmax())
    own = target == labels[worst]
    ratio = float(sizes[own].mean() / sizes[~own].mean().clamp_min(1e-30))
    share = float(shares[worst])
    return (int(labels[worst]), share, ratio) if share > MOST.value and ratio > HEAVY.value else None


def _heavy(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target, torch.tensor([2000.0] + [1.0] * 7))


def _even(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target, torch.linspace(0.5, 2.0, 8))


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(_network, ("2",), loss=_heavy, steps=12, at_hand=True),)
HEALTHY = (Scene(_network, loss=_even, steps=24, at_hand=True),)

RULE = Rule(
    "NS233",
    "lopsided_loss",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"most": MOST, "heavy": HEAVY, "unheard": UNHEARD},
    causes=("unrelated_targets", "dead_units", "rank_collapse", "poor_initialization", "rate_too_high"),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
