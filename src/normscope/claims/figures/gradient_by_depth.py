"""The gradient down the depth of an untrained network, for each nonlinearity and each remedy."""

from __future__ import annotations

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Curve, Curves


def draw(outcomes: Outcomes) -> dict[str, Curves]:
    """A panel for each nonlinearity, a curve for each remedy."""
    rows = outcomes.where(gain="one")
    return {function: _panel(rows.where(function=function), function) for function in rows.levels("function")}


def _panel(rows: Outcomes, function: str) -> Curves:
    remedies = {remedy: rows.where(remedy=remedy).column("decades") for remedy in rows.levels("remedy")}
    return Curves(
        title=f"{function}: the gradient at each of fifty layers over that at the last, mean of random networks.",
        x=Axis("layer"),
        y=Axis("decades"),
        curves=tuple(
            Curve(
                remedy,
                tuple(map(float, range(1, len(told[0]) + 1))),
                tuple(sum(layer) / len(layer) for layer in zip(*told)),
            )
            for remedy, told in remedies.items()
        ),
    )


FIGURE = Figure(
    of="2.1",
    en="The gradient by depth for each nonlinearity, without a remedy and with batch norm, layer norm and connections.",
    zh="各激活函数的梯度随深度的变化：不加处理、批归一化、层归一化与残差连接。",
    known_from="Glorot & Bengio 2010, figure 7; lectures on vanishing gradients",
    draw=draw,
)
