"""One batch normalization is used at several places of the pass, and mixes their statistics.

## What it finds
Norms with running statistics that run more than once in a forward pass, as inside a recurrence or where a module is
shared, when what they read at the calls differs by more than half a deviation. With the model at hand, only those whose
output reaches what they read later: side by side, two inputs in one norm are two domains.

## Why it hurts
In training each call is normalized by its own batch. At inference all calls share one running average, which is that of
none: the first time steps of a recurrence have other statistics than the later ones. And the average is updated several
times a step, so that it forgets as many times faster.

## Evidence
The distance between the inputs of the calls on the fixed batch, channel by channel, in deviations.

## Prescription
Use layer normalization in recurrences (`normscope.nn.LSTM(norm="layer")`), a batch normalization with statistics of
each time step (`normscope.nn.TemporalBatchNorm`), or a norm of its own for each place.

## When to ignore
When all calls read the same distribution.

## References
Cooijmans et al. 2017, *Recurrent Batch Normalization*, section 3. Laurent et al. 2016, *Batch normalized recurrent
neural networks*. Ba, Kiros & Hinton 2016, *Layer Normalization*, section 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case, moved
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import Track
from normscope.diagnose.wiring import feeds_itself
from normscope.terms.finding import Finding, Prescription
from normscope.terms.site import Site

APART = Threshold(
    0.5, "chosen: a centre that is off by half a deviation turns 50% of positive values into 31 or 69%", "deviations"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose calls differ."""
    calls: dict[str, list[Site]] = {}
    for norm in case.norms:
        if norm.spec and "N" in norm.spec.over and norm.spec.keeps_state:
            calls.setdefault(norm.path, []).append(norm)
    apart = {path: _apart(case, sites) for path, sites in calls.items() if len(sites) > 1}
    if case.experiment is not None:  # side by side it is another ailment
        apart = {path: track for path, track in apart.items() if feeds_itself(case.experiment, path) is not False}
    worst = sorted((path for path in apart if apart[path].last > APART.value), key=lambda path: -apart[path].last)
    if not worst:
        return
    track = apart[worst[0]]
    yield RULE.finding(
        worst,
        f"`{worst[0]}` runs {len(calls[worst[0]])} times in a pass, on inputs that lie {track.last:.2f} deviations "
        f"apart, and keeps one running average for all.",
        APART.evidence("distance", track.last, track.steps, [(path, apart[path].last) for path in worst]),
        since_step=track.since(above=APART.value) or int(track.steps[0]),
        prescriptions=[
            Prescription(
                "convert",
                tuple(worst),
                {"to": "LayerNorm"},
                words=remedies.replaced(
                    (site.kind for site in case.norms if site.path in worst),
                    worst,
                    "nn.LayerNorm(features)",
                    [case.channels(site) for site in case.norms if site.path in worst],
                ),
                reason="it keeps no statistics, so the places do not mix",
            ),
            remedies.advice("give each place a norm of its own, or use `normscope.nn.TemporalBatchNorm`"),
        ],
    )


def _apart(case: Case, sites: list[Site]) -> Track:
    """The largest distance between the input of the first call and that of another, at each probe."""
    first, *rest = (dict(case.summaries(site.at("input"), "probe")) for site in sites)
    steps = [step for step in first if all(step in one for one in rest)]
    return Track.of(steps, [max(moved(first[step], one[step]) for one in rest) for step in steps])


class _Recurrence(nn.Module):
    """Four steps of a recurrence with one batch normalization, or with layer normalization."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.read, self.cell, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)
        self.norm = norm(16)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 16)
        for part in x.view(len(x), 4, 8).unbind(1):
            state = state + self.norm(self.read(part) + self.cell(state)).relu()
        return self.head(state)


SICK = (Scene(lambda: _Recurrence(nn.BatchNorm1d), ("norm",), steps=24),)
HEALTHY = (Scene(lambda: _Recurrence(nn.LayerNorm), steps=24),)

RULE = Rule(
    "NS311",
    "recurrent_batch_norm",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"apart": APART},
    causes=("unrelated_targets", "stale_running_stats", "train_eval_gap", "mixed_domains", "noisy_batch_statistics"),
    sick=SICK,
    healthy=HEALTHY,
)
