"""What training claims share: the curve as JSON, effects and charts of one arm against another."""

from __future__ import annotations

import math
from typing import Any

from normscope.claims.bench import Curve
from normscope.claims.interval import paired
from normscope.claims.outcomes import Case, Outcomes
from normscope.report import parts
from normscope.terms.verdict import Effect


def told(curve: Curve) -> dict[str, Any]:
    """The curve as the values of an outcome, with its `final` accuracy."""
    return {**curve.to_dict(), "final": curve.final}


def accuracy_by(outcomes: Outcomes, *fields: str, title: str) -> parts.Curves:
    """The mean accuracy over seeds after each epoch, a curve for each arm; gaps where a training broke off."""
    arms: dict[str, list[list[float]]] = {}
    for row in outcomes:
        arms.setdefault(", ".join(f"{field} {row[field]}" for field in fields), []).append(row["accuracy"])
    return parts.Curves(
        title=title,
        x=parts.Axis("epoch"),
        y=parts.Axis("accuracy on the test split", share=True),
        curves=tuple(
            parts.Curve(arm, tuple(map(float, range(len(rows[0])))), tuple(_mean(at) for at in zip(*rows)))
            for arm, rows in arms.items()
        ),
    )


def gained(
    outcomes: Outcomes, value: str, one: Case, other: Case, *, by: str = "", unit: str = "accuracy", label: str = "{}"
) -> dict[str, Effect]:
    """What the runs of `one` have more of `value` than their partners of `other`, for each level of the field `by`."""
    rows = (
        {label.format(level): outcomes.where(**{by: level}) for level in outcomes.levels(by)} if by else {"": outcomes}
    )
    return {name: paired([a - b for a, b in row.pairs(value, one, other)], unit) for name, row in rows.items()}


def averages(outcomes: Outcomes, value: str, arm: str, by: str, *, title: str, axis: parts.Axis) -> parts.Profile:
    """The mean over seeds of `value`, a column for each arm, a row for each level of `by`."""
    levels = outcomes.levels(by)
    return parts.Profile(
        title=title,
        places=tuple(f"{by} {level}" if isinstance(level, int | float) else str(level) for level in levels),
        roles=tuple("" if isinstance(level, int | float) else str(level) for level in levels),
        x=axis,
        columns=tuple(
            parts.Column(
                str(name),
                tuple(_mean(tuple(outcomes.where(**{arm: name, by: level}).column(value))) for level in levels),
            )
            for name in outcomes.levels(arm)
        ),
    )


ACCURACY = parts.Axis("accuracy on the test split", share=True)


def _mean(values: tuple[float, ...]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
