"""The loss does not ask which target belongs to which sample.

## What it finds
Losses that stay the same, to the last digits of double precision, when the targets of the fixed batch are dealt out to
its samples in another order, although the targets and the outputs differ: an output of shape (N, 1) and targets of
shape (N,) that broadcast to (N, N), targets that were sorted or shuffled on their own, a label smoothing of one, a loss
of another tensor than the one that was meant.

## Why it hurts
A network learns what its loss asks. This one asks for the same of every sample, and the best answer is a constant: the
mean of all targets. Gradients are healthy, every layer moves, and the loss stays where it is.

## Evidence
The loss of the fixed batch with its own targets, and with the targets in three other orders, all in float64: the
largest difference over the loss.

## Prescription
Look at the shapes of output and target just before the loss, and bring them to one; look at what reaches the loss.

## When to ignore
When the loss compares whole sets (distances between distributions, matchings), or needs no targets.

## References
PyTorch, warning of `mse_loss`: "using a target size that is different to the input size … will likely lead to incorrect
results due to broadcasting".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from normscope.anatomy.batch import Probe, first_tensor, mapped, tensors
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters, sgd
from normscope.terms.finding import Finding

SAME = Threshold(
    1e-10,
    "derived: sums of some thousand numbers in another order differ by 1e-13 of themselves in float64; an answer that "
    "counts changes the loss by more than that share of it",
    "share",
)
CHANCE = Threshold(1e-3, "chosen: a thousandth of the loss, far above rounding, far below what a shuffle does", "share")
FAR = 1e3
"""Outputs this many times as large as the targets hide them: their part in a squared error is a millionth."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    tried = case.experiment
    if tried is not None and tried.loss_fn is not None and (chance := _by_chance(tried)) is not None:
        yield _dealt(case, chance)
        return
    value = _difference(tried) if tried is not None and tried.loss_fn is not None else None
    if tried is None or value is None or value > SAME.value:
        return
    given, asked = first_tensor(tried.output()), first_tensor(Probe.of(tried.probe).target)
    assert given is not None and asked is not None
    shapes = f"the output has the shape {tuple(given.shape)}, the target {tuple(asked.shape)}"
    broadcast = given.ndim != asked.ndim and given.numel() == asked.numel()
    last = case.producers[-1].path if case.producers else ""
    yield RULE.finding(
        [last],
        f"The loss of the fixed batch stays the same (to {value:.1g} of it) when its targets are given to other "
        f"samples: {shapes}.",
        SAME.evidence("difference", value, [int(case.steps[0])], [(last, value)]),
        severity="error" if case.learns is False else "note" if case.thrives and not broadcast else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "give the loss an output and a target of one shape: `loss(output.squeeze(-1), target)` or "
                "`loss(output, target.unsqueeze(-1))`",
                "shapes that differ are broadcast, and every output is compared with every target",
            )
            if broadcast
            else remedies.advice(
                "print what reaches the loss: output and target of the same samples in the same order, no smoothing "
                "of one",
                "the loss has to change when a target goes to another sample",
            )
        ],
    )


def _dealt(case: Case, value: float) -> Finding:
    last = case.producers[-1].path if case.producers else ""
    return RULE.finding(
        [last],
        f"Asked again with the same outputs and targets, the loss changes by up to {value:.2g} of itself: chance "
        "decides which answer is held against which target.",
        CHANCE.evidence("chance", value, [int(case.steps[0])], [(last, value)]),
        severity="error" if case.learns is False else "note" if case.thrives else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "take the shuffling out of the loss: indices are drawn once, for inputs and targets together",
                "the loss of the same answers has to be the same",
            )
        ],
    )


def _by_chance(tried: Experiment) -> float | None:
    """By how much of itself the loss of the same numbers changes with the random state; None where little."""
    target = Probe.of(tried.probe).target
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            output = mapped(tried.output(), lambda one: _apart(one, _reach(target)))
            asked = mapped(target, _wide)
            told = [_loss(tried, output, asked, seed) for seed in range(4)]
    except Exception:  # a loss that takes no float64
        return None
    value = (max(told) - min(told)) / max(abs(told[0]), 1e-300)
    return value if CHANCE.value < value < float("inf") else None


def _difference(tried: Experiment) -> float | None:
    """The largest change of the loss over the loss with targets in other orders; None where it cannot be told."""
    target = Probe.of(tried.probe).target
    asked, output = tensors(target), tried.output()
    sizes = {len(one) for one in (*asked, *tensors(output)) if one.ndim}
    if not asked or len(sizes) != 1 or any(not one.ndim for one in asked) or (size := sizes.pop()) < 4:
        return None
    if all(bool((one == one[:1]).all()) for one in asked):
        return None  # all samples are asked for the same
    if _beyond(output, target):
        return None
    differing = mapped(output, lambda one: _apart(one, _reach(target)))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            own = _loss(tried, differing, mapped(target, _wide))
            orders = [torch.arange(size).roll(one) for one in (1, size // 2)] + [torch.arange(size).flip(0)]
            dealt = [mapped(target, lambda one, order=order: _wide(one)[order.to(one.device)]) for order in orders]
            others = [_loss(tried, differing, one) for one in dealt]
    except Exception:  # a loss that takes no float64, or more than output and target
        return None
    known = own == own and abs(own) > 0 and all(one == one for one in others)
    return max(abs(one - own) for one in others) / abs(own) if known else None


def _beyond(output: Any, target: Any) -> bool:
    """Whether outputs are so far from real targets (as in a run that diverged) that these are lost in rounding."""
    real = [float(one.abs().max()) for one in tensors(target) if one.is_floating_point()]
    given = [float(one.abs().max()) for one in tensors(output) if one.is_floating_point()]
    return bool(real) and not max(given, default=0.0) < FAR * max(real)


def _loss(tried: Experiment, output: Any, target: Any, seed: int = 0) -> float:
    assert tried.loss_fn is not None
    torch.manual_seed(tried.seed + seed)
    return float(tried.loss_fn(output, target))


def _wide(values: Tensor) -> Tensor:
    return values.detach().double() if values.is_floating_point() else values.detach()


def _reach(target: Any) -> float:
    """A twentieth of the largest real target."""
    real = [float(one.abs().max()) for one in tensors(target) if one.is_floating_point()]
    return 0.05 * max(real, default=0.0)


def _apart(values: Tensor, reach: float) -> Tensor:
    """Outputs that differ from sample to sample, within the range of the given ones, in float64.

    Where these are nothing beside the targets (the end of a function that is shut) they reach into that range.
    """
    wide = _wide(values)
    if not values.is_floating_point() or not values.ndim:
        return wide
    generator = torch.Generator().manual_seed(0)
    wide = torch.where(wide == 0, torch.full_like(wide, 0.5), wide)
    share = torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values.device)
    wide = torch.where(wide.abs() < reach / FAR, reach, wide)
    return wide * (1 - 0.5 * share) if values.ndim < 2 or values.shape[-1] == 1 else wide * (1 - 0.1 * share)


def _targets() -> Data:
    inputs, _ = clusters()
    return inputs, inputs[:, 0] * inputs[:, 1]


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def _broadcast(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


def _paired(output: Tensor, target: Tensor) -> Tensor:
    return mse_loss(output.squeeze(-1), target)


SICK = (Scene(_network, ("2",), _targets, sgd(0.01), steps=12, loss=_broadcast, at_hand=True),)
HEALTHY = (Scene(_network, (), _targets, sgd(0.01), steps=12, loss=_paired, at_hand=True),)

RULE = Rule(
    "NS228",
    "unheard_targets",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"same": SAME, "chance": CHANCE},
    causes=(
        "unread_input",
        "unrelated_targets",
        "dead_units",
        "rank_collapse",
        "vanishing_gradient",
        "poor_initialization",
        "restricted_output",
    ),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
