"""What an experiment says: an `Effect` with its interval, a `Verdict`, and the two arms of a `Trial`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from normscope.terms.datum import Datum


class Verdict(str, Enum):
    """What the evidence allows to say of a statement."""

    HOLDS = "holds"
    FAILS = "fails"
    CONDITIONAL = "holds under a condition"
    UNCLEAR = "unclear"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, repr=False)
class Effect(Datum):
    """A measured difference with the interval that contains the true one at the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float = 0.95
    unit: str = ""
    method: str = ""

    def excludes(self, value: float = 0.0) -> bool:
        """Whether the interval leaves `value` out."""
        return not self.low <= value <= self.high


@dataclass(frozen=True, repr=False)
class Arm(Datum):
    """One side of a trial: for each seed, the loss at each step (NaN after a run that broke off)."""

    name: str
    curves: tuple[tuple[float, ...], ...]
    broke: tuple[tuple[int, str], ...] = ()  # (seed, why) of runs that raised or diverged


@dataclass(frozen=True, repr=False)
class Trial(Datum):
    """A controlled comparison: same start, same data order, same seeds, with and without the treatment.

    Attributes:
        treatment: the treatment in words.
        seeds: one pair of runs each.
        steps: optimizer steps in each run.
        arms: untreated first, treated second.
        effect: treated minus untreated, paired by seed, in `effect.unit`; below zero is better.
        verdict: whether the treatment helps, by a rule fixed before the run.
        notes: what a reader must know (what the arms share, what was skipped).
    """

    treatment: str
    seeds: tuple[int, ...]
    steps: int
    arms: tuple[Arm, ...]
    effect: Effect
    verdict: Verdict
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def untreated(self) -> Arm:
        """The arm left as it was."""
        return self.arms[0]

    @property
    def treated(self) -> Arm:
        """The arm with the treatment."""
        return self.arms[1]

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Trial:
        """The trial that `to_dict` wrote."""
        arms = tuple(
            Arm(
                arm["name"],
                tuple(tuple(float(value) for value in curve) for curve in arm["curves"]),
                tuple((int(seed), str(why)) for seed, why in arm["broke"]),
            )
            for arm in data["arms"]
        )
        told = {"value": 0.0, "low": 0.0, "high": 0.0, **data["effect"]}
        told.update({name: float(told[name]) for name in ("value", "low", "high", "confidence")})
        return Trial(
            treatment=data["treatment"],
            seeds=tuple(data["seeds"]),
            steps=data["steps"],
            arms=arms,
            effect=Effect(**told),
            verdict=Verdict(data["verdict"]),
            notes=tuple(data["notes"]),
            settings=dict(data["settings"]),
        )
