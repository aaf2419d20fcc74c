"""What training claims share: the curve as JSON, and the chart of accuracies by arm."""

from __future__ import annotations

import math
from typing import Any

from normscope.claims.bench import Curve
from normscope.claims.outcomes import Outcomes
from normscope.report import parts


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


def _mean(values: tuple[float, ...]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
