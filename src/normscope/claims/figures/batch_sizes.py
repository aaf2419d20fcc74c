"""Error over the batch size for batch norm and its remedies."""

from __future__ import annotations

import math

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Curve, Curves


def draw(outcomes: Outcomes) -> dict[str, Curves]:
    """The mean error of each norm at each batch size."""
    curves = []
    for arm in outcomes.levels("arm"):
        rows = outcomes.where(arm=arm)
        sizes = sorted(rows.levels("batch"))
        means = [1 - _mean(rows.where(batch=size).column("final")) for size in sizes]
        curves.append(Curve(arm, tuple(math.log2(size) for size in sizes), tuple(means)))
    title = "Test error after equal epochs over the batch size: what small batches cost each norm, mean of seeds."
    return {
        "": Curves(
            title=title, x=Axis("log₂ of the batch size"), y=Axis("test error", share=True), curves=tuple(curves)
        )
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


FIGURE = Figure(
    of="4.1",
    en="Test error over the batch size.",
    zh="测试误差随批量大小的变化。",
    known_from="Wu & He 2018, figure 1; Qiao et al. 2019, figure 1",
    draw=draw,
)
