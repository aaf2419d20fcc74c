"""From effects to a verdict, by a rule that is fixed before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from normscope.terms.datum import Datum
from normscope.terms.errors import SpecError
from normscope.terms.verdict import Effect, Verdict


@dataclass(frozen=True, repr=False)
class Ruling(Datum):
    """A verdict, and the verdict under each condition."""

    verdict: Verdict
    by_condition: Mapping[str, Verdict]

    def under(self, verdict: Verdict) -> tuple[str, ...]:
        """The conditions with this verdict."""
        return tuple(condition for condition, one in self.by_condition.items() if one is verdict)


@dataclass(frozen=True, repr=False)
class Decision(Datum):
    """Where an effect begins to support a sentence, and where it begins to contradict it.

    Attributes:
        holds_above: the sentence holds where the whole interval lies above this.
        fails_below: it fails where the whole interval lies below this.
        unit: of the effect.
        reason: why these numbers, in words.
    """

    holds_above: float
    fails_below: float
    unit: str
    reason: str

    def __post_init__(self) -> None:
        if not self.fails_below <= self.holds_above:
            raise SpecError(
                "A decision was written that can say two things of one effect.",
                found={"holds_above": self.holds_above, "fails_below": self.fails_below},
                because="an effect between the two would both support and contradict the sentence",
                do="let fails_below be at most holds_above",
            )

    @classmethod
    def exact(cls, tolerance: float, reason: str = "rounding of float64") -> Decision:
        """The rule for an identity: its effect is minus the largest residual."""
        return cls(-tolerance, -tolerance, "minus the largest residual", reason)

    def of(self, effect: Effect) -> Verdict:
        """What one effect says; an interval that holds no number says nothing."""
        if effect.low > self.holds_above:
            return Verdict.HOLDS
        return Verdict.FAILS if effect.high < self.fails_below else Verdict.UNCLEAR

    def judge(self, effects: Mapping[str, Effect]) -> Ruling:
        """What all of them say: a sentence that holds under some of its conditions and not under all is conditional."""
        found = {condition: self.of(effect) for condition, effect in effects.items()}
        said = set(found.values())
        if len(said) == 1:
            verdict = said.pop()
        else:
            verdict = Verdict.CONDITIONAL if Verdict.HOLDS in said else Verdict.UNCLEAR
        return Ruling(verdict, found)
