"""Most pre-activations lie where the function is flat, so hardly any gradient passes.

## What it finds
Hidden sigmoid, tanh and other bounded functions whose typical pre-activation lies beyond the point where the slope has
fallen to a twentieth of its steepest, and stays there. Each function has its own points (2.18 for tanh, 4.36 for
sigmoid). Functions that end the network are left out: the sigmoid of a classifier that is sure of itself saturates
because it should. Functions that are flat on one side alone (GELU, SiLU, ELU) use that side to switch units off;
they are the matter of the rule on dead units.

## Why it hurts
A gradient is multiplied by the slope at every layer it passes. Where most slopes are below a twentieth, the layers
before receive almost nothing, and the saturated unit itself cannot leave, because its own gradient is what is missing.

## Evidence
On the fixed batch at every probe, the share of a layer's pre-activations beyond the saturation points; without a probe
the same share on training batches.

## Prescription
When it is so from the start, the weights are too large for their fan-in: normalize what the function reads, or draw
the weights anew at the gain of the function. When it comes with training, the learning rate or the inputs drive it:
normalize, or take smaller steps.

## When to ignore
Gates that are meant to be open or shut (squeeze-and-excite, hand-written recurrent cells), and a network that has
already reached the loss it should.

## References
Glorot & Bengio 2010, *Understanding the difficulty of training deep feedforward neural networks*, section 3.
Ioffe & Szegedy 2015, *Batch Normalization*, section 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, one_hot

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.activations import activation_named
from normscope.terms.finding import Evidence, Finding, Prescription, Severity
from normscope.terms.site import Site

FLAT = Threshold(
    0.5,
    "the median pre-activation itself is saturated; a standard normal input, as a norm makes it, has 2.9% beyond "
    "the points of tanh and 0.001% beyond those of sigmoid; no sound run of benchmarks/faults, of 213, is flagged",
    "share",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every hidden activation that has gone flat."""
    flat: dict[Site, tuple[Track, int]] = {}
    for site in case.hidden_activations:
        share = case.saturation(site)
        since = share.since(above=FLAT.value)
        if since is not None and _bounded(site):
            flat[site] = share, since
    if not flat:
        return
    worst = sorted(flat, key=lambda site: -flat[site][0].last)
    value, since = flat[worst[0]][0].last, min(since for _, since in flat.values())
    start = since == flat[worst[0]][0].steps[0]
    yield RULE.finding(
        [site.path for site in worst],
        f"{value:.0%} of what `{worst[0].place}` ({_name(worst[0])}) reads lies where its slope is below a twentieth, "
        f"and more than half in {len(flat)} of {len(case.hidden_activations)} hidden activations, "
        + ("from the first step on: the start did it, not the training." if start else f"since step {since}."),
        Evidence(
            "saturated",
            value,
            FLAT.value,
            tuple(int(step) for step in flat[worst[0]][0].steps),
            FLAT.unit,
            FLAT.source,
            tuple((site.key, flat[site][0].last) for site in worst),
        ),
        severity=_severity(case),
        since_step=since,
        prescriptions=list(_prescriptions(case, worst, start)),
    )


def _bounded(site: Site) -> bool:
    function = activation_named(site.kind)
    return function is not None and function.saturates and None not in (function.low, function.high)


def _severity(case: Case) -> Severity:
    """Flat and not learning is an error; a network that saturated while it learned may have become sure of itself."""
    if case.learns is False:
        return "error"
    return "note" if case.thrives else "warning"


def _prescriptions(case: Case, flat: list[Site], start: bool) -> Iterator[Prescription]:
    yield from remedies.cures(case, sorted(flat, key=lambda site: site.depth), anew=start)
    if not start:
        yield remedies.advice("divide the learning rate by 3 to 10", "training drove the units there, step by step")


def _name(site: Site) -> str:
    function = activation_named(site.kind)
    return function.name if function else site.kind


def _tanh_stack(deviation: float, depth: int = 6, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=deviation)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


def _answering() -> nn.Module:
    """A network that is meant to saturate at its end, where it is sure."""
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8), nn.Sigmoid())


def _of_each_class(output: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy(output, one_hot(target, 8).float())


SICK = (
    Scene(partial(_tanh_stack, 2.0), ("1", "3", "5", "7", "9", "11")),
    Scene(partial(_tanh_stack, 2.0, 3), ("1", "3", "5"), optimizer=sgd(0.01)),
)
HEALTHY = (
    Scene(partial(_tanh_stack, 0.25)),
    Scene(_answering, loss=_of_each_class, optimizer=sgd(2.0)),
)

RULE = Rule(
    "NS202",
    "saturated_activation",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"flat": FLAT},
    causes=(
        "unread_input",
        "unrelated_targets",
        *("dead_units", "vanishing_gradient", "exploding_gradient", "rate_too_low", "rank_collapse"),
        *("uneven_updates", "amplified_drift"),
    ),
    travels="both",
    symptom="saturated",
    removal="scales",
    sick=SICK,
    healthy=HEALTHY,
)
