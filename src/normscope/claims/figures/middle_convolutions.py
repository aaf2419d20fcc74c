"""The distribution of a middle convolution of a VGG-16 over the training, without and with batch norm."""

from __future__ import annotations

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Bands

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def draw(outcomes: Outcomes) -> dict[str, Bands]:
    """A panel for each network and norm, one run of each."""
    panels = {}
    for net in outcomes.levels("net"):
        for norm in outcomes.levels("norm"):
            row = outcomes.where(net=net, norm=norm)[0]
            said = "batch norm" if norm == "BatchNorm" else "no norm"
            panels[f"{net} {said}"] = Bands(
                title=f"{net}, {said}: a middle convolution's output on a fixed batch ({row['final']:.0%} right).",
                steps=tuple(row["steps"]),
                quantiles=_LEVELS,
                values=tuple(map(tuple, row["quantiles"])),
                x=Axis("step"),
                y=Axis("output"),
            )
    return panels


FIGURE = Figure(
    of="4.7",
    en="The distribution of a middle convolution's output over the training: median, quartiles, outer twentieths.",
    zh="训练过程中一个中间卷积层输出的分布：中位数、四分位与两端各二十分之一。",
    known_from="Santurkar et al. 2018, figure 1 (right)",
    draw=draw,
)
