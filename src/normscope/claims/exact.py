"""What exact claims share: cases by condition and draw, the largest residual as the effect, and its chart."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from normscope.claims.interval import exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile, Rule
from normscope.terms.verdict import Effect

TOLERANCE = 1e-9  # float64 rounds at 1e-16; a few thousand operations lose a few digits, a wrong formula loses all
_FLOOR = 1e-17  # where a residual of exactly zero is drawn on a logarithmic axis


def each(conditions: Iterable[str], draws: int = 1) -> list[Case]:
    """Every condition on as many random instances."""
    return [{"condition": condition, "seed": seed} for condition in conditions for seed in range(draws)]


def generator(case: Case) -> torch.Generator:
    """The random numbers of one instance, the same for all conditions."""
    return torch.Generator().manual_seed(case["seed"])


def residual(got: Tensor | float, wanted: Tensor | float) -> float:
    """The largest difference, relative to the largest wanted value where that is above one."""
    one, other = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (got, wanted))
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Minus the largest residual of each condition."""
    return {
        condition: exact(-max(outcomes.where(condition=condition).column("residual")), "residual")
        for condition in outcomes.levels("condition")
    }


def draw(outcomes: Outcomes) -> Profile:
    """The residual of each condition on a logarithmic axis, beside the tolerance."""
    worst = {condition: max(-effect.value, _FLOOR) for condition, effect in weigh(outcomes).items()}
    places = tuple(worst)
    return Profile(
        title="How far each condition is from what the sentence says; zero is drawn at 10⁻¹⁷.",
        places=places,
        roles=places,
        x=Axis("largest residual", log=True),
        columns=(Column("largest residual", tuple(worst.values())),),
        rules=(Rule(TOLERANCE, "tolerance"),),
    )
