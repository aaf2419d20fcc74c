"""The scale of the weights does not match the activation behind them.

## What it finds
Runs of layers with rectifying activations (ReLU and its kin), with no normalization and no shortcut between, whose
weights shrink or blow up the signal from layer to layer until next to nothing, or next to everything, is left. And
saturating activations whose weights are so large that most units start beyond the saturation point.

## Why it hurts
A layer keeps the size of the signal and of the gradient when its weights have deviation gain/√(fan in), √2 for ReLU.
Torch's own default is 1/√3: the signal falls to 0.41 of itself in each layer. In a few layers training makes up for
it; in many the first layers get no gradient, or the output overflows.

## Evidence
The product over the run of the gain that the weights have over the gain that the activation needs; for a saturating
activation, that ratio in its worst layer.

## Prescription
Draw the weights anew at the activation's gain: `nn.init.kaiming_normal_` before ReLU, `nn.init.xavier_normal_` with
gain 5/3 before tanh, or `normscope.nn.init`.

## When to ignore
When the model is trained already, or a normalization is to be put in.

## References
He et al. 2015, *Delving Deep into Rectifiers*, section 2.2: 22 layers that lose 1/√2 each still converge (5e-4 in all),
30 stall (3e-5). Glorot & Bengio 2010, section 4.2, for tanh.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.anatomy.observe import Call
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.gains import pairs, stacks
from normscope.diagnose.remedies import few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription

FADED = Threshold(
    2**-13,
    "He et al. 2015, section 2.2: chosen in the middle of 2^-11, which converges, and 2^-15, which stalls",
    "of 1",
)
GROWN = Threshold(2**13, "He et al. 2015, section 2.2, the same factor upwards", "of 1")
SATURATED = Threshold(
    3.0,
    "chosen: at three times the gain of tanh its inputs have deviation 5: 2 of 3 lie beyond its saturation at 2.18",
    "of 1",
)

_RECTIFYING = frozenset(["relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "gelu", "silu", "mish"])
_SATURATING = frozenset(["tanh", "hardtanh"])


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding for the run that is worst off, one for layers that start saturated."""
    flow = blueprint.flow
    if flow is None or blueprint.trained:
        return
    runs = [stack for stack in stacks(flow, _matched) if not FADED.value < stack.factor < GROWN.value]
    if runs:
        (factor, paths), faded = runs[0], runs[0].factor <= FADED.value
        yield _finding(
            paths,
            f"The weights of {len(paths)} layers in a row {'shrink' if faded else 'blow up'} the signal to "
            f"{factor:.2g} of what it was.",
            factor,
            FADED if faded else GROWN,
        )
    wide = {
        layer.path: gain / row.gain
        for layer, gain, call in pairs(flow)
        if (row := call.activation) is not None and row.name in _SATURATING and gain / row.gain >= SATURATED.value
    }
    if wide:
        yield _finding(
            tuple(wide),
            f"The weights of {len(wide)} layers are up to {max(wide.values()):.3g} times as large as their saturating "
            "activation takes.",
            max(wide.values()),
            SATURATED,
        )


def _finding(sites: tuple[str, ...], message: str, value: float, limit: Threshold) -> Finding:
    return RULE.finding(
        sites,
        message,
        Evidence("relative_gain", value, limit.value, unit=limit.unit, source=limit.source),
        prescriptions=[
            Prescription(
                "reinitialize",
                sites,
                words=f"draw the weights of {few(sites)} anew at the gain of their activation",
                reason="at this scale a layer hands on as much variance as it gets, forward and backward",
            )
        ],
    )


def _matched(gain: float, activation: Call) -> float | None:
    row = activation.activation
    return gain / row.gain if row is not None and row.name in _RECTIFYING else None


def _stack(function: type[nn.Module], depth: int, scale: float = 1.0, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(32, 32)
        nn.init.normal_(linear.weight, std=scale / 32**0.5)
        layers += [linear, *([nn.BatchNorm1d(32)] if norm else []), function()]
    return nn.Sequential(*layers, nn.Linear(32, 2))


SICK = (
    Specimen(lambda: _stack(nn.ReLU, 20, 0.5), ("0", "38")),
    Specimen(lambda: _stack(nn.ReLU, 12, 5.0), ("0", "22")),
    Specimen(lambda: _stack(nn.Tanh, 4, 10.0), ("0", "6")),
)
HEALTHY = (
    Specimen(lambda: _stack(nn.ReLU, 20, 2**0.5)),
    Specimen(lambda: _stack(nn.ReLU, 6, 0.58)),
    Specimen(lambda: _stack(nn.ReLU, 20, 0.5, norm=True)),
    Specimen(lambda: _stack(nn.Tanh, 8, 5 / 3)),
)

RULE = Rule(
    "NS118",
    "unmatched_gain",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"faded": FADED, "grown": GROWN, "saturated": SATURATED},
    causes=("poor_initialization", "saturated_activation", "vanishing_gradient"),
    sick=SICK,
    healthy=HEALTHY,
)
