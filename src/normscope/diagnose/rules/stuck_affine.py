"""The scale γ and offset β of a norm never move, while the layers around it learn.

## What it finds
Norms that have a scale or an offset, none of which changed at any sampled step although other parameters did: they are
not in the optimizer, get no gradient, or are frozen while their layer's weights learn.

## Why it hurts
A norm without its γ and β holds every channel at deviation one and mean zero, so sigmoid and tanh stay near their
linear part and ReLU at half; the network cannot undo the norm where it should. In fine-tuning a frozen γ with weights
that move is a mixture that neither trains nor preserves.

## Evidence
The updates of every parameter at the sampled steps.

## Prescription
Build the optimizer from `model.parameters()` after the model is complete (or `normscope.parameter_groups`); unfreeze.

## When to ignore
When γ and β are fixed on purpose, or the layer behind is linear and can take their part.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, section 3: the pair γ, β must be able to "represent the identity
transform".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.terms.finding import Finding
from normscope.terms.site import Site

STILL = Threshold(0.0, "definition: an update of exactly zero at every sampled step", "updates")


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose γ and β stand still."""
    learned = any(_moves(case, site) for site in case.producers)
    able = [norm for norm in case.norms if norm.spec and norm.spec.affine and not norm.call]
    stuck = [norm for norm in able if not _moves(case, norm)]
    if not learned or not stuck:
        return
    steps = case.steps
    frozen = all(not case.parameters(norm.path) for norm in stuck)
    yield RULE.finding(
        [norm.path for norm in stuck],
        f"γ and β of `{stuck[0].place}` {'are frozen' if frozen else 'never changed'}, and so those of {len(stuck)} of "
        f"{len(able)} norms, while layers around them learn.",
        STILL.evidence("update", 0.0, steps, [(norm.key, 0.0) for norm in stuck]),
        severity="note" if frozen or case.thrives else "warning",
        since_step=int(steps[0]),
        prescriptions=[
            remedies.advice("build the optimizer from `model.parameters()`, once the model is complete"),
            remedies.advice("or leave γ and β out: `affine=False`", "what does not learn need not be there"),
        ],
    )


def _moves(case: Case, site: Site) -> bool:
    return any(len(track) and track.values.max() > 0 for track in map(case.moves, case.parameters(site.path)))


def _network(learns: bool) -> nn.Module:
    norm = nn.BatchNorm1d(32)
    norm.requires_grad_(learns)
    return nn.Sequential(nn.Linear(32, 32), norm, nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(lambda: _network(False), ("1",), steps=12),)
HEALTHY = (Scene(lambda: _network(True), steps=12),)

RULE = Rule(
    "NS310",
    "stuck_affine",
    "note",
    "record",
    check,
    __doc__,
    thresholds={"still": STILL},
    sick=SICK,
    healthy=HEALTHY,
)
