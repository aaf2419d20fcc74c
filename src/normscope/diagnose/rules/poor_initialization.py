"""The weights start at another scale than their layer needs, or the signal dies or explodes on its way.

## What it finds
Weights that were drawn at another scale than any theory gives their layer, with no norm right behind it that would make
up for it: four times as large, a tenth as large (the last layer apart, which may start at nothing), or of one sign, so
that what all inputs have in common drowns the rest; recurrent ones half as large again as orthogonal ones; biases that
hold a gate of a recurrent layer open or shut; norms that begin at ten times a scale of one. A network that got away
from it (most of the loss is gone, and went early) has a note. And starts from which a network hardly gets away by
itself. The signal dies: behind some layer, and in every layer after it to the output, all samples give nearly the same,
differing by less than a four-hundredth of their size. Or it explodes: the last layers' activations are more than four
hundred times as large as the first ones'. It must be so at the first probe and stay so for a quarter of the run; many
networks start with little variation at the output and have it grown after a few steps. Where no rule finds anything in
a run that has learned nothing, a copy is trained on the fixed batch from weights as its modules draw them, and another
from where the run has ended.

## Why it hurts
A network whose output is the same for all samples can only learn the mean of the targets, and its gradients carry no
information about the input. One whose activations explode starts with a huge loss and huge gradients.

## Evidence
What a layer multiplies the deviation of a centred signal by, the root mean square of its weights times √(inputs of a
unit), or backward √(units that an input reaches): 1/√3 for torch's own, √2 by He. And what it multiplies the common
part of its inputs by, over that. On the fixed batch, the deviation of each layer's output between samples over its
root mean square: the root of one minus the correlation of two samples. And the root mean square of each layer's output
relative to the first's.

## Prescription
Draw the weights at the gain of the activation (He for rectifiers, Xavier for tanh), or normalize over the batch before
each activation. Under sigmoids only the former helps: the constant 1/2 that each of them adds is common to all
samples.

## When to ignore
When the samples of the fixed batch are nearly alike, as when the probe holds one sample many times.

## References
Glorot & Bengio 2010, section 4.2; He et al. 2015, *Delving deep into rectifiers*, section 2.2.
Poole et al. 2016, *Exponential expressivity in deep neural networks through transient chaos*.
Schoenholz et al. 2017, *Deep Information Propagation*. Pascanu, Mikolov & Bengio 2013, *On the difficulty of training
recurrent neural networks*, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.layers import collapsed
from normscope.diagnose.rehearsal import LEARNT, STEPS, STUCK, rehearsed
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scales import Drawn, drawn
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.symptoms import variation
from normscope.terms.activations import activation_named
from normscope.terms.finding import Evidence, Finding, Prescription, Removal, Severity
from normscope.terms.site import Site

ALIKE = Threshold(
    float(np.exp(-6)),
    "six e-folds: networks train up to a depth of about six of the scales over which samples become alike (the "
    "experiments of Schoenholz et al. 2017); no sound run of benchmarks/faults, of 213, is flagged",
    "share",
)
COVERED = Threshold(
    0.1,
    "chosen: e^-2.3, asked of stacks of sigmoids that have spent half of the run on their plateau: each adds a "
    "constant of 1/2 and lets a quarter of the signal through (Glorot & Bengio 2010, section 3.1)",
    "share",
)
LAYERS = 4
"""Glorot & Bengio 2010, section 3.1: four layers of sigmoids learn late, and five never."""
HALF = Threshold(0.5, "chosen: half of the run, for stacks of sigmoids that learn late", "share")
EXPLODED = Threshold(float(np.exp(6)), "the same six e-folds, upwards", "ratio")
SHUT = Threshold(1.0, "definition: all units are dead", "share")
FAINT = Threshold(0.01, "chosen: two layers that hand on a hundredth each leave nothing of six e-folds", "ratio")
WIDE = Threshold(
    0.1, "chosen: e^-2.3, within two of the six e-folds; what the first layer makes of it is the layer's own", "share"
)
LARGE = Threshold(
    4.0,
    "chosen: torch.nn.init.calculate_gain gives 5/3 at most, and the largest gain that the rules of He and Glorot give "
    "by the other fan is 2.4; the sound runs that were looked at lay below 3",
    "gain",
)
CHAOTIC = Threshold(
    1.5,
    "Sompolinsky, Crisanti & Sommers 1988, *Chaos in random neural networks*: above a gain of 1 a tanh network that "
    "feeds itself is chaotic; half as much again, for orthogonal weights have 1, and He's rule 1.41",
    "gain",
)
GATE = Threshold(
    6.0,
    "derived: the slope of a sigmoid at 6 is e^-6 of one, the six e-folds in which a signal is gone",
    "bias",
)
GATES = Threshold(0.2, "derived: of three or four gates one is a third or a quarter", "share")
SCALE = Threshold(
    10.0, "chosen: ten times the scale of 1 that norms begin with (Ioffe & Szegedy 2015), or less", "scale"
)
WIDE_ROWS = Threshold(
    10.0, "chosen: ten times the deviation with which torch draws the rows of an embedding", "deviation"
)
SMALL = Threshold(
    0.1,
    "chosen: a sixth of torch's own 1/√3, the smallest in use; 0.02 over 32 inputs, as transformers are drawn, is 0.11",
    "gain",
)
COMMON = Threshold(
    4.0,
    "derived: centred weights give |mean| √(units) / deviation of about 1/√(inputs); at 4 a layer hands on four times "
    "as much of what all inputs have in common as of their differences",
    "ratio",
)
OVERCOME = Threshold(
    0.8, "chosen: of a start that a network got away from, less than a fifth of the loss is left", "share"
)
LATE = Threshold(0.2, "chosen: a fifth of the run spent before a tenth of the loss was gone", "share")
LOUD = Threshold(2.0, "chosen: a start at twice the loss of knowing nothing has to be unlearned first", "ratio")
SHOUTING = Threshold(10.0, "chosen: five times LOUD, from which the outputs have to shrink to a tenth first", "ratio")
GATED = ("LSTM", "GRU")
LASTING = 4
"""The signal must be gone for a quarter of the run; chosen, because many such starts recover in a few steps."""
REHEARSED = Threshold(
    STUCK, "chosen: a fifth of the loss of one batch, where half is gone in a copy with one thing changed", "share"
)


def check(case: Case) -> Iterator[Finding]:
    """At most one finding of weights off scale; without one, of each kind: a dying signal, an exploding one."""
    scale = _off_scale(case) or _shut_gates(case) or _loud_norms(case)
    if scale is not None:
        yield scale
    if scale is None or scale.severity == "note":
        yield from _loud(case)
        yield from _dying(case)
        yield from _exploding(case)


def again(case: Case) -> Iterator[Finding]:
    """A copy with weights as its modules draw them learns, and one that goes on from the run's end does not."""
    fresh, own = rehearsed(case), rehearsed(case, anew=False)
    if case.learns is not False or fresh is None or own is None or not (fresh > LEARNT and own < STUCK):
        return
    sites = tuple(dict.fromkeys(site.path for site in case.producers))
    yield RULE.finding(
        sites,
        f"With weights as its modules draw them the network loses {fresh:.0%} of the loss of the fixed batch in "
        f"{STEPS} steps of this optimizer; from the end of the run {own:.0%}, and the run has learned nothing.",
        REHEARSED.evidence("rehearsal", own, [int(case.steps[-1])]),
        since_step=int(case.steps[0]),
        prescriptions=[_again(sites)],
        removals=[Removal("weights as modules draw them", "share of the loss that is left", 1 - own, 1 - fresh)],
    )


def _off_scale(case: Case) -> Finding | None:
    """The weights that were drawn at another scale: too large ones, else those of one sign, else too small ones."""
    layers = list(drawn(case))
    last = case.producers[-1].path if case.producers else ""
    bare = [one for one in layers if not one.normed]
    large = [one for one in bare if one.low > (WIDE_ROWS if one.table else CHAOTIC if one.recurrent else LARGE).value]
    common = [one for one in layers if one.common > COMMON.value and not one.table and one.site.path != last]
    small = [one for one in bare if one.high < SMALL.value and not one.table and one.site.path != last]
    if large:
        limit = LARGE if any(one.low > LARGE.value for one in large) else CHAOTIC
        return _drawn_off(case, large, limit, [one.low for one in large], "multiply the deviation of what they read by")
    if common:
        words = "are of one sign, and multiply what their inputs have in common, over what they do to the rest, by"
        return _drawn_off(case, common, COMMON, [one.common for one in common], words)
    if small:
        small = [one for one in bare if one.low < SMALL.value and not one.table]  # forward or backward, the last too
        return _drawn_off(case, small, SMALL, [one.low for one in small], "multiply the deviation of what they read by")
    return None


def _shut_gates(case: Case) -> Finding | None:
    """Gates of a recurrent layer whose biases keep them open or shut, whatever they read."""
    for site in case.producers:
        for bias in case.parameters(site.path) if site.kind.startswith(GATED) else ():
            told = case.summaries(bias, "live")[:1] if "bias" in bias.name else []
            share = told[0][1].sketch.outside(-GATE.value, GATE.value) if told else 0.0
            if share >= GATES.value:
                return RULE.finding(
                    [site.path],
                    f"At the start {share:.0%} of `{bias.name}` of `{site.place}` lie beyond {GATE.value:g}, where a "
                    "sigmoid has no slope left: a gate that neither the input nor training moves.",
                    GATES.evidence("gate", share, [int(case.steps[0])], [(site.key, share)]),
                    severity="error" if case.learns is False else "warning",
                    since_step=int(case.steps[0]),
                    prescriptions=[_again((site.path,))],
                )
    return None


def _loud_norms(case: Case) -> Finding | None:
    """Norms that begin at many times the scale of one, or most of them at a small part of it."""
    scales = {
        norm: told[0][1].rms
        for norm in case.norms
        for one in case.parameters(norm.path)
        if one.name == "weight" and (told := case.summaries(one, "live")[:1])
    }
    worst = sorted((norm for norm in scales if scales[norm] > SCALE.value), key=lambda norm: -scales[norm])
    faint = [norm for norm in scales if 0 < scales[norm] < 1 / SCALE.value]  # at 0 they are shut on purpose
    worst = worst or (faint if len(faint) > len(scales) / 2 else [])
    if not worst or ((case.fallen or 0.0) > OVERCOME.value and case.plateau <= LATE.value):
        return None
    sites = tuple(dict.fromkeys(norm.path for norm in worst))
    return RULE.finding(
        sites,
        f"At the start the scale of `{worst[0].place}` is {scales[worst[0]]:.3g}, where norms begin at 1; so it is in "
        f"{len(worst)} of {len(case.norms)} norms.",
        SCALE.evidence("scale", scales[worst[0]], [int(case.steps[0])], [(one.key, scales[one]) for one in worst]),
        severity="warning" if case.thrives else "error",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                f"start the scale of {remedies.few(sites)} at one: `nn.init.ones_(norm.weight)`",
                "what is behind the norm is made for a signal of deviation one",
            )
        ],
    )


def _loud(case: Case) -> Iterator[Finding]:
    """Outputs that are sure of themselves before anything was learned: a loss far above that of knowing nothing."""
    chance = case.chance if case.experiment is not None else None
    start = float(case.loss.values[0]) if len(case.loss) else 0.0
    early = (case.fallen or 0.0) > OVERCOME.value and case.plateau <= LATE.value
    if case.experiment is None or chance is None or early:
        return
    chance = max(chance, case.experiment.loss_of_nothing() or 0.0)  # targets far from zero are no outputs far from it
    if not start > SHOUTING.value * chance or _modest(case):
        return
    last = case.producers[-1].path
    yield RULE.finding(
        [last],
        f"The loss starts at {start:.3g}, {start / chance:.3g} times that of outputs that are all zero ({chance:.3g}): "
        f"the outputs of `{last}` are far too large before anything was learned.",
        SHOUTING.evidence("start", start / chance, [int(case.steps[0])], [(last, start / chance)]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[_again((last,)), remedies.advice("divide the outputs, or take the factor before the loss away")],
    )


def _modest(case: Case) -> bool:
    """Whether numbers are asked for, and the outputs were no larger than a layer makes them: the targets are small."""
    if case.experiment is None or case.experiment.error_of_the_mean() is None:
        return False
    given, read = (case.summaries(one, "probe")[:1] for one in (Site(""), case.producers[-1].at("input")))
    return bool(given and read) and given[0][1].rms < LARGE.value * read[0][1].rms


def _drawn_off(case: Case, off: Sequence[Drawn], limit: Threshold, values: list[float], words: str) -> Finding:
    worst = min(values) if limit is SMALL else max(values)
    at = off[values.index(worst)]
    sites = tuple(dict.fromkeys(one.site.path for one in off))
    step = int(case.steps[0])
    return RULE.finding(
        sites,
        f"At the start the weights of {remedies.few(sites)} {words} {worst:.3g} (`{at.name}` of `{at.site.place}`), "
        f"where {'at least' if limit is SMALL else 'at most'} {limit.value:g} is right.",
        limit.evidence("gain", worst, [step], [(one.site.key, value) for one, value in zip(off, values)]),
        severity="error" if case.learns is False else "note" if _overcome(case, off, limit) else "warning",
        since_step=step,
        prescriptions=list(_anew(case, off)),
    )


def _again(sites: tuple[str, ...]) -> Prescription:
    return Prescription(
        "reinitialize",
        sites,
        words=f"draw the weights of {remedies.few(sites)} at the gain of their activation, with biases of zero: "
        "`nn.init.kaiming_normal_(weight, nonlinearity='relu')` before ReLU, `nn.init.xavier_normal_(weight)` "
        "otherwise, recurrent ones with `nn.init.orthogonal_`",
        reason="at this scale a layer hands on as much variance as it gets, forward and backward",
    )


def _overcome(case: Case, off: Sequence[Drawn], limit: Threshold) -> bool:
    """Whether the network got away from such a start, early."""
    spared = (case.fallen or 0.0) > OVERCOME.value and case.plateau <= LATE.value
    if limit is SMALL:
        return spared or (case.thrives and case.plateau <= LATE.value / 2)
    if limit is not LARGE:
        return spared
    start = float(np.median(case.loss.values[:3])) if len(case.loss) else 0.0
    loud = case.chance is not None and start > LOUD.value * case.chance
    return spared and not loud and not any(one.recurrent for one in off)


def _anew(case: Case, off: Sequence[Drawn]) -> Iterator[Prescription]:
    sites = tuple(dict.fromkeys(one.site.path for one in off if not one.table))
    if sites:
        yield _again(sites)
    if len(sites) < len({one.site.path for one in off}):
        yield remedies.advice("draw the rows of the embedding with deviation 1 or less: `nn.init.normal_(weight)`")
    norm = remedies.normalize(case, case.hidden_activations)
    if norm is not None:
        yield norm


def _dying(case: Case) -> Iterator[Finding]:
    along = case.variation
    least = along.behind()
    limit = COVERED if _covered(case) else ALIKE
    stretch = least.starts(below=limit.value)
    if stretch < max(2, len(least) / LASTING):
        return
    column = along.values[:, 0]
    start = collapsed(column, limit.value)
    layers = along.paths[start:]
    if not layers or (not start and not _told_apart(case)):
        return
    shut = _shut_before(case, layers[0])
    if start and (shut is not None or _hands_on_nothing(case, along.paths[start - 1])):  # where it begins
        layers = along.paths[start - 1 :]
    yield _finding(
        case,
        layers,
        f"From `{layers[0]}` to the output all samples give nearly the same: they differ by {least.values[0]:.2g} of "
        f"their size at the first step, and by {least.last:.2g} at the last."
        + (f" All units of `{shut.place}` are dead from the start." if shut is not None else ""),
        Evidence(
            "variation",
            least.last,
            limit.value,
            tuple(int(step) for step in least.steps),
            limit.unit,
            limit.source,
            tuple((path, float(along.at(path).last)) for path in layers),
        ),
    )


def _covered(case: Case) -> bool:
    """Whether functions that are never below zero, layer upon layer, cover the signal with what they add to it."""
    functions = [activation_named(site.kind) for site in case.hidden_activations]
    positive = [one is not None and one.name in remedies.POSITIVE for one in functions]
    return len(positive) >= LAYERS and all(positive) and not case.thrives and case.plateau > HALF.value


def _told_apart(case: Case) -> bool:
    """Whether the samples differ before the first layer makes them alike."""
    told = case.summaries(case.producers[0].at("input"), "probe")[:1]
    return any(one.channels is not None and variation(one.channels) > WIDE.value for _, one in told)


def _hands_on_nothing(case: Case, path: str) -> bool:
    """Whether the output of a layer is next to nothing beside what it reads, as behind gates that are shut."""
    site = next(site for site in case.producers if site.path == path)
    given, read = (case.summaries(one, "probe")[:1] for one in (site, site.at("input")))
    return bool(given and read) and given[0][1].rms < FAINT.value * read[0][1].rms


def _shut_before(case: Case, path: str) -> Site | None:
    """The activation next before a layer whose units are all dead at the first probe."""
    depth = case.depth_of(path) or 0
    near = [site for site in case.hidden_activations if site.depth < depth][-1:]
    return next((site for site in near if len(dead := case.dead(site)) and dead.values[0] >= SHUT.value), None)


def _exploding(case: Case) -> Iterator[Finding]:
    magnitude = case.magnitude
    flood = magnitude.flood()  # first over last
    if not len(flood) or not 0 < flood.values[0] < 1 / EXPLODED.value or not magnitude.values[0, 0] > 0:
        return
    growth = magnitude.values[:, 0] / magnitude.values[0, 0]
    layers = tuple(path for path, ratio in zip(magnitude.paths, growth) if ratio > EXPLODED.value)
    yield _finding(
        case,
        layers or magnitude.paths[-1:],
        f"Activations grow {1 / flood.values[0]:.0f}-fold from the first layers to the last at the first step.",
        Evidence(
            "magnitude",
            float(1 / flood.values[0]),
            EXPLODED.value,
            tuple(int(step) for step in flood.steps),
            EXPLODED.unit,
            EXPLODED.source,
            tuple((path, float(ratio)) for path, ratio in zip(magnitude.paths, growth) if path in layers),
        ),
    )


def _finding(case: Case, layers: tuple[str, ...], message: str, evidence: Evidence) -> Finding:
    severity: Severity = "warning" if case.learns else "error"
    return RULE.finding(
        layers,
        message,
        evidence,
        severity=severity,
        since_step=evidence.steps[0],
        prescriptions=list(remedies.cures(case, case.hidden_activations)) or [_again(layers)],
    )


def _stack(function: type[nn.Module], depth: int, scale: float = 1.0, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=scale * width**-0.5)
        layers += [linear, function()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


def _at(layer: int, factor: float, offset: float = 0.0) -> nn.Module:
    model = _stack(nn.ReLU, 3, 2**0.5)
    with torch.no_grad():
        model[layer].weight.mul_(factor).add_(offset)  # pyright: ignore
    return model


SICK = (
    Scene(partial(_stack, nn.Tanh, 16, 0.4), ("32",)),
    Scene(partial(_stack, nn.ReLU, 16, 0.5), ("32",)),
    Scene(partial(_stack, nn.ReLU, 18, 3.0), optimizer=sgd(1e-9), steps=12),
    Scene(partial(_at, 2, 40.0), ("2",), optimizer=sgd(1e-3), steps=12),
    Scene(partial(_at, 2, 1e-3), ("2",), steps=12),
    Scene(partial(_at, 2, 0.1, 0.3), ("2",), steps=12),
)
HEALTHY = (
    Scene(partial(_stack, nn.ReLU, 8, 2**0.5), optimizer=sgd(0.02)),
    Scene(partial(_stack, nn.Tanh, 16, 1.2), optimizer=sgd(0.02)),
    Scene(lambda: nn.Sequential(nn.Linear(32, 32), nn.Sigmoid(), nn.Linear(32, 8)), optimizer=sgd(0.3)),
)

RULE = Rule(
    "NS206",
    "poor_initialization",
    "error",
    "record",
    check,
    __doc__,
    second=again,
    thresholds={
        "rehearsed": REHEARSED,
        "large": LARGE,
        "chaotic": CHAOTIC,
        "gate": GATE,
        "gates": GATES,
        "scale": SCALE,
        "wide_rows": WIDE_ROWS,
        "small": SMALL,
        "common": COMMON,
        "overcome": OVERCOME,
        "late": LATE,
        "loud": LOUD,
        "shouting": SHOUTING,
        "alike": ALIKE,
        "covered": COVERED,
        "half": HALF,
        "exploded": EXPLODED,
        "shut": SHUT,
        "faint": FAINT,
        "wide": WIDE,
    },
    causes=(
        *("vanishing_gradient", "exploding_gradient", "dead_units", "saturated_activation", "nonfinite_values"),
        *("rate_too_high", "rate_too_low", "rank_collapse", "uneven_updates", "drifting_distribution"),
        *("amplified_drift", "unmoved_layer", "entropy_collapse", "unrelated_targets", "unread_input"),
    ),
    roots=("gain", "gate", "scale"),
    symptom="unlike",
    shown_by=("variation", "magnitude"),
    removal="initialization",
    sick=SICK,
    healthy=HEALTHY,
)
