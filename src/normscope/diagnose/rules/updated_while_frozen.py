"""A norm that is frozen still updates its running statistics.

## What it finds
Norms whose γ and β are frozen, behind layers that are frozen too, and whose running statistics have moved by more than
a tenth of a deviation: the part is meant to stay as it was, but runs in training mode.

## Why it hurts
The frozen features change all the same: evaluation mode uses other statistics than those the weights were trained with,
and small fine-tuning batches spoil averages that came from a whole data set. Saving the model saves the damage.

## Evidence
How far the running statistics have moved since the first probe, in deviations of the channel.

## Prescription
Call `normscope.freeze(model, where)` (which survives `model.train()`), or `norm.eval()` after each `model.train()`.

## When to ignore
When adapting the statistics to new data is the purpose.

## References
Kornblith, Shlens & Le 2019, *Do better ImageNet models transfer better?* (batch norm in fine-tuning).
PyTorch documentation, *BatchNorm2d* ("track_running_stats").
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding, Prescription
from normscope.terms.site import Site

MOVED = Threshold(0.1, "chosen: 1/√100, the error of a mean over 100 independent samples", "deviations")


def check(case: Case) -> Iterator[Finding]:
    """One finding with every frozen norm that still counts."""
    tracks = {norm: case.scalar(norm, "running_drift") for norm in case.norms if _frozen(case, norm)}
    moved = {norm: track for norm, track in tracks.items() if len(track) and track.last > MOVED.value}
    if not moved:
        return
    worst = sorted(moved, key=lambda norm: -moved[norm].last)
    track: Track = moved[worst[0]]
    sites = tuple(dict.fromkeys(norm.path for norm in worst))
    yield RULE.finding(
        sites,
        f"`{worst[0].place}` is frozen, but its running statistics have moved by {track.last:.2f} deviations since the "
        f"start, and so those of {len(moved)} of {len(tracks)} frozen norms.",
        MOVED.evidence("running_drift", track.last, track.steps, [(norm.key, moved[norm].last) for norm in worst]),
        since_step=track.since(above=MOVED.value) or int(track.steps[-1]),
        prescriptions=[
            Prescription(
                "freeze",
                sites,
                words="`normscope.freeze(model, where)`, or `norm.eval()` after each `model.train()`",
                reason="a frozen norm uses the statistics that its weights were trained with, and leaves them alone",
            )
        ],
    )


def _frozen(case: Case, norm: Site) -> bool:
    """Whether neither the norm nor the layer before it learns, while another layer does."""
    before = next((site for site in reversed(case.producers) if site.depth < norm.depth), None)
    able = bool(norm.spec and norm.spec.affine)
    frozen = able and not case.parameters(norm.path) and (before is None or not case.parameters(before.path))
    return frozen and any(case.parameters(site.path) for site in case.producers)


def _tuned(frozen: bool) -> nn.Module:
    body = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())
    body.requires_grad_(not frozen)
    return nn.Sequential(*body, nn.Linear(32, 8))


class _Asleep(nn.Module):
    """The frozen part stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = _tuned(True)[:3].eval(), nn.Linear(32, 8)  # type: ignore[index]

    def train(self, mode: bool = True):
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x):
        return self.head(self.body(x))


SICK = (Scene(lambda: _tuned(True), ("1",), steps=30),)
HEALTHY = (Scene(lambda: _tuned(False), steps=30), Scene(_Asleep, steps=30))

RULE = Rule(
    "NS314",
    "updated_while_frozen",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"moved": MOVED},
    causes=("train_eval_gap", "stale_running_stats"),
    symptom="eval_gap",
    removal="running",
    sick=SICK,
    healthy=HEALTHY,
)
