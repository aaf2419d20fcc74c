"""What a rule is: a code, an ailment, a check, thresholds with their source, a text, and examples that test it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from normscope.terms.datum import Datum
from normscope.terms.errors import SpecError
from normscope.terms.finding import Evidence, Finding, Prescription, Removal, Severity

HEADINGS = ("What it finds", "Why it hurts", "Evidence", "Prescription", "When to ignore", "References")
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


Check = Callable[[Any], Iterable[Finding]]


@dataclass(frozen=True, repr=False)
class Threshold(Datum):
    """A number at which a rule speaks, and who says so (a paper, a derivation, a measurement)."""

    value: float
    source: str
    unit: str = ""

    def evidence(
        self, quantity: str, value: float, steps: Iterable[int] = (), per_site: Iterable[tuple[str, float]] = ()
    ) -> Evidence:
        """The measurement of `value` against this threshold; `per_site` worst first."""
        told = tuple((site, float(one)) for site, one in per_site)
        measured = tuple(int(step) for step in steps)
        return Evidence(quantity, float(value), self.value, measured, self.unit, self.source, told)


class Example(Protocol):
    """A subject on which a rule must speak, or must be silent; `sites` are the paths it must name."""

    @property
    def sites(self) -> tuple[str, ...]: ...

    def subject(self, folder: Any) -> Any:
        """What the rule's check reads: a `Case` or a `Blueprint`. `folder` is empty and may be written to."""


@dataclass(frozen=True, repr=False)
class Rule(Datum):
    """One ailment and how to recognize it.

    Attributes:
        code: stable: NS1xx of a model at rest, NS2xx of training, NS3xx of normalization in training.
        name: the ailment (never the cure), one word.
        severity: what a finding is unless the check says otherwise.
        reads: ``"record"`` when the check takes a `Case`, ``"model"`` when it takes a `Blueprint`.
        check: looks, and yields findings.
        text: the rule's module docstring: a first line, then the sections of `HEADINGS`.
        second: looks again, by trainings of copies, where no rule has found anything in a run that has hardly learned.
        thresholds: every number the check compares with, by name.
        causes: names of the ailments that this one can bring about.
        roots: the quantities of evidence that show a cause by themselves: no other finding explains such a one.
        travels: the pass in which the symptom spreads; a cause of a ``"forward"`` ailment lies before it in
            execution order, a cause of a ``"backward"`` one lies after it, one of ``"both"`` anywhere.
        symptom: what of a model and a batch shows this ailment, a name of `symptoms.SYMPTOMS`; None when nothing does.
        shown_by: the quantities of evidence to whose findings the symptom belongs; empty where it does to all.
        removal: what takes the cause out that this rule names, a name of `removals.REMOVALS`; None when nothing does.
        lasting: whether the symptom outlives its cause, so that a copy without that still shows it.
        sick: examples in which the rule must speak.
        healthy: examples in which it must be silent.
    """

    code: str
    name: str
    severity: Severity
    reads: Literal["record", "model"]
    check: Check = field(repr=False)
    text: str | None = field(repr=False)
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    causes: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    second: Check | None = field(default=None, repr=False)
    travels: Literal["forward", "backward", "both"] = "forward"
    symptom: str | None = None
    shown_by: tuple[str, ...] = ()
    removal: str | None = None
    lasting: bool = False
    sick: tuple[Example, ...] = field(default=(), repr=False)
    healthy: tuple[Example, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        found = tuple(self.sections)
        if found != HEADINGS:
            raise SpecError(
                f"The rule {self.code} {self.name} was written with other headings than the fixed ones.",
                found=", ".join(found) or "no heading",
                because="the page, the command line and the report print these sections by name",
                do="write `## ` headings in this order: " + ", ".join(HEADINGS),
            )

    @property
    def title(self) -> str:
        """The first line of the text."""
        return inspect.cleandoc(self.text or "").partition("\n")[0]

    @property
    def sections(self) -> dict[str, str]:
        """Heading → what stands under it."""
        _, *parts = _HEADING.split(inspect.cleandoc(self.text or ""))
        return {heading.strip(): body.strip() for heading, body in zip(parts[::2], parts[1::2])}

    def finding(
        self,
        sites: Sequence[str],
        message: str,
        evidence: Evidence,
        *,
        severity: Severity | None = None,
        since_step: int | None = None,
        prescriptions: Sequence[Prescription] = (),
        removals: Sequence[Removal] = (),
    ) -> Finding:
        """A finding of this ailment; why it hurts is the rule's own section."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            sites=tuple(sites),
            message=message,
            evidence=evidence,
            since_step=since_step,
            why=" ".join(self.sections["Why it hurts"].split()),
            prescriptions=tuple(prescriptions),
            removals=tuple(removals),
        )
