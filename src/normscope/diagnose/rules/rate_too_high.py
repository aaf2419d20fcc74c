"""Steps are so large that the loss rises along them.

## What it finds
Runs whose loss ends half as high again as it began, beyond its noise, or was no longer finite after updates had moved
weights by more than themselves. Of runs that have learned nothing: those whose loss went to three times its start,
those in which a step replaced a typical layer, or moved it by more than a tenth and left most units of a layer dead
that were not, and those in which each step moves it by more than a tenth. And runs whose momentum adds up gradients
over a large part of the run, and whose loss has come back up by half of what it had lost. With the model at hand, the
step is taken again at a third, a tenth … of the rate on the same batch. Adam's two averages the wrong way round are
found by their numbers. Where no rule finds anything in a run that has hardly learned, copies are trained on the fixed
batch from anew, at the run's rate and at a tenth and a hundredth of it.

## Why it hurts
A step is right as long as the loss is nearly straight along it. Where it overshoots the valley, the next gradient is
larger, and points back: the loss oscillates or grows, ReLU units die, bounded functions saturate, numbers overflow.

## Evidence
The loss at the end against the start; the size of updates against the weights; the loss after one step of each size.

## Prescription
Take a momentum of 0.9 where it is far above. Divide the learning rate by three, and again, until the loss falls; warm
it up over the first steps; clip gradients.

## When to ignore
At the top of a cyclical schedule, where the loss is meant to rise for a while.

## References
LeCun, Bottou, Orr & Müller 1998, *Efficient BackProp*, section 5: above twice the inverse curvature the weights
diverge. Cohen et al. 2021, *Gradient descent on neural networks typically occurs at the edge of stability*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rehearsal import LEARNT, STEPS, STUCK, rehearsed
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding, Prescription, Removal

RISEN = Threshold(
    1.5,
    "chosen: at a stable rate the loss falls (LeCun et al. 1998, section 5), so half of the start on top of it is far "
    "from stable; that it is more than the noise between batches is asked for on its own",
    "ratio",
)
THROWN = Threshold(1.0, "definition: the update is as long as the weights that it moves, ‖ΔW‖ = ‖W‖", "ratio")
RESTLESS = Threshold(
    0.1,
    "chosen: ten steps of a tenth, all one way, are as long as the weights themselves (10 · 0.1 = 1); the bench of "
    "benchmarks/faults shows what it lets through",
    "ratio",
)
PEAK = Threshold(
    3.0,
    "chosen: three times the start in three batches on end is no noise between batches; asked of runs alone that end "
    "above their start",
    "ratio",
)
LEAPT = Threshold(2.0, "chosen: twice the start in three batches on end, right after a layer was replaced", "ratio")
REMEMBERED = Threshold(
    0.2,
    "chosen: five memories of the momentum in a run; a shorter run ends on gradients of its start",
    "memories a run",
)
LONG = Threshold(
    50.0, "the memory of momentum 0.98: above the 0.9 to 0.95 in use, and Sutskever et al. 2013 take 0.99 late", "steps"
)
BACK = Threshold(0.5, "chosen: half of all that was gained has been lost again", "share")
SPARED = Threshold(
    0.8, "chosen: a momentum longer than the whole run has done little harm where a fifth of the loss is left", "share"
)
HALF = Threshold(0.5, "chosen: what `dead_units` calls dead, half of a layer", "share")
CONVERGES = Threshold(1.0, "Kingma & Ba 2015, *Adam*, theorem 4.1: it is proved for β₁²/√β₂ < 1", "ratio")
SMALLER = 1 / 3
REHEARSED = Threshold(
    STUCK, "chosen: a fifth of the loss of one batch, where half is gone in a copy with one thing changed", "share"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding for the run."""
    found = (
        _exchanged(case)
        or _coasting(case)
        or _risen(case)
        or _thrown(case)
        or _replaced(case)
        or _restless(case)
        or _killed(case)
        or _peaked(case)
        or _catapulted(case)
    )
    if found is None:
        yield from again(case) if case.diverged else ()
        return
    words, threshold, value, track = found
    better = _better(case)
    since = _since(case, track, threshold)
    ratios = case.update_ratio
    worst = sorted(ratios.paths, key=lambda path: -np.nan_to_num(ratios.at(path).last))
    told, size, tried = "", None, []
    if better is not None:
        size, before, after, least = better
        told = (
            f" On the fixed batch one step takes the loss from {before:.3g} to {after:.3g}; one {size:g} times as long "
            f"lowers it to {least:.3g}."
        )
        tried = [Removal(f"a step {size:g} times as long", "loss of the fixed batch after one step", after, least)]
    yield RULE.finding(
        worst or [""],
        words + told,
        threshold.evidence(_quantity(threshold), value, track.steps),
        severity="warning" if threshold in (CONVERGES, THROWN) and case.learns and not case.diverged else None,
        since_step=since,
        prescriptions=list(_prescriptions(size, memory(case) or 0.0)),
        removals=tried,
    )


def again(case: Case) -> Iterator[Finding]:
    """Copies that begin anew: at the run's own rate they learn nothing, and do at a tenth or a hundredth of it."""
    own = rehearsed(case)
    if own is None or not own < STUCK:
        return
    gains = {rate: rehearsed(case, rate) or 0.0 for rate in (0.1, 0.01, 0.001)}
    best = max(gains, key=lambda rate: gains[rate])
    if not gains[best] > LEARNT:
        return
    left = min(1 - own, 1e6)
    yield RULE.finding(
        case.update_ratio.paths or [""],
        f"A copy that begins anew is left with {left:.3g} of the loss of the fixed batch after {STEPS} steps at the "
        f"run's rate, and with {1 - gains[best]:.2g} at {best:g} times the rate; the run has lost "
        f"{case.fallen or 0.0:.0%}.",
        REHEARSED.evidence("rehearsal", left, [int(case.steps[-1])]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                f"divide the learning rate by {1 / best:g}", "at that rate a copy learns one batch by heart"
            )
        ],
        removals=[Removal(f"{best:g} times the rate", "share of the loss that is left", left, 1 - gains[best])],
    )


def _quantity(threshold: Threshold) -> str:
    return (
        "loss" if threshold in (RISEN, PEAK) else "momentum" if threshold in (REMEMBERED, CONVERGES) else "update_ratio"
    )


def memory(case: Case) -> float | None:
    """The steps over which momentum adds up gradients, 1/(1 − β); None where the optimizer is not at hand."""
    optimizer = case.experiment.optimizer if case.experiment is not None else None
    if optimizer is None:
        return None
    betas = [group.get("momentum") or (group.get("betas") or (0.0,))[0] for group in optimizer.param_groups]
    return 1 / max(1 - max((float(one) for one in betas), default=0.0), 1e-9)


def _exchanged(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """Adam's averages the wrong way round: the one of gradients remembers longer than that of their squares."""
    optimizer = case.experiment.optimizer if case.experiment is not None else None
    told = [group["betas"] for group in optimizer.param_groups if group.get("betas")] if optimizer is not None else []
    worst = max((float(one) ** 2 / float(other) ** 0.5 for one, other in told if other), default=0.0)
    if not worst >= CONVERGES.value:
        return None
    first, second = max(((float(one), float(other)) for one, other in told), key=lambda pair: pair[0])
    words = (
        f"Adam's first average has β₁ = {first:g} and its second β₂ = {second:g}: β₁²/√β₂ is {worst:.3g}, and below 1 "
        "only are its steps known to settle."
    )
    return words, CONVERGES, worst, Track.of(case.steps, [worst] * len(case.steps))


def _coasting(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """A momentum that carries past every valley: most of what the loss had lost at its best is back."""
    steps, loss = memory(case), case.loss
    if steps is None or len(loss) < 12 or not steps > REMEMBERED.value * (int(case.steps[-1] - case.steps[0]) + 1):
        return None
    if not steps > LONG.value:
        return None
    start, smooth = float(loss.values[:3].max()), np.median(np.lib.stride_tricks.sliding_window_view(loss.values, 5), 1)
    best, end = float(smooth.min()), float(np.median(loss.values[-max(5, len(loss) // 10) :]))
    highest = float(smooth[int(smooth.argmin()) :].max())  # after its best
    back = (end if case.thrives else max(end, highest)) - best > BACK.value * (start - best)
    kept = steps > int(case.steps[-1] - case.steps[0]) + 1 and (case.fallen or 0.0) < SPARED.value
    if case.learns is not False and not back and not kept:
        return None
    words = (
        f"The optimizer's momentum adds up the gradients of {steps:.0f} steps, as long as a rate {steps:.0f} times as "
        f"high, and the loss went from {start:.3g} to {best:.3g} and back up to {max(end, highest):.3g}."
    )
    ratio = Track.of(loss.steps, loss.values / max(start, 1e-30))
    return words, REMEMBERED, steps / (int(case.steps[-1] - case.steps[0]) + 1), ratio


def _since(case: Case, track: Track, threshold: Threshold) -> int:
    """The first step beyond the threshold, or at which a typical layer was moved by much: the steps come first."""
    typical = case.update_ratio.typical()
    beyond = [*track.steps[track.values > threshold.value], *typical.steps[typical.values > RESTLESS.value]]
    return int(min(beyond, default=case.steps[0]))


def _peaked(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """A loss that went far above its start, and has not come back below it."""
    if len(case.loss) < 12 or case.learns is not False or case.diverged:
        return None
    values, start = case.loss.values, float(np.max(case.loss.values[:3]))
    smooth = np.median([values[: len(values) - 2], values[1:-1], values[2:]], axis=0)  # one bad batch is no rise
    if not (start > 0 and smooth.max() > PEAK.value * start):
        return None
    ratio = Track.of(case.loss.steps[1:-1], smooth / start)
    words = f"The loss went from {start:.3g} up to {smooth.max():.3g}, and has not come back below its start."
    return words, PEAK, float(ratio.values.max()), ratio


def _catapulted(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """A step that replaced a typical layer, and a loss that leapt behind it and has not quite come back."""
    typical = case.update_ratio.typical()
    if len(case.loss) < 12 or not case.learns or (case.fallen or 0.0) > SPARED.value or not len(typical):
        return None
    values, start = case.loss.values, float(np.max(case.loss.values[:1]))
    smooth = np.median([values[:-2], values[1:-1], values[2:]], axis=0)
    at = int(typical.values.argmax())
    if not (typical.values[at] > THROWN.value and start > 0 and smooth.max() > LEAPT.value * start):
        return None
    words = (
        f"At step {typical.steps[at]} a typical layer moved by {typical.values[at]:.2g} of itself, and the loss leapt "
        f"from {start:.3g} to {smooth.max():.3g}; it has come down to {case.loss.last:.3g}."
    )
    return words, THROWN, float(typical.values[at]), typical


def _killed(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """A large step that left most units of a layer dead, after which nothing was learned."""
    typical = case.update_ratio.typical()
    if case.learns is not False or not len(typical) or not typical.values.max() > RESTLESS.value:
        return None
    shares = {site: case.dead(site) for site in case.hidden_activations}
    died = [site for site, share in shares.items() if len(share) > 1 and share.values[0] < HALF.value < share.last]
    if not died:
        return None
    at = int(typical.values.argmax())
    words = (
        f"At step {typical.steps[at]} a typical layer moved by {typical.values[at]:.0%} of itself, "
        f"{shares[died[0]].last:.0%} of the units of `{died[0].place}` have died since the start, and the loss has not "
        "fallen."
    )
    return words, RESTLESS, float(typical.values[at]), typical


def _risen(case: Case) -> tuple[str, Threshold, float, Track] | None:
    loss = case.loss
    if len(loss) < 6:
        return None
    start, end = float(np.median(loss.values[:3])), float(np.median(loss.values[-max(3, len(loss) // 10) :]))
    noise = 1.4826 * float(np.median(np.abs(np.diff(loss.values[: max(6, len(loss) // 4)])))) / 2**0.5
    first = float(loss.values[0])
    start = max(start, first) if first > 0 else start
    if not (start > 0 and end > RISEN.value * start and end - start > 3 * noise):
        return None
    ratio = Track.of(loss.steps, loss.values / start)
    return f"The loss rose from {start:.3g} to {end:.3g}.", RISEN, end / start, ratio


def _thrown(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """The last update that was seen before the loss was no longer finite."""
    if not case.diverged:
        return None
    largest = _largest(case)
    if not len(largest) or not largest.values.max() > THROWN.value:
        return None
    at = int(largest.values.argmax())
    moved = largest.values[at]
    words = f"At step {largest.steps[at]} a layer moved by {moved:.2g} of itself, and the loss left all bounds."
    return words, THROWN, float(largest.values[at]), largest


def _replaced(case: Case) -> tuple[str, Threshold, float, Track] | None:
    """A step that replaced a typical layer, after which nothing was learned."""
    typical = case.update_ratio.typical()
    if case.learns is not False or not len(typical) or not typical.values.max() > THROWN.value:
        return None
    at = int(typical.values.argmax())
    moved = float(typical.values[at])
    words = f"At step {typical.steps[at]} a typical layer moved by {moved:.2g} of itself, and the loss has not fallen."
    return words, THROWN, moved, typical


def _largest(case: Case) -> Track:
    """The largest update of a layer that did not begin at zero, at each step."""
    values = case.update_ratio.values
    return Track.of(
        case.update_ratio.steps, [np.nanmax(column) if np.isfinite(column).any() else np.nan for column in values.T]
    )


def _restless(case: Case) -> tuple[str, Threshold, float, Track] | None:
    if case.learns is not False:
        return None
    typical = case.update_ratio.typical().late()
    if len(typical) < 3 or not float(np.median(typical.values)) > RESTLESS.value:
        return None
    value = float(np.median(typical.values))
    return (
        f"Each step moves a typical layer by {value:.0%} of itself, and the loss does not fall.",
        RESTLESS,
        value,
        typical,
    )


def _better(case: Case) -> tuple[float, float, float, float] | None:
    """The size at which a step lowers the loss most; the loss before, after a whole step (no lower), after that one."""
    losses = case.experiment.losses() if case.experiment is not None else {}
    if not losses:
        return None
    before, whole = losses[0.0], losses[1.0]
    size = min((one for one in losses if one), key=lambda one: np.nan_to_num(losses[one], nan=np.inf))
    return (size, before, whole, losses[size]) if size <= SMALLER and losses[size] < before <= whole else None


def _prescriptions(size: float | None, remembered: float) -> Iterator[Prescription]:
    if remembered > LONG.value:
        yield remedies.advice(
            "take `momentum=0.9` (Adam: `betas=(0.9, 0.999)`)",
            f"steps add up to {remembered:.0f} times the learning rate, and turn as late",
        )
    by = "10" if size is None else f"{1 / size:.0f}"
    yield remedies.advice(f"divide the learning rate by {by}", "the loss is straight enough only along a shorter step")
    yield remedies.advice("warm the rate up over the first hundreds of steps", "the start is where the loss bends most")
    yield remedies.advice("clip gradients with `nn.utils.clip_grad_norm_(parameters, 1.0)`")


def _stack(function: type[nn.Module] = nn.Tanh, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width), function()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (
    Scene(_stack, optimizer=sgd(3.0)),
    Scene(partial(_stack, nn.ReLU), optimizer=sgd(1e4), steps=24),
)
HEALTHY = (Scene(_stack), Scene(partial(_stack, nn.ReLU), optimizer=sgd(0.1)))

RULE = Rule(
    "NS210",
    "rate_too_high",
    "error",
    "record",
    check,
    __doc__,
    second=again,
    thresholds={
        "rehearsed": REHEARSED,
        "risen": RISEN,
        "peak": PEAK,
        "leapt": LEAPT,
        "thrown": THROWN,
        "restless": RESTLESS,
        "half": HALF,
        "remembered": REMEMBERED,
        "long": LONG,
        "back": BACK,
        "spared": SPARED,
        "converges": CONVERGES,
    },
    causes=(
        "unread_input",
        "unrelated_targets",
        *("nonfinite_values", "dead_units", "saturated_activation", "drifting_distribution", "vanishing_gradient"),
        *("exploding_gradient", "uneven_updates", "rank_collapse", "entropy_collapse", "amplified_drift"),
        *("unmoved_layer", "collapsed_channels", "growing_weights", "stale_running_stats"),
    ),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
