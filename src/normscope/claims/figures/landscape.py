"""Santurkar's panel: shift, range of the loss, predictiveness and smoothness, plain, batch norm, noisy batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normscope.claims.figure import Figure
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Axis, Curve, Curves

_PANELS: dict[str, tuple[str, str, Callable[[Any], list[float]]]] = {
    "shift": ("How far pre-activations move in one step", "standard deviations", lambda row: row["moves"]),
    "loss": (
        "The range of the loss along the gradient",
        "range of the loss",
        lambda row: row["landscape"]["loss_variation"],
    ),
    "predictiveness": (
        "How much the gradient changes along itself (less is more predictive)",
        "‖g − g′‖",
        lambda row: row["landscape"]["gradient_predictiveness"],
    ),
    "smoothness": (
        "How steeply the gradient changes along itself (less is smoother)",
        "‖g − g′‖ / way",
        lambda row: row["landscape"]["effective_smoothness"],
    ),
}


def draw(outcomes: Outcomes) -> dict[str, Curves]:
    """Four panels of three curves."""
    return {name: _panel(outcomes, *panel) for name, panel in _PANELS.items()}


def _panel(outcomes: Outcomes, said: str, axis: str, values: Callable[[Any], list[float]]) -> Curves:
    curves = []
    for arm in outcomes.levels("arm"):
        rows = outcomes.where(arm=arm)
        steps = [step for step in rows[0]["steps"] if step]  # the first step has no move before it
        told = [values(row)[-len(steps) :] for row in rows]
        curves.append(
            Curve(arm, tuple(map(float, steps)), tuple(sum(at) / len(at) if min(at) > 0 else None for at in zip(*told)))
        )
    return Curves(title=f"{said}, mean of seeds.", x=Axis("step"), y=Axis(axis, log=True), curves=tuple(curves))


FIGURE = Figure(
    of="0.14",
    en="Shift, range of the loss, predictiveness and smoothness: plain, with batch norm, with noisy batch norm.",
    zh="偏移、损失范围、梯度可预测性与平滑度：无归一化、批归一化、加噪批归一化。",
    known_from="Santurkar et al. 2018, figures 1, 2 and 4",
    draw=draw,
)
