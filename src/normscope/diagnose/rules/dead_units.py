"""Units say the same whatever the input, so they carry nothing and learn nothing.

## What it finds
Activations of which at least half the units give one value for every sample and position of the whole fixed batch: for
ReLU the value is zero. It is counted unit by unit. A ReLU layer in which half of all outputs are zero is healthy, for
each of its units is then silent on some inputs and speaks on others. A rare unit that the batch happens not to wake is
no finding either: batches with fewer than 16 samples are not judged, half of a layer must be silent to the last, and
in layers of fewer than 16 units all of it.

## Why it hurts
A ReLU unit whose pre-activation is negative for every input has gradient zero for every input: its weights never move
again. A tanh or sigmoid unit far out on its flat end gives one value too, and its gradient is zero to rounding. The
layer is narrower than it was built, and when all its units are dead nothing passes, forward or backward.

## Evidence
The share of constant units of each activation on the fixed batch, at every probe.

## Prescription
When they are dead from the start, biases or weights are off: normalize what the activation reads, or draw the weights
anew. When they die in training, a step was too large: lower the learning rate, then start again; a normalization before
the activation brings each unit back to half of the inputs. Leaky ReLU and GELU keep a slope on the silent side.

## When to ignore
Sparse networks that are meant to leave most units silent, and probes that hold one class alone.

## References
Maas, Hannun & Ng 2013, *Rectifier nonlinearities improve neural network acoustic models*, section 2.
Lu, Shin, Su & Karniadakis 2019, *Dying ReLU and initialization*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.activations import activation_named
from normscope.terms.finding import Evidence, Finding, Prescription, Severity
from normscope.terms.site import Site

DEAD = Threshold(
    0.5,
    "chosen: the layer works at half its width; the fewer units are left, the sooner the whole layer dies (Lu et "
    "al. 2019); no sound run of benchmarks/faults, of 213, is flagged",
    "share",
)
BLOCKED = Threshold(
    0.95, "chosen: of twenty units one still varies, and the network behind sees hardly more than a constant", "share"
)
FEWEST = Threshold(16, "a unit that fires on one input in five is silent on 16 of them with chance 3%", "values")
UNITS = Threshold(
    16, "of 4 units that are each dead with chance 0.3, three are with chance 8%; of 16 units, nine with 3%", "units"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every hidden activation that is mostly dead."""
    dead: dict[Site, tuple[Track, int]] = {}
    for site in case.hidden_activations:
        share = case.dead(site)
        since = share.since(above=DEAD.value)
        if since is not None and _countable(case, site, share.last):
            dead[site] = share, since
    if not dead:
        return
    worst = sorted(dead, key=lambda site: -dead[site][0].last)
    track, value = dead[worst[0]][0], dead[worst[0]][0].last
    since = min(since for _, since in dead.values())
    start = since == track.steps[0]
    yield RULE.finding(
        [site.path for site in worst],
        f"{value:.0%} of the units of `{worst[0].place}` give the same for every sample of the fixed batch, and more "
        f"than half in {len(dead)} of {len(case.hidden_activations)} hidden activations, "
        + ("from the first step on." if start else f"since step {since}."),
        Evidence(
            "dead",
            value,
            DEAD.value,
            tuple(int(step) for step in track.steps),
            DEAD.unit,
            DEAD.source,
            tuple((site.key, dead[site][0].last) for site in worst),
        ),
        severity=_severity(case, value),
        since_step=since,
        prescriptions=list(_prescriptions(case, worst, start)),
    )


def _countable(case: Case, site: Site, share: float) -> bool:
    """Whether the probe holds enough inputs for the share to say something, and the layer enough units (or none)."""
    enough = case.channels(site) >= UNITS.value or share > BLOCKED.value
    return enough and case.values_per_channel(site) >= FEWEST.value


def _severity(case: Case, share: float) -> Severity:
    """A network that learns well on what is left of its width has lost little."""
    if share > BLOCKED.value and not case.thrives:
        return "error"
    return "note" if case.thrives else "warning"


def _prescriptions(case: Case, dead: list[Site], start: bool) -> Iterator[Prescription]:
    yield from remedies.cures(case, sorted(dead, key=lambda site: site.depth))
    if not start:
        yield remedies.advice("divide the learning rate by 10 before starting again", "a step too large killed them")
    if any(function.silent_below is not None for site in dead if (function := activation_named(site.kind))):
        yield remedies.advice("use `nn.LeakyReLU()` or `nn.GELU()`", "they keep a slope where ReLU has none")


def _relu_stack(bias: float = 0.0, depth: int = 3, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.constant_(linear.bias, bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (
    Scene(partial(_relu_stack, -4.0), ("1", "3", "5")),
    Scene(_relu_stack, ("3", "5"), optimizer=sgd(4.0)),
)
HEALTHY = (
    Scene(_relu_stack),
    Scene(partial(_relu_stack, 0.0, 6), optimizer=sgd(0.02)),
)

RULE = Rule(
    "NS203",
    "dead_units",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"dead": DEAD, "blocked": BLOCKED, "fewest": FEWEST, "units": UNITS},
    causes=(
        "unread_input",
        *("vanishing_gradient", "rate_too_low", "rank_collapse", "uneven_updates", "unmoved_layer"),
        *("growing_weights",),
    ),
    travels="both",
    symptom="dead",
    removal="scales",
    lasting=True,  # a dead unit has no gradient by which it could come back
    sick=SICK,
    healthy=HEALTHY,
)
