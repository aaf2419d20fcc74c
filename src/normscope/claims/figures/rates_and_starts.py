"""Accuracy over the grid of rates and sizes of the first weights, with and without batch norm."""

from __future__ import annotations

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Column, Profile


def draw(outcomes: Outcomes) -> dict[str, Profile]:
    """A panel for each arm."""
    return {
        {"none": "no norm", "BatchNorm": "batch norm"}[norm]: _panel(outcomes.where(norm=norm), norm)
        for norm in outcomes.levels("norm")
    }


def _panel(rows: Outcomes, norm: str) -> Profile:
    rates, gains = rows.levels("rate"), rows.levels("gain")

    def mean(rate: float, gain: float) -> float:
        ends = rows.where(rate=rate, gain=gain).column("final")
        return sum(ends) / len(ends)

    said = "batch norm" if norm == "BatchNorm" else "no norm"
    return Profile(
        title=f"{said}: test accuracy at each rate from three sizes of the first weights (He's is 1.4), mean of seeds.",
        places=tuple(f"rate {rate:g}" for rate in rates),
        roles=("",) * len(rates),
        x=Axis("test accuracy", share=True),
        columns=tuple(Column(f"gain {gain:g}", tuple(mean(rate, gain) for rate in rates)) for gain in gains),
    )


FIGURE = Figure(
    of="1.7",
    en="Accuracy over the grid of rates and sizes of the first weights, with and without batch norm.",
    zh="学习率与初始权重大小的网格上的精度：有无批归一化。",
    known_from="Bjorck et al. 2018, figures 1 and 3",
    draw=draw,
)
