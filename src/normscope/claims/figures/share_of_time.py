"""Where the time of a training step goes, by kind of operator."""

from __future__ import annotations

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Column, Profile, Rule


def draw(outcomes: Outcomes) -> dict[str, Profile]:
    """The share of each kind for each width, mean of runs."""
    widths = outcomes.levels("width")
    kinds = tuple(outcomes[0]["kinds"])

    def mean(width: int, kind: str) -> float:
        shares = [row[kind] for row in outcomes.where(width=width).column("kinds")]
        return sum(shares) / len(shares)

    return {
        "": Profile(
            title="The share of each kind of operator in a training step, forward and backward, by torch's profiler.",
            places=kinds,
            roles=kinds,
            x=Axis("share of the self time", share=True),
            columns=tuple(Column(f"width {width}", tuple(mean(width, kind) for kind in kinds)) for width in widths),
            rules=(Rule(0.25, "the article's quarter"),),
            ordered=True,
        )
    }


FIGURE = Figure(
    of="4.2",
    en="The share of batch norm and of other operators in a training step.",
    zh="一个训练步中批归一化与其他算子所占的时间。",
    known_from="Gitman & Ginsburg 2017, figure on ResNet-50's time (the article's picture)",
    draw=draw,
)
