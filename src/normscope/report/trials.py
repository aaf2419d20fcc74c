"""The trials of a run: both arms, the effect with its interval, the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from normscope.report.findings import typed
from normscope.report.numbers import count, number, percent
from normscope.report.parts import (
    Axis,
    Chart,
    Curve,
    Curves,
    Interval,
    Intervals,
    Paragraph,
    Part,
    Row,
    Rule,
    Section,
    Values,
)
from normscope.report.quantities import spans_decades
from normscope.report.snapshot import Snapshot
from normscope.report.thin import STEPS, finite, thin
from normscope.report.words import Words
from normscope.terms.verdict import Arm, Effect, Trial

LOG_RATIO = "log ratio of final loss"  # the unit in which `normscope.trial` states an effect of positive losses


def sections(run: Snapshot, words: Words) -> list[Section]:
    """A section for each trial; none where there was none."""
    trials = () if run.record is None else run.record.trials
    return [
        Section(
            f"trial-{place}" if place > 1 else "trial",
            words("trial.numbered", n=place) if len(trials) > 1 else words("trial"),
            _parts(trial, words),
        )
        for place, trial in enumerate(trials, 1)
    ]


def _parts(trial: Trial, words: Words) -> tuple[Part, ...]:
    verdict = words(f"verdict.{trial.verdict.name.lower()}")
    runs = words.counted("trial.seeds", len(trial.seeds), steps=count(trial.steps))
    told = words("trial.sentence", verdict=verdict, effect=_effect(trial.effect, words), runs=runs)
    charts = tuple(chart for chart in (_arms(trial, words), _interval(trial, words)) if chart)
    broke = (
        words("trial.broke", arm=_arm(arm, words), seed=seed, why=why) for arm in trial.arms for seed, why in arm.broke
    )
    notes = (words("trial.note", note=note) for note in trial.notes)
    quiet = (Paragraph(note, quiet=True) for note in (*broke, *notes))
    return (Paragraph(told), typed(trial.treatment, words), Row(charts), *quiet)


def _effect(effect: Effect, words: Words) -> str:
    shown = percent if effect.unit == LOG_RATIO else number
    key = "trial.ratio" if effect.unit == LOG_RATIO else "trial.difference"
    value, low, high = (shown(_told(effect, end)) for end in (effect.value, effect.low, effect.high))
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        spread = words("trial.interval", low=low, high=high, confidence=percent(effect.confidence))
    else:
        spread = words("trial.unbounded")
    return words(key, value=value, unit=effect.unit) + spread


def _told(effect: Effect, value: float) -> float:
    """A log ratio as the ratio that people read."""
    return math.exp(value) if effect.unit == LOG_RATIO and value < 700 else value


def _arm(arm: Arm, words: Words) -> str:
    return words.named("arm", arm.name)


def _arms(trial: Trial, words: Words) -> Curves:
    """Each run faint, the median of each arm's runs bold."""
    steps = thin(range(trial.steps), STEPS)
    curves: list[Curve] = []
    for arm in trial.arms:
        runs = [finite(curve[step] if step < len(curve) else math.nan for step in steps) for curve in arm.curves]
        curves += [Curve(_arm(arm, words), steps, run, faint=True) for run in runs] if len(runs) > 1 else []
        curves.append(Curve(_arm(arm, words), steps, _median(runs, len(steps))))
    ends = [
        next((value for value in reversed(curve.y) if value is not None), None) for curve in curves if not curve.faint
    ]
    title = words("trial.title", arms=words("list.comma").join(
        words("trial.end", arm=_arm(arm, words), loss=number(end)) for arm, end in zip(trial.arms, ends)
    ), steps=count(trial.steps))  # fmt: skip
    y = Axis(words("loss.axis"), log=spans_decades([curve.y for curve in curves]))
    note = words("trial.faint") if len(trial.seeds) > 1 else ""
    return Curves(title, Axis(words("step")), y, tuple(curves), note=note)


def _median(runs: Sequence[Values], n: int) -> Values:
    medians: list[float | None] = []
    for at in range(n):
        known = sorted(value for run in runs if (value := run[at]) is not None)
        medians.append(
            known[len(known) // 2] if len(known) % 2 else sum(known[len(known) // 2 - 1 :][:2]) / 2 if known else None
        )
    return tuple(medians)


def _interval(trial: Trial, words: Words) -> Chart | None:
    """The effect of each pair and of all of them, where an interval bounds it."""
    effect = trial.effect
    ends = [_told(effect, end) for end in (effect.value, effect.low, effect.high)]
    if not all(map(math.isfinite, ends)):
        return None
    ratio = effect.unit == LOG_RATIO
    rows = [Interval(words("trial.all"), *ends)]
    rows += (
        [Interval(words("trial.seed", seed=seed), value, value, value) for seed, value in _pairs(trial)]
        if ratio
        else []
    )
    title = (
        words(f"trial.means.{trial.verdict.name.lower()}")
        if f"trial.means.{trial.verdict.name.lower()}" in words
        else ""
    )
    axis = Axis(words("trial.ratio.axis"), share=True) if ratio else Axis(effect.unit)
    rule = Rule(1.0 if ratio else 0.0, words("trial.same"))
    return Intervals(title, tuple(rows), axis, (rule,), note=words("trial.method", method=effect.method))


def _pairs(trial: Trial) -> Iterable[tuple[int, float]]:
    """Treated over untreated final loss of each seed, by the trial's own count of final steps."""
    tail = trial.settings.get("final_steps")
    if not isinstance(tail, int) or len(trial.arms) != 2 or tail < 1:
        return
    for seed, before, after in zip(trial.seeds, trial.untreated.curves, trial.treated.curves):
        below, above = sum(before[-tail:]), sum(after[-tail:])
        if math.isfinite(above) and math.isfinite(below) and below > 0 and above > 0:
            yield seed, above / below
