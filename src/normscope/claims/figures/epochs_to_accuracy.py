"""Epochs to 70% accuracy at each rate, with and without batch norm."""

from __future__ import annotations

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Column, Profile


def draw(outcomes: Outcomes) -> dict[str, Profile]:
    """A panel for each network."""
    return {net.split(",")[0]: _panel(outcomes.where(net=net), net) for net in outcomes.levels("net")}


def _panel(rows: Outcomes, net: str) -> Profile:
    rates = rows.levels("rate")

    def mean(norm: str, rate: float) -> float:
        epochs = rows.where(norm=norm, rate=rate).column("epochs_to")
        return sum(epochs) / len(epochs)

    most = rows[0]["epochs"]
    return Profile(
        title=f"{net}: epochs to 70% test accuracy at each rate, mean of seeds; {most + 1} where it is never reached.",
        places=tuple(f"rate {rate:g}" for rate in rates),
        roles=("",) * len(rates),
        x=Axis("epochs"),
        columns=tuple(Column(norm, tuple(mean(norm, rate) for rate in rates)) for norm in rows.levels("norm")),
    )


FIGURE = Figure(
    of="0.11",
    en="Epochs to 70% test accuracy at each rate, with and without batch norm.",
    zh="各学习率下达到 70% 测试精度所需的轮数：有无批归一化。",
    known_from="Ioffe & Szegedy 2015, figures 1 and 2",
    draw=draw,
)
